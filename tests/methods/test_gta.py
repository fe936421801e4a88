"""Invariants of one step, for GTA, its ablations and what it is compared with, in both recipes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.methods.gta import Gta
from gta_jax.methods.pseudo_labelling import _by_group, teach
from gta_jax.methods.registry import METHODS, make_method, option_names
from gta_jax.methods.supervised import Supervised
from gta_jax.ops import trees
from tests import tiny

WARMUP = 1


class Setup:
  """A state in which all three networks and both momenta differ, and the steps to take."""

  def __init__(self, name, recipe='paper', *, network=None, rate=0.05, **options):
    self.network = network or tiny.conv_network()
    self.method = make_method(name, recipe=recipe, **options)
    self.tools = tiny.make_tools(self.network, rate=rate, batch=6)
    self.method.check(self.tools)
    steps = tiny.make_steps(self.method, self.tools)
    self.warmup, self.handover, self.step = map(steps.get, ('warmup', 'handover', 'main'))
    state = tiny.first_state(self.method, self.tools)
    key = state.key
    state = perturbed(state.replace(key=None), seed=2).replace(key=key, step=jnp.int32(WARMUP + 3))
    if shared := getattr(self.method, 'shared', ()):
      student, assistant = state.networks['student'], state.networks['assistant']
      part = trees.copy(trees.select(student['params'], shared))
      params = trees.replace(assistant['params'], part)
      state = state.with_networks(assistant={**assistant, 'params': params})
    self.state = state

  @property
  def student(self):
    return self.state.networks['student']


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
DISTINCT = [name for name, named in METHODS.items() if issubclass(named.kind, Supervised)
            and named.kind.__module__.endswith(('gta', 'mean_teacher', 'supervised'))
            and not name.startswith(('gta_alpha', 'gta_warmup')) and name != 'ema_encoder']
every_method = pytest.mark.parametrize('name', DISTINCT)
every_recipe = pytest.mark.parametrize('recipe', ['paper', 'released'])


@functools.cache
def setup(name, recipe='paper'):
  return Setup(name, recipe)


@functools.cache
def pixelwise(name):
  """A model without neighbours or statistics, and no mixing."""
  mixing = {'mixing': 'none'} if 'mixing' in option_names(name) else {}
  return Setup(name, network=tiny.linear_network(), **mixing)


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
  for run in (s.warmup, s.step, *((s.handover,) if s.handover and name == 'gta' else ())):
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
    s.state.networks['teacher']['params'], after.networks['student']['params'])
  assert_close(after.networks['teacher']['params'], expected)
  assert differs(after.networks['teacher']['params'], s.state.networks['teacher']['params'])


@pytest.mark.parametrize('name', [n for n in DISTINCT if METHODS[n].kind is Gta])
def test_frozen_student_receives_features_and_nothing_else(name):
  """With the student's rate at 0 its features are exactly the EMA, its classifier is untouched."""
  s = pixelwise(name)
  still = tiny.make_tools(s.network, rate=0.0, batch=6).make_optimizer()

  class Frozen(Gta):
    def optimizers(self, tools):
      return {**super().optimizers(tools), 'student': still}

  options = {f.name: getattr(s.method, f.name) for f in dataclasses.fields(s.method)}
  step = tiny.make_steps(Frozen(**options), s.tools)['main']
  after, metrics = step(s.state, *tiny.make_batches(9, batch=6))
  old, new = s.student['params'], after.networks['student']['params']
  decay = float(metrics['transmission_decay'])
  for key, part in new.items():
    if key in s.method.transmitted_keys(new):
      expected = jax.tree.map(
        lambda a, b: np.float32(decay) * a + (1 - np.float32(decay)) * b,
        old[key], after.networks['assistant']['params'][key])
      assert_close(part, expected, rtol=1e-6)
      assert differs(part, old[key])
    elif key in s.method.shared:
      assert_equal(part, after.networks['assistant']['params'][key])
    else:
      assert_equal(part, old[key])


def classifier_update(s, unlabelled_seed):
  labelled, _ = tiny.make_batches(9, batch=6)
  _, unlabelled = tiny.make_batches(unlabelled_seed, batch=6)
  # alpha = 1 closes the way through the features, so what is left is the mask predictor's own.
  after, _ = s.step(s.state, labelled, unlabelled)
  return after.networks['student']['params']['classifier']


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
  one, two = (state.networks for state in after)
  assert differs(one['student']['params'], two['student']['params'])
  for key in keys:
    assert_equal(one['assistant']['params'][key], two['assistant']['params'][key])


def test_teacher_has_no_optimiser_and_no_gradient():
  """A teacher at decay 1 stays as it is, bit for bit, whatever it is shown."""
  s = Setup('gta', teacher_decay=1.0)
  after, _ = s.step(s.state, *tiny.make_batches(9, batch=6))
  assert_equal(after.networks['teacher'], s.state.networks['teacher'])
  assert set(s.state.optimizers) == {'student', 'assistant'}


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
  state = tiny.first_state(s.method, s.tools)

  def pointers(state):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(plain(state))]

  assert len(set(pointers(state))) == len(pointers(state))
  warmup = tiny.make_steps(s.method, s.tools, donate_argnums=0)['warmup']
  after, _ = warmup(state, *tiny.make_batches(0, batch=6))
  assert len(set(pointers(after))) == len(pointers(after))
  assert state.networks['student']['params']['backbone']['kernel'].is_deleted()


def test_warm_up_trains_three_equal_networks():
  s = Setup('gta')
  after, _ = s.warmup(s.state.replace(step=jnp.int32(0)), *tiny.make_batches(0))
  for name in ('teacher', 'assistant'):
    assert_equal(after.networks[name], after.networks['student'])
  assert_equal(*after.optimizers.values())


def test_released_warm_up_moves_only_the_followers_statistics():
  s = Setup('gta', 'released')
  after, _ = s.warmup(s.state, *tiny.make_batches(0, batch=6))
  for name in ('teacher', 'assistant'):
    assert_equal(after.networks[name]['params'], s.state.networks[name]['params'])
    assert differs(after.networks[name]['batch_stats'], s.state.networks[name]['batch_stats'])
  assert_equal(after.optimizers['assistant'], s.state.optimizers['assistant'])


def test_hand_over_starts_from_the_student():
  """With every rate at 0, a hand-over step leaves three copies of the student."""
  s = Setup('gta', 'released', rate=0.0)
  networks = s.state.networks
  scrambled = jax.tree.map(lambda x: x + 1, networks['teacher']['params'])
  state = s.state.replace(step=jnp.int32(WARMUP)).with_networks(
    **{name: {**networks[name], 'params': scrambled} for name in ('teacher', 'assistant')})
  after, _ = s.handover(state, *tiny.make_batches(0, batch=6))
  for variables in after.networks.values():
    assert_close(variables['params'], s.student['params'])


def test_shared_mask_predictor_is_one():
  s = setup('gta', 'released')
  after, _ = s.step(s.state, *tiny.make_batches(9, batch=6))
  student, assistant = (after.networks[name]['params'] for name in ('student', 'assistant'))
  assert_equal(student['classifier'], assistant['classifier'])
  assert differs(student['backbone'], assistant['backbone'])


def test_joint_batch_norm_sees_both_kinds_of_images():
  labelled, unlabelled = tiny.make_batches(9, batch=6)
  _, other = tiny.make_batches(10, batch=6)
  for batch_norm, sees in (('own', False), ('joint', True)):
    # Without transmission the statistics are the only way from unlabelled images to the student.
    s = Setup('gta', batch_norm=batch_norm, transmission_decay=1.0)
    after = [s.step(s.state, labelled, x)[0].networks['student'] for x in (unlabelled, other)]
    after = [student['batch_stats'] for student in after]
    assert differs(*after) == sees


@pytest.mark.parametrize('rate', ['poly', 'constant'])
def test_the_assistants_rate_is_that_of_the_runs_step(rate):
  """Also after a warm-up in which it has not learnt: the log shows what moves the parameters."""
  s = Setup('gta', 'released', assistant_rate=rate, shared=(), transmission_decay=1.0)
  state = s.state.replace(step=jnp.int32(10))
  after, metrics = s.step(state, *tiny.make_batches(0, batch=6))
  expected = 0.05 * (0.5 ** 0.9 if rate == 'poly' else 1.0)
  assert float(metrics['assistant_rate']) == pytest.approx(expected, rel=1e-6)
  # theta' = theta - rate v, with v the momentum buffer after the step.
  momentum = next(x for x in jax.tree.leaves(
    after.optimizers['assistant'], is_leaf=lambda x: isinstance(x, dict)) if isinstance(x, dict))
  moved = jax.tree.map(
    lambda old, new: old - new, *(x.networks['assistant']['params']['backbone']
                                  for x in (state, after)))
  assert_close(moved, jax.tree.map(lambda v: expected * v, momentum['backbone']), rtol=1e-4)


def test_thresholds_of_groups_drop_the_same_share_of_each():
  s = Setup('gta', threshold_images=2, mixing='none')
  labelled, unlabelled = tiny.make_batches(9, batch=6)
  _, metrics = s.step(s.state, labelled, unlabelled)
  valid = unlabelled['valid'][:2].sum()
  kept = 3 * (valid - int(0.2 * valid))
  assert float(metrics['kept_share']) == pytest.approx(kept / unlabelled['valid'].size, abs=1e-6)
  four = make_method(threshold_images=4)
  assert four.check(s.tools) == (
    'method.threshold_images=4 does not divide the batch of 6; groups of 3 are used',)


def test_classmix_masks_know_nothing_of_the_threshold():
  """What is dropped is dropped after mixing: a kept class has no holes from the next image."""
  seen = {}
  for share in (0.0, 0.5):
    s = Setup('gta', mixing='classmix', mixing_probability=1.0, drop_fraction=share)
    labelled, unlabelled = tiny.make_batches(9, batch=6)
    said = teach(s.tools, s.method, s.state.networks['teacher'], None, unlabelled, s.state.key,
                 joint=False, own_statistics=False)
    seen[share] = said.term.images, float(said.metrics['kept_share'])
  assert_equal(seen[0.0][0], seen[0.5][0])
  assert seen[0.5][1] < 0.7 < seen[0.0][1]


@pytest.mark.parametrize('name', ['sup_only', 'cutmix', 'gta'])
def test_released_networks_start_with_weights_of_their_own(name):
  for recipe, alike in (('paper', True), ('released', False)):
    networks = tiny.first_state(setup(name, recipe).method, setup(name, recipe).tools).networks
    kernels = [variables['params']['backbone']['kernel'] for variables in networks.values()]
    assert all(differs(kernels[0], other) != alike for other in kernels[1:])


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

  def encode(*args, **kwargs):
    traces.append(1)
    return network.encode(*args, **kwargs)

  s = Setup('gta', network=dataclasses.replace(network, encode=encode))
  for i in range(4):
    s.state, _ = s.step(s.state, *tiny.make_batches(i, batch=6))
  assert len(traces) == 3  # one pass of each network


def test_a_whole_batch_is_no_group_of_an_axis_more():
  """With such an axis XLA gathers for CutMix what is kept of the whole batch on every GPU."""
  pixels = jnp.zeros((4, 2, 3))
  assert _by_group(Gta(threshold_images=0), jnp.shape, pixels) == (4, 2, 3)
  groups = _by_group(Gta(threshold_images=2), lambda x: x + x.mean(), pixels)
  assert groups.shape == (2, 2, 2, 3)
