"""Invariants of one step, for GTA, its ablations and what it is compared with, in both recipes."""

import dataclasses

import jax
import numpy as np
import pytest

from gta_jax.methods.gta import Gta
from gta_jax.methods.registry import METHODS
from tests import tiny
from tests.methods.gta_setup import (
  DISTINCT,
  Setup,
  every_method,
  every_recipe,
  pixelwise,
  setup,
)
from tests.methods.kit import assert_close, assert_equal, differs, plain


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
