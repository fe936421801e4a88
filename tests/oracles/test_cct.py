import numpy as np
import pytest

from tests.oracles import cct
from tests.oracles import linear_model as lm


def hyper(**options):
  return lm.tiny_hyper(**{'consistency_weight': 30.0, 'ramp_steps': 4, 'bootstrap_steps': 5,
                          **options})


def problem(seed=0, width=4):
  networks, labelled, unlabelled = lm.make_problem(seed)
  rng = np.random.default_rng(seed + 100)
  perturbations = {
    'same': ('identity', None),
    'dropout': ('dropout', 2.0 * rng.integers(0, 2, (2, width))),
    'noise': ('feature_noise', rng.uniform(-0.3, 0.3, (4, 5, width))),
    'drop': ('feature_drop', 0.8),
    'cutout': ('guided_cutout', rng.random((2, 4, 5)) > 0.3),
    'context': ('context_masking', None),
    'object': ('object_masking', None),
    'vat': ('vat', rng.uniform(-0.5, 0.5, (2, 4, 5, width)))}
  networks['student']['auxiliary_decoders'] = {
    name: lm.random_layer(rng, width, 3) for name in perturbations}
  return lm.initial_state(networks, ('student',)), labelled[0], unlabelled[0], perturbations


@pytest.mark.parametrize('feature', ['encoded', 'fused'])
def test_gradient_agrees_with_finite_differences(feature):
  state, _, unlabelled, perturbations = problem(width=4 if feature == 'encoded' else 5)
  if feature == 'fused':
    perturbations = {name: perturbations[name] for name in ('drop', 'vat')}
  options, params = hyper(feature=feature), state['networks']['student']
  heads = params['auxiliary_decoders']
  params = {**params, 'auxiliary_decoders': {name: heads[name] for name in perturbations}}
  target, constants = cct.targets(params, unlabelled, perturbations, options)
  _, gradient = cct.consistency(params, unlabelled, target, constants, options)

  def total(params):
    return cct.consistency(params, unlabelled, target, constants, options)[0]

  lm.assert_trees_close(gradient, lm.finite_differences(total, params))
  assert not gradient['classifier']['kernel'].any()
  assert gradient['decoder']['kernel'].any() == (feature == 'fused')


@pytest.mark.parametrize('supervised', ['bootstrapped', 'plain'])
def test_step_adds_both_gradients_to_the_encoder(supervised):
  state, labelled, unlabelled, perturbations = problem()
  options = hyper(supervised=supervised, momentum=0, weight_decay=0)
  params = state['networks']['student']
  stepped, losses = cct.step(
    state, labelled, unlabelled, perturbations=perturbations, hyper=options)
  assert losses['total'] == pytest.approx(
    losses['labelled'] + 30 * np.exp(-5) * losses['consistency'])
  expected = lm.finite_differences(lambda p: cct.supervised(p, labelled, 0, options)[0], params)
  for key in ('decoder', 'classifier'):
    lm.assert_trees_close(stepped['momentum']['student'][key], expected[key])
  assert not np.allclose(stepped['momentum']['student']['backbone']['kernel'],
                         expected['backbone']['kernel'], atol=1e-5)


def test_hand_computed_bootstrap():
  # p_true = .5, .2, .9; the fourth is ignored. T = .4 keeps one pixel; rank 1 is .5, which still
  # keeps .2 alone; rank 2 is .9 and keeps two.
  true = np.array([0.5, 0.2, 0.9, 0.1])
  logits, label = np.log(np.stack([true, 1 - true], 1)), np.array([0, 0, 0, 255])
  for images, expected in ((1, [0, 1, 0, 0]), (2, [0.5, 0.5, 0, 0]), (9, [0.5, 0.5, 0, 0])):
    np.testing.assert_allclose(cct.bootstrapped_weights(logits, label, images, 0.4), expected)
  assert not cct.bootstrapped_weights(logits, np.full(4, 255), 1, 0.4).any()


def test_hand_computed_consistency():
  # t = (1/2, 1/4, 1/4), an auxiliary decoder says (1/3, 1/3, 1/3): (1/36 + 2/144) / 3 = 1/72.
  state, _, unlabelled, _ = problem()
  layer = {'kernel': np.zeros((4, 3)), 'bias': np.zeros(3)}
  params = {**state['networks']['student'], 'auxiliary_decoders': {'same': layer},
            'classifier': {'kernel': np.zeros((5, 3)), 'bias': np.log([0.5, 0.25, 0.25])}}
  target, constants = cct.targets(params, unlabelled, {'same': ('identity', None)}, hyper())
  loss, _ = cct.consistency(params, unlabelled, target, constants, hyper())
  assert loss == pytest.approx(1 / 72)


def test_vat_direction_is_the_gradient_of_the_divergence():
  rng = np.random.default_rng(0)
  layer, feature = lm.random_layer(rng, 3, 2), rng.normal(size=(1, 4, 3))
  direction, valid = rng.normal(size=(1, 4, 3)), np.array([[True, True, True, False]])
  direction = direction * valid[..., None]
  clean = lm.softmax(lm.linear(layer, feature))

  def divergence(tree):
    moved = lm.softmax(lm.linear(layer, feature + tree['d']))
    return (clean * np.log(clean / moved)).sum()

  slope = lm.finite_differences(divergence, {'d': 1e-4 * direction}, 1e-4)['d'] * valid[..., None]
  r = cct.virtual_adversarial(layer, feature, direction, valid, 2.0)
  assert np.linalg.norm(r) == pytest.approx(2)
  np.testing.assert_allclose(r, 2 * slope / np.linalg.norm(slope), atol=2e-4)
  flat = {'kernel': np.zeros((3, 2)), 'bias': np.zeros(2)}
  assert not cct.virtual_adversarial(flat, feature, direction, valid, 2.0).any()


def test_perturbations():
  feature = np.array([[[1.0, 1.0], [4.0, 6.0], [3.0, 5.0], [90.0, 90.0]]])
  foreground, valid = np.array([[False, True, True, False]]), np.array([[True, True, True, False]])

  def apply(kind, value):
    multiplier, offset = cct.perturbation(kind, value, None, feature, foreground, valid, 2.0)
    return (feature * multiplier + offset)[0, :, 0]

  # Means 1, 5, 4; .8 of the largest valid one is 4: 5 and 4 are dropped.
  np.testing.assert_array_equal(apply('feature_drop', 0.8)[:3], [1, 0, 0])
  both = apply('context_masking', None) + apply('object_masking', None)
  np.testing.assert_array_equal(both, feature[0, :, 0])
  np.testing.assert_array_equal(apply('context_masking', None), [0, 4, 3, 0])
  np.testing.assert_array_equal(apply('dropout', np.array([[2.0, 0.0]])), [2, 8, 6, 180])
  np.testing.assert_allclose(apply('feature_noise', np.full((2, 2, 2), 0.1))[:2], [1.1, 4.4])


def test_padding_has_no_influence():
  state, labelled, unlabelled, perturbations = problem()
  image = np.where(unlabelled['valid'][..., None], unlabelled['image'], 200)
  (one, _), (two, _) = (
    cct.step(state, labelled, batch, perturbations=perturbations, hyper=hyper())
    for batch in (unlabelled, {**unlabelled, 'image': image}))
  lm.assert_trees_close(one['networks'], two['networks'], 0)
