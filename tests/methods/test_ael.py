"""AEL: its step against the oracle in NumPy, its draws, its invariants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cityscapes, voc
from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.objectives import unlabelled_images
from gta_jax.methods.registry import make_method
from gta_jax.ops.class_pasting import choose_donors
from gta_jax.ops.equalisation import (
  class_means,
  class_shares,
  equalised_cross_entropy,
  move_confidence,
  sampling_rates,
)
from gta_jax.ops.losses import SupervisedLoss
from gta_jax.training import config_rules
from tests import tiny
from tests.methods import kit
from tests.oracles import ael as oracle
from tests.oracles import ael_draws
from tests.oracles import linear_model_b as lm

K = tiny.CLASSES
RATE = 0.05
HYPER = {'rate': RATE, 'total_steps': 10}
CODE = {**HYPER, **oracle.RELEASED, 'threshold': 0.5, 'ohem': (0.3, 5)}


@functools.cache
def compiled(name='ael', *, network='linear', batch=4, ohem=None, accumulation=0, **options):
  """A method, its tools, its jitted step and its first state."""
  method = make_method(name, **options)
  network = {'linear': tiny.linear_network, 'conv': tiny.conv_network}[network]()
  tools = tiny.make_tools(
    network, rate=RATE, total_steps=10, batch=batch,
    loss=SupervisedLoss(ohem_threshold=ohem[0], ohem_min_kept=ohem[1]) if ohem else None,
    accumulation=Accumulation(accumulation))
  method.check(tools)
  stage, = method.stages(tools)
  return method, tools, jax.jit(stage.step), tiny.first_state(method, tools)


def step_on(setup, batches, state=None):
  state = setup[3] if state is None else state
  return setup[2](state, dict(zip(('labelled', 'unlabelled'), batches, strict=True)))


def make_draws(method):
  @kit.at_once
  def draw(key, labelled, labels, confidence):
    keys = jax.random.split(key, 7)
    uniform = [jax.random.uniform(k, labels.shape)
               for k in (jax.random.fold_in(keys[6], 0), keys[4])]
    return (method.paste(keys[0], labelled, confidence), method.cut(keys[2], labels, confidence),
            uniform)

  return draw


def randomness(draw, key, state, labelled, unlabelled):
  """The draws of the step, for the oracle, and the labelled batch after pasting."""
  n, *size = unlabelled['valid'].shape
  x = lm.pixels(unlabelled['image'], unlabelled['valid'])
  labels = lm.forward(state['networks']['teacher'], x).argmax(-1).reshape(n, *size)
  pasted, (donor, box), drawn = draw(
    key, labelled, np.int32(np.where(unlabelled['valid'], labels, lm.IGNORE)),
    np.float32(state['memory']['confidence']))
  assert (donor != np.arange(n)).all()
  uniform, of_labelled = (np.broadcast_to(x[:, None], (n, K, *size)) for x in drawn)
  return pasted, {
    'source': labelled, 'pasted': np.zeros(n, bool), 'pasted_classes': np.array([], int),
    'donor': {**{k: v[donor] for k, v in unlabelled.items()}},
    'boxes': np.array([kit.corners(b) for b in box]), 'uniform': uniform,
    'uniform_labelled': of_labelled}


@pytest.mark.parametrize('name, hyper, options', [
  ('ael', HYPER, {}),
  pytest.param('ael', HYPER, {'region': 'class_box', 'beta': 0.5}, marks=pytest.mark.slow),
  pytest.param('ael_released', CODE, {'threshold': 0.5}, marks=pytest.mark.slow),
])
def test_three_steps_agree_with_the_oracle(name, hyper, options):
  hyper = {**hyper, 'beta': options.get('beta', 1.0), 'confidence_decay': 0.9}
  expected, labelled, unlabelled, _ = oracle.make_problem(3, auxiliary=False, batch=4)
  setup = compiled(name, ohem=hyper.get('ohem'), confidence_decay=0.9, **options)
  method, tools, _, state = setup
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), expected['networks']['student'])
  variables = {'params': params, 'batch_stats': {key: {} for key in params}}
  state = tiny.first_state(method, tools, variables)
  expected['memory']['confidence'] = np.float64(state.memory['confidence'])
  draw = make_draws(method)
  for step in range(3):
    batch = {**unlabelled[step], 'index': np.arange(4)}
    pasted, draws = randomness(
      draw, jax.random.fold_in(state.key, step), expected, labelled[step], batch)
    assert (pasted['label'] != labelled[step]['label']).any()
    state, metrics = step_on(setup, (labelled[step], unlabelled[step]), state)
    expected, losses = oracle.step(expected, pasted, batch, **draws, hyper=hyper)
    for network, found in state.networks.items():
      kit.assert_close(found['params'], expected['networks'][network])
    kit.assert_close(state.memory['confidence'], expected['memory']['confidence'])
    for loss in losses.keys() - {'total'}:
      np.testing.assert_allclose(metrics[f'student_{loss}_loss'], losses[loss], rtol=1e-5)
  assert 0 < float(metrics['kept_share']) < 1


@pytest.mark.parametrize('pool', ['image', 'batch'])
def test_weights_and_confidences_are_the_oracles(pool):
  rng = np.random.default_rng(0)
  shape, pooled = (3, 4, 5), pool == 'batch'
  kappa, uniform = rng.uniform(0.3, 1, (2, *shape))
  logits, confidence = rng.normal(size=(*shape, K)), rng.random(K)
  labels = rng.integers(0, 2, shape)  # no class 2
  labels[0] = 0
  labels[rng.random(shape) < 0.2] = 255
  options = lm.settings(oracle.PAPER, {
    'threshold': 0.5, 'beta': 0.7, 'confidence_decay': 0.6, 'pooled_loss': pooled,
    'pooled_confidence': pooled})
  flat = [x.reshape(3, -1) for x in (kappa, logits.argmax(-1), labels != 255)]
  expected = oracle.weights(
    confidence, *flat[:2], np.broadcast_to(uniform.reshape(3, 1, -1), (3, K, 20)), flat[2],
    options).reshape(shape)

  @kit.at_once
  def run(logits, labels, kappa, uniform, confidence):
    shares = class_shares(labels, num_classes=K, pool=pool)
    moved = move_confidence(confidence, class_means(logits, labels, shares), shares, decay=0.6,
                            absent='zero' if pooled else 'stays')
    return equalised_cross_entropy(
      logits, labels, kappa, uniform, sampling_rates(confidence, beta=0.7), threshold=0.5,
      pool=pool, images=3), moved

  (loss, kept), moved = run(
    np.float32(logits), np.int32(labels), *map(np.float32, (kappa, uniform, confidence)))
  np.testing.assert_array_equal(kept, expected > 0)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  of_label = np.take_along_axis(log_p, np.where(labels == 255, 0, labels)[..., None], -1)[..., 0]
  np.testing.assert_allclose(loss, -(expected * of_label).sum(), rtol=1e-5)

  expected = oracle.update_confidence(
    confidence, lm.softmax(logits).reshape(3, -1, K), labels.reshape(3, -1), options)
  np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_classes_are_pasted_as_drawn():
  """Image i is grey i and holds every class once; where it changes, it shows the next one."""
  batch, confidence = 6000, np.array([1.0, 0.0, 0.75])
  label = np.tile(np.arange(K, dtype=np.uint8), (batch, 1, 1))
  label[:, 0, 0] = np.where(np.arange(batch) % 2, 0, 255)  # Void is never pasted.
  image = np.broadcast_to((np.arange(batch) % 200)[:, None, None, None], (*label.shape, 3))
  batches = {'image': image.astype(np.uint8), 'label': label}
  for tilt, allowed in (('linear', None), ('root', np.array([True, False, True]))):
    method = make_method('ael', pasted_classes=1, paste_tilt=tilt,
                         not_pasted=() if allowed is None else (1,))
    found = jax.jit(method.paste)(jax.random.key(0), batches, jnp.float32(confidence))
    changed = np.asarray(found['image'])[..., 0] != image[..., 0]
    np.testing.assert_array_equal(
      np.asarray(found['image'])[changed][:, 0], np.roll(image[..., 0], -1, axis=0)[changed])
    assert not changed[1::2, 0, 0].any()  # the next one is void there
    shares = changed[::2].mean(0)[0]
    expected = ael_draws.paste_probabilities(confidence, allowed, root=tilt == 'root')
    np.testing.assert_allclose(shares, 0.5 * expected, atol=0.03)


def test_pasting_is_the_oracles():
  labelled, _ = tiny.make_batches(0)
  method = make_method('ael', pasted_classes=9, paste_probability=1.0, not_pasted=(0, 2))
  found = method.paste(jax.random.key(0), labelled, jnp.zeros(K))
  source = {k: np.roll(v, -1, axis=0) for k, v in labelled.items()}
  expected = oracle.copy_paste(labelled, source, np.ones(4, bool), np.array([1]))
  for name in ('image', 'label'):
    np.testing.assert_array_equal(found[name], expected[name])
    assert found[name].dtype == labelled[name].dtype


def test_donors_hold_the_class_that_is_drawn():
  """Image i shows class i mod 3 alone, so that the donor tells the class."""
  batch, confidence = 1500, np.array([0.9, 0.1, 0.5])
  labels = jnp.broadcast_to((jnp.arange(batch) % K)[:, None, None], (batch, 4, 4))
  cut = jax.jit(make_method('ael').cut)
  donor, box = cut(jax.random.key(0), labels, jnp.float32(confidence))
  assert box.all() and not (donor == np.arange(batch)).any()
  shares = np.bincount(donor % K) / batch
  np.testing.assert_allclose(shares, ael_draws.cut_probabilities(confidence), atol=0.04)


def test_an_image_is_not_its_own_donor():
  for seed in range(10):
    found = choose_donors(jax.random.key(seed), jnp.ones((2, K), bool), jnp.array([0, 1]))
    assert found.tolist() == [1, 0]
    holds = jnp.zeros((3, K), bool).at[0, 1].set(True)
    found = choose_donors(jax.random.key(seed), holds, jnp.array([1, 1, 0]))
    assert found[0] in (1, 2) and found[1] == 0 and found[2] in (0, 1)


def test_without_the_class_any_other_image_and_half_a_box():
  labels = jnp.full((300, 8, 10), 255)
  donor, box = jax.jit(make_method('ael').cut)(jax.random.key(0), labels, jnp.zeros(K))
  assert not (donor == np.arange(300)).any() and len(set(donor.tolist())) > 100
  areas = np.asarray(box).mean((1, 2))
  assert abs(areas.mean() - 0.5) < 0.02 and areas.min() > 0.35 and areas.max() < 0.65
  for one in np.asarray(box):
    top, left, bottom, right = kit.corners(one)
    assert one.sum() == (bottom - top) * (right - left)
  heights = np.asarray(box).any(2).sum(1)
  assert heights.min() == 4 and heights.max() == 8
  assert np.asarray(box).mean(0).min() > 0.05  # everywhere


def test_equal_confidences_keep_every_pixel_and_the_worst_class_is_always_kept():
  """Invariants (b) and (c)."""
  assert sampling_rates(jnp.array([0.3, 0.3]), beta=2.0).tolist() == [1, 1]
  assert sampling_rates(jnp.ones(2), beta=1.0).tolist() == [1, 1]
  np.testing.assert_allclose(
    sampling_rates(jnp.array([0.2, 0.6, 1.0]), beta=2.0), [1, 0.25, 0], rtol=1e-6)
  setup = compiled()
  state = setup[3].replace(memory={'confidence': jnp.full(K, 0.5)})
  batches = tiny.make_batches(0)
  frozen = compiled(confidence_decay=1.0)
  _, metrics = step_on(frozen, batches, state)
  valid = batches[1]['valid'].mean()
  assert float(metrics['kept_share']) == pytest.approx(valid)
  np.testing.assert_allclose(np.sum(metrics['kept_share_by_class']), 1, rtol=1e-6)


@pytest.mark.parametrize('data_set', ['voc', 'cityscapes'])
def test_published_fields_are_known_to_the_configs(data_set):
  config = {'voc': voc, 'cityscapes': cityscapes}[data_set].get_config('method=ael')
  fields = config_rules.complete(config)
  assert fields.optim.rate == 0.00125 and fields.train.unlabelled_batch == 8
  assert fields.method.pasted_classes == {'voc': 1, 'cityscapes': 3}[data_set]


def test_the_first_step_copies_the_student():
  """Invariant (a), bit for bit; the teacher's statistics come from its own passes."""
  setup = compiled(network='conv')
  state, _ = step_on(setup, tiny.make_batches(0))
  jax.tree.map(np.testing.assert_array_equal, state.networks['teacher']['params'],
               state.networks['student']['params'])
  moved = state.networks['teacher']['batch_stats']['backbone']['mean']
  for other in (state.networks['student'], setup[3].networks['teacher']):
    assert (moved != other['batch_stats']['backbone']['mean']).any()


@pytest.mark.slow
def test_cut_batches_are_the_whole_batch():
  batches = tiny.make_batches(0)
  (whole, _), (cut, _) = (step_on(compiled(accumulation=n), batches) for n in (0, 2))
  kit.assert_close(kit.plain(whole), kit.plain(cut))


@pytest.mark.parametrize('options, message', [
  ({'batch': 1}, 'use at least 2'),
  ({'not_pasted': (7,)}, 'none of the 3 classes'),
  ({'not_pasted': (0, 1, 2)}, 'holds every class'),
  ({'accumulation': 2, 'labelled_term': True}, 'does not go together'),
  ({'batch_norm': 'joint'}, 'use own'),
  ({'accumulation': 2, 'loss_pool': 'batch'}, 'does not go together'),
])
def test_what_does_not_fit_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    compiled(**options)


def test_where_nothing_is_pasted_nothing_is_needed_for_it():
  tools = tiny.make_tools(tiny.linear_network(), batch=1)
  method = make_method('ael', paste_probability=0.0, not_pasted=(0, 1, 2))
  method.check(tools._replace(unlabelled_batch=2))
  with pytest.raises(ValueError, match='unlabelled_batch=1 has no second image to cut from'):
    method.check(tools)


def test_the_teacher_sees_labelled_images_first():
  setup = _, tools, _, before = compiled('ael_released', network='conv', paste_probability=0.0)
  labelled, unlabelled = tiny.make_batches(0)
  state, _ = step_on(setup, (labelled, unlabelled))
  expected = before.networks['teacher']
  for images in (tools.network.normalize(labelled['image']),
                 unlabelled_images(tools, unlabelled)):
    _, stats = tools.network.apply(expected, images, train=True)
    expected = {**expected, 'batch_stats': stats}
  kit.assert_close(state.networks['teacher']['batch_stats'], expected['batch_stats'])
