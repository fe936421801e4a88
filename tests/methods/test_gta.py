"""Invariants of one step, for every method by name and both recipes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.methods.gta import make_train_step, make_warmup_step
from gta_jax.methods.options import METHODS, make_method
from gta_jax.methods.state import init_state, make_optimizers
from gta_jax.ops import trees
from tests import tiny

WARMUP = 1


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  """Dozens of tiny programs are compiled here: halves the time, changes no mathematics."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


class Setup:
  """A state in which all three networks and both momenta differ, and the steps to take."""

  def __init__(self, name, recipe='paper', *, network=None, rate=0.05, **options):
    self.network = network or tiny.conv_network()
    self.method = make_method(name, recipe=recipe, **options)
    self.optimizers = make_optimizers(self.method, rate=rate, total_steps=20)
    self.warmup = jax.jit(make_warmup_step(self.network, self.method, self.optimizers))
    self.step = jax.jit(make_train_step(
      self.network, self.method, self.optimizers, warmup_steps=WARMUP,
      handover_steps=1 if self.method.handover_epochs else 0))
    key = jax.random.key(1)
    variables = self.network.init(key, tiny.SIZE)
    state = init_state(key, variables, self.method, self.optimizers)
    state = perturbed(state.replace(key=None), seed=2).replace(key=key, step=jnp.int32(WARMUP + 3))
    if self.method.shared:
      shared = trees.select(state.student['params'], self.method.shared)
      params = trees.replace(state.assistant['params'], trees.copy(shared))
      state = state.replace(assistant={**state.assistant, 'params': params})
    self.state = state


def perturbed(tree, seed):
  """Every float leaf with positive noise of its own."""
  leaves, structure = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)
  noisy = [
    leaf + rng.uniform(0, 0.1, leaf.shape).astype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    for leaf in leaves
  ]
  return jax.tree.unflatten(structure, noisy)


# Methods that differ in no more than a number are one program; one of them stands for all.
DISTINCT = [name for name in METHODS if not name.startswith(('gta_alpha', 'gta_warmup'))
            and name != 'ema_encoder']
every_method = pytest.mark.parametrize('name', DISTINCT)
every_recipe = pytest.mark.parametrize('recipe', ['paper', 'released'])


@functools.cache
def setup(name, recipe='paper'):
  return Setup(name, recipe)


@functools.cache
def pixelwise(name):
  """A model without neighbours or statistics, and no mixing."""
  return Setup(name, network=tiny.linear_network(), mixing='none')


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def plain(state):
  """The state with its key as numbers, for comparisons."""
  return state.replace(key=jax.random.key_data(state.key))


def differs(a, b):
  return any(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.any(x != y)), a, b)))


@every_recipe
@every_method
def test_structure_shapes_and_dtypes_are_kept(name, recipe):
  s = setup(name, recipe)
  for run in (s.warmup, s.step):
    after, metrics = run(s.state, *tiny.make_batches(9, batch=6))
    assert jax.tree.structure(after) == jax.tree.structure(s.state)
    for new, old in zip(*map(jax.tree.leaves, (after, s.state)), strict=True):
      assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert all(np.all(np.isfinite(v)) for v in metrics.values())
    assert int(after.step) == int(s.state.step) + 1


@every_recipe
@every_method
def test_teacher_follows_the_updated_student_leaf_by_leaf(name, recipe):
  s = setup(name, recipe)
  after, metrics = s.step(s.state, *tiny.make_batches(9, batch=6))
  decay = float(metrics['teacher_decay'])
  assert 0 <= decay < 1
  expected = jax.tree.map(
    lambda old, new: decay * old + (1 - decay) * new,
    s.state.teacher['params'], after.student['params'])
  assert_close(after.teacher['params'], expected)
  assert differs(after.teacher['params'], s.state.teacher['params'])


@every_method
def test_frozen_student_receives_features_and_nothing_else(name):
  """With the student's rate at 0 its features are exactly the EMA, its classifier is untouched."""
  s = pixelwise(name)
  frozen = s.optimizers._replace(
    student=make_optimizers(s.method, rate=0.0, total_steps=20).student)
  step = jax.jit(make_train_step(s.network, s.method, frozen, warmup_steps=WARMUP))
  after, metrics = step(s.state, *tiny.make_batches(9, batch=6))
  old, new = s.state.student['params'], after.student['params']
  decay = float(metrics['transmission_decay'])
  for key, part in new.items():
    if key in s.method.transmitted_keys(new):
      expected = jax.tree.map(
        lambda a, b: np.float32(decay) * a + (1 - np.float32(decay)) * b,
        old[key], after.assistant['params'][key])
      assert_close(part, expected, rtol=1e-6)
      assert differs(part, old[key])
    elif key in s.method.shared:
      assert_equal(part, after.assistant['params'][key])
    else:
      assert_equal(part, old[key])


def classifier_update(s, unlabelled_seed):
  labelled, _ = tiny.make_batches(9, batch=6)
  _, unlabelled = tiny.make_batches(unlabelled_seed, batch=6)
  # alpha = 1 closes the way through the features, so what is left is the mask predictor's own.
  after, _ = s.step(s.state, labelled, unlabelled)
  return after.student['params']['classifier']


@pytest.mark.parametrize('recipe, moves', [('paper', False), ('released', True)])
def test_pseudo_labels_reach_the_mask_predictor_only_as_released(recipe, moves):
  options = {'transmission_decay': 1.0, 'ema_ramp': False, 'batch_norm': 'own'}
  s = Setup('gta', recipe, **options)
  assert differs(classifier_update(s, 10), classifier_update(s, 11)) == moves


@every_recipe
def test_labelled_masks_never_reach_the_assistant(recipe):
  s = Setup('gta', recipe)
  labelled, unlabelled = tiny.make_batches(9, batch=6)
  other = {**labelled, 'label': (labelled['label'] + 1) % tiny.CLASSES}
  keys = [k for k in ('backbone', 'decoder', 'classifier') if k not in s.method.shared]
  after = [s.step(s.state, x, unlabelled)[0] for x in (labelled, other)]
  assert differs(after[0].student['params'], after[1].student['params'])
  for key in keys:
    assert_equal(after[0].assistant['params'][key], after[1].assistant['params'][key])


def test_teacher_has_no_optimiser_and_no_gradient():
  """A teacher at decay 1 stays as it is, bit for bit, whatever it is shown."""
  s = Setup('gta', teacher_decay=1.0)
  after, _ = s.step(s.state, *tiny.make_batches(9, batch=6))
  assert_equal(after.teacher, s.state.teacher)
  assert {'student_opt', 'assistant_opt'} == {k for k in vars(s.state) if k.endswith('opt')}


@every_recipe
@every_method
def test_void_and_padding_have_no_influence(name, recipe):
  """Unlabelled padding may hold any value; so may a void pixel's image in a pixel-wise model."""
  rng = np.random.default_rng(0)
  s = setup(name, recipe)
  labelled, unlabelled = tiny.make_batches(9, batch=6)
  padding = ~unlabelled['valid'][..., None]
  noise = rng.integers(0, 256, unlabelled['image'].shape, dtype=np.uint8)
  other = {**unlabelled, 'image': np.where(padding, noise, unlabelled['image'])}
  assert differs(other, unlabelled)
  runs = [s.step(s.state, labelled, x)[0] for x in (unlabelled, other)]
  assert_equal(plain(runs[0]), plain(runs[1]))


@every_method
def test_void_pixels_have_no_influence_in_a_pixelwise_model(name):
  rng = np.random.default_rng(0)
  s = pixelwise(name)
  labelled, unlabelled = tiny.make_batches(9, batch=6)
  void = (labelled['label'] == 255)[..., None]
  noise = rng.integers(0, 256, labelled['image'].shape, dtype=np.uint8)
  other = {**labelled, 'image': np.where(void, noise, labelled['image'])}
  runs = [s.step(s.state, x, unlabelled)[0] for x in (labelled, other)]
  assert_equal(plain(runs[0]), plain(runs[1]))


@every_method
def test_order_within_a_batch_does_not_matter_without_mixing(name):
  s = pixelwise(name)
  labelled, unlabelled = tiny.make_batches(9, batch=6)
  order = np.array([3, 1, 5, 0, 2, 4])
  shuffled = [{k: v[order] for k, v in batch.items()} for batch in (labelled, unlabelled)]
  straight, _ = s.step(s.state, labelled, unlabelled)
  mixed, _ = s.step(s.state, *shuffled)
  assert_close(plain(straight), plain(mixed))


@every_recipe
@every_method
def test_no_two_leaves_share_a_buffer_and_the_state_is_donated(name, recipe):
  s = setup(name, recipe)
  state = init_state(jax.random.key(0), s.network.init(jax.random.key(0), tiny.SIZE), s.method,
                     s.optimizers)

  def pointers(state):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(plain(state))]

  assert len(set(pointers(state))) == len(pointers(state))
  warmup = jax.jit(make_warmup_step(s.network, s.method, s.optimizers), donate_argnums=0)
  after, _ = warmup(state, *tiny.make_batches(0, batch=6))
  assert len(set(pointers(after))) == len(pointers(after))
  assert state.student['params']['backbone']['kernel'].is_deleted()


def test_warm_up_trains_three_equal_networks():
  s = Setup('gta')
  after, _ = s.warmup(s.state.replace(step=jnp.int32(0)), *tiny.make_batches(0))
  assert_equal(after.teacher, after.student)
  assert_equal(after.assistant, after.student)
  assert_equal(after.assistant_opt, after.student_opt)


def test_released_warm_up_moves_only_the_followers_statistics():
  s = Setup('gta', 'released')
  after, _ = s.warmup(s.state, *tiny.make_batches(0, batch=6))
  for name in ('teacher', 'assistant'):
    assert_equal(after.networks[name]['params'], s.state.networks[name]['params'])
    assert differs(after.networks[name]['batch_stats'], s.state.networks[name]['batch_stats'])
  assert_equal(after.assistant_opt, s.state.assistant_opt)


def test_hand_over_starts_from_the_student():
  """With every rate at 0, a hand-over step leaves three copies of the student."""
  s = Setup('gta', 'released', rate=0.0)
  scrambled = jax.tree.map(lambda x: x + 1, s.state.teacher['params'])
  state = s.state.replace(
    step=jnp.int32(WARMUP), teacher={**s.state.teacher, 'params': scrambled},
    assistant={**s.state.assistant, 'params': scrambled})
  after, _ = s.step(state, *tiny.make_batches(0, batch=6))
  for variables in after.networks.values():
    assert_close(variables['params'], state.student['params'])


def test_shared_mask_predictor_is_one():
  s = setup('gta', 'released')
  assert_equal(s.state.student['params']['classifier'], s.state.assistant['params']['classifier'])
  assert differs(s.state.student['params']['backbone'], s.state.assistant['params']['backbone'])


def test_joint_batch_norm_sees_both_kinds_of_images():
  labelled, unlabelled = tiny.make_batches(9, batch=6)
  _, other = tiny.make_batches(10, batch=6)
  for batch_norm, sees in (('own', False), ('joint', True)):
    # Without transmission the statistics are the only way from unlabelled images to the student.
    s = Setup('gta', batch_norm=batch_norm, transmission_decay=1.0)
    after = [s.step(s.state, labelled, x)[0].student['batch_stats'] for x in (unlabelled, other)]
    assert differs(*after) == sees


def test_constant_assistant_rate():
  rates = {}
  for rate in ('poly', 'constant'):
    s = Setup('gta', assistant_rate=rate)
    _, metrics = s.step(s.state, *tiny.make_batches(0, batch=6))
    rates[rate] = float(metrics['assistant_rate']), float(metrics['student_rate'])
  assert rates['poly'][0] == rates['poly'][1] < rates['constant'][0] == np.float32(0.05)


def test_thresholds_of_groups_drop_the_same_share_of_each():
  s = Setup('gta', threshold_images=2, mixing='none')
  labelled, unlabelled = tiny.make_batches(9, batch=6)
  _, metrics = s.step(s.state, labelled, unlabelled)
  valid = unlabelled['valid'][:2].sum()
  kept = 3 * (valid - int(0.2 * valid))
  assert float(metrics['kept_share']) == pytest.approx(kept / unlabelled['valid'].size, abs=1e-6)
  with pytest.raises(ValueError, match='does not split a batch of 6'):
    four = Setup('gta', threshold_images=4)
    four.step(four.state, labelled, unlabelled)


def test_oracle_labels_are_only_measured():
  s = setup('gta')
  labelled, unlabelled = tiny.make_batches(9, batch=6)
  masks = np.random.default_rng(0).integers(0, tiny.CLASSES, unlabelled['valid'].shape)
  without, _ = s.step(s.state, labelled, unlabelled)
  with_masks, metrics = s.step(s.state, labelled, {**unlabelled, 'label': masks.astype(np.uint8)})
  assert_equal(plain(without), plain(with_masks))
  assert 0 < float(metrics['oracle_accuracy']) < 1


def test_a_step_is_traced_once():
  traces = []
  network = tiny.conv_network()

  def apply(*args, **kwargs):
    traces.append(1)
    return tiny.conv_network().apply(*args, **kwargs)

  s = Setup('gta', network=type(network)(network.init, apply))
  for i in range(4):
    s.state, _ = s.step(s.state, *tiny.make_batches(i, batch=6))
  assert len(traces) == 3  # one pass of each network
