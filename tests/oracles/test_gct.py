import numpy as np
import pytest

from tests.oracles import gct
from tests.oracles import linear_model as lm


def hyper(**options):
  return lm.tiny_hyper(**{
    'flaw_weight': 1.0, 'consistency_weight': 100.0, 'ramp': lambda step: 0.5,
    'detector_rate': lambda step: 0.01, 'blur_sizes': (3, 3, 3), **options})


def problem(seed=0):
  networks, labelled, unlabelled = lm.make_problem(seed, names=gct.NAMES)
  networks['detector'] = {'flaw': lm.random_layer(np.random.default_rng(seed), 6, 1)}
  state = lm.initial_state(networks, gct.NAMES, adam=gct.adam_state(networks['detector']))
  return state, labelled[0], unlabelled[0]


@pytest.mark.parametrize('variant', ['pixelssl', 'torchsemiseg'])
def test_gradient_agrees_with_finite_differences(variant):
  state, labelled, unlabelled = problem()
  networks, options = state['networks'], hyper(variant=variant)
  x = np.concatenate([lm.pixels(labelled), lm.pixels(unlabelled)])
  fixed = gct.targets(networks, labelled, unlabelled, x, options)['student']
  assert 0 < fixed['both_bad'].mean() < 1
  given = (networks['detector'], labelled, x, fixed, 0.5, options)
  losses, gradient = gct.objective(networks['student'], *given)
  assert min(losses.values()) > 0
  lm.assert_trees_close(gradient, lm.finite_differences(
    lambda p: gct.objective(p, *given)[0]['total'], networks['student']))


def test_detector_gradient_agrees_with_finite_differences():
  state, labelled, _ = problem()
  rng, detector = np.random.default_rng(2), state['networks']['detector']
  p = [lm.softmax(rng.normal(size=(40, 3))) for _ in range(2)]
  given = (lm.pixels(labelled), p, [rng.random(40), rng.random(40)])
  _, gradient = gct.detector_objective(detector, *given, False)
  lm.assert_trees_close(gradient, lm.finite_differences(
    lambda d: gct.detector_objective(d, *given, False)[0], detector))


def test_hand_computed_detector_loss():
  detector = {'flaw': {'kernel': np.zeros((6, 1)), 'bias': np.full(1, -0.5)}}
  p, x = [np.full((2, 3), 1 / 3)] * 2, np.zeros((2, 3))
  targets = [np.array([0.0, 1.0]), np.array([0.0, 0.0])]
  loss, gradient = gct.detector_objective(detector, x, p, targets, False)
  assert loss == pytest.approx(10 * ((0.25 + 2.25) / 2 + 0.25) / 2)
  # 10 times the mean over l and r of the mean of 2 (F - T).
  assert gradient['flaw']['bias'][0] == pytest.approx(10 * (-2 - 1) / 2)
  loss, gradient = gct.detector_objective(detector, x, p, targets, True)
  assert loss == pytest.approx(10 * (1 / 2) / 2)
  assert gradient['flaw']['bias'][0] == pytest.approx(10 * (-1 - 0) / 2)


def test_four_cases_of_mutual_targets():
  g_l, g_r = np.array([0.1, 0.9, 0.9, 0.3]), np.array([0.2, 0.2, 0.8, 0.3])
  p_l, p_r = np.zeros((4, 1)), np.ones((4, 1))
  t_l, t_r, both_bad = gct.mutual_targets(p_l, p_r, g_l, g_r, 0.6)
  assert t_l.ravel().tolist() == [0, 1, 0, 0]
  assert t_r.ravel().tolist() == [0, 1, 1, 1]
  assert both_bad.tolist() == [False, False, True, False]


def test_blur_and_dilation():
  impulse = np.zeros((5, 5))
  impulse[2, 2] = 1.0
  blurred = gct.blur(impulse, 3)
  near = np.exp(-1 / (2 * 0.8**2))  # the kernel is 1, near, near^2 over their sum
  assert blurred[2, 1] / blurred[2, 2] == pytest.approx(near)
  assert blurred[1, 1] / blurred[2, 2] == pytest.approx(near**2)
  assert blurred.sum() == pytest.approx(1)
  np.testing.assert_allclose(gct.blur(np.full((5, 6), 3.0), 5), 3)
  # Reflection without the edge: beside column 0 stands column 1 once more.
  edge = np.zeros((3, 3))
  edge[:, 1] = 1.0
  assert gct.blur(edge, 3)[1, 0] == pytest.approx(2 * near / (1 + 2 * near))
  grown = gct.dilate(impulse)
  assert grown.sum() == 9 and grown[1:4, 1:4].all()
  assert [gct.odd(513 / n) for n in (16, 8, 4)] == [33, 65, 129]


def test_handled_flaw():
  flaw, valid = np.array([[-1.0, 0.5], [1.0, 9.0]]), np.array([[True, True], [True, False]])
  np.testing.assert_allclose(gct.handle(flaw, valid, 1)[valid], [0, 0.5, 1], atol=1e-8)
  low = np.array([[0.02, 0.06], [0.04, 9.0]])
  np.testing.assert_allclose(gct.handle(low, valid, 1)[valid], -0.5, atol=1e-7)
  assert not gct.handle(low, valid, 1, 'zero').any()


def test_flaw_target():
  # d = 1 - p_true where there is a label, 1/2 at the ignored pixel.
  p = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.5, 0.5]]])
  label = np.array([[0, 0], [0, 255]])
  calls = [0.5 * np.abs(np.eye(2)[0] - q).sum() for q in (p[0, 0], p[0, 1], p[1, 0])]
  np.testing.assert_allclose(calls, [0.1, 0.8, 0.6])
  # Two rows and columns, reflected: every 3 x 3 window sees all four, so T is constant, hence 0.
  np.testing.assert_allclose(gct.flaw_target(p, label, (1, 1)), 0)
  wide = np.zeros((1, 7)) + np.array([0.0, 0, 0, 0, 0, 0, 1])
  wide = np.repeat(wide, 3, 0)
  target = gct.flaw_target(np.stack([1 - wide, wide], -1), np.zeros((3, 7)), (1, 1))
  np.testing.assert_allclose(target, [[0, 0, 0, 0, 0, 1, 1]] * 3, atol=1e-8)


@pytest.mark.parametrize('variant', ['pixelssl', 'torchsemiseg'])
def test_variants_differ_in_divisor_and_in_what_the_detector_sees(variant):
  state, labelled, unlabelled = problem()
  stepped, losses = gct.step(state, labelled, unlabelled, hyper=hyper(variant=variant))
  mean, _ = lm.supervised(state['networks']['student'], labelled)
  known = (labelled['label'] != 255).mean()
  old = variant == 'pixelssl'
  assert losses['student']['labelled'] == pytest.approx(mean * known if old else mean)
  seen = state['networks'] if old else stepped['networks']
  x, label = lm.pixels(labelled), labelled['label']
  p = [lm.softmax(lm.forward(seen[name], x)['logits']) for name in gct.NAMES]
  flaws = [np.stack([gct.flaw_target(q[i * 20:i * 20 + 20].reshape(4, 5, 3), label[i], (3, 3))
                     for i in range(2)]).ravel() for q in p]
  expected, _ = gct.detector_objective(state['networks']['detector'], x, p, flaws, False)
  assert losses['detector'] == pytest.approx(expected)


def test_adam_by_hand():
  params = {'flaw': {'bias': np.zeros(1)}}
  state = gct.adam_state(params)
  for gradient in (2.0, 1.0):
    params, state = gct.adam(params, state, {'flaw': {'bias': np.full(1, gradient)}}, 0.1)
  mean, square = (0.9 * 0.2 + 0.1) / (1 - 0.81), (0.99 * 0.04 + 0.01) / (1 - 0.9801)
  assert params['flaw']['bias'][0] == pytest.approx(-0.1 - 0.1 * mean / np.sqrt(square))


@pytest.mark.parametrize('variant', ['pixelssl', 'torchsemiseg'])
def test_exchange_and_padding(variant):
  state, labelled, unlabelled = problem()
  other = {**state, 'networks': {**state['networks'], 'student': state['networks']['assistant'],
                                 'assistant': state['networks']['student']}}
  image = np.where(unlabelled['valid'][..., None], unlabelled['image'], 200)
  options = hyper(variant=variant)
  state, losses = lm.iterate(
    gct.step, state, [labelled] * 2, [unlabelled] * 2, hyper=options)[-1]
  other, swapped = lm.iterate(
    gct.step, other, [labelled] * 2, [{**unlabelled, 'image': image}] * 2, hyper=options)[-1]
  assert losses['student'] == pytest.approx(swapped['assistant'])
  lm.assert_trees_close(state['networks']['student'], other['networks']['assistant'], 1e-12)
  lm.assert_trees_close(state['networks']['detector'], other['networks']['detector'], 1e-12)
