"""Warm-up, hand-over and the options of GTA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.methods.gta import Gta
from gta_jax.methods.pseudo_labelling import _by_group, teach
from gta_jax.methods.registry import make_method
from gta_jax.ops.losses import SupervisedLoss
from gta_jax.training.not_finite import skip_not_finite
from tests import tiny
from tests.methods import kit
from tests.methods.gta_setup import WARMUP, Setup, setup
from tests.methods.kit import assert_close, assert_equal, differs, plain


def test_options_that_would_have_no_sense_or_effect_are_refused_or_said():
  tools = tiny.make_tools(tiny.linear_network(), batch=7)
  note, = (text for text in make_method('cutmix', mixing_images=3).check(tools)
           if 'mixed with itself' in text)
  assert note.startswith('train.unlabelled_batch=7 in groups of 1 leaves no other')
  with pytest.raises(ValueError, match='initial_networks=own without a warm-up or hand-over'):
    make_method('gta', initial_networks='own', warmup_epochs=0.0).check(tools)
  for epochs in ({'handover_epochs': 1.0}, {'warmup_epochs': 0.3}):  # less than a step as yet
    make_method('gta', initial_networks='own', **{'warmup_epochs': 0.0, **epochs}).check(tools)
  hard = tools._replace(loss=SupervisedLoss(ohem_threshold=0.7))
  assert any('method.labelled_images=7 has no effect' in text
             for text in make_method('gta', labelled_images=7).check(hard))
  for name in ('unimatch_v2', 'fixmatch', 'corrmatch'):
    one = tools._replace(unlabelled_batch=1)
    said = [any('mixed with itself' in text for text in make_method(
      name, box_probability=share).check(one)) for share in (0.5, 0.0)]
    assert said == [True, False]


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


def test_a_skipped_step_of_the_hand_over_leaves_the_others_handed_over():
  s = Setup('gta', warmup='student')
  stage, = (stage for stage in s.method.stages(s.tools) if stage.name == 'handover')
  assert stage.steps == 1
  labelled, unlabelled = tiny.make_batches(0, batch=6)

  def not_finite(state, batches):
    after, metrics = stage.step(state, batches)
    return after, metrics | {'student_labelled_loss': jnp.float32(jnp.nan)}

  after, metrics = jax.jit(skip_not_finite(not_finite))(
    stage.enter(s.state), {'labelled': labelled, 'unlabelled': unlabelled})
  assert metrics['skipped_steps'] == 1
  for variables in after.networks.values():
    assert_equal(variables['params'], s.student['params'])


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


def taught(s, unlabelled):
  """Images and labels that the assistant learns from, and what is measured."""
  @kit.at_once
  def run(teacher, unlabelled, key):
    said = teach(s.tools, s.method, teacher, None, unlabelled, key, joint=False,
                 own_statistics=False)
    return said.term.images, said.term.targets[0], said.metrics

  return run(s.state.networks['teacher'], unlabelled, s.state.key)


def test_classmix_masks_know_nothing_of_the_threshold():
  """What is dropped is dropped after mixing: a kept class has no holes from the next image."""
  seen = {}
  for share in (0.0, 0.5):
    s = Setup('gta', mixing='classmix', mixing_probability=1.0, drop_fraction=share)
    labelled, unlabelled = tiny.make_batches(9, batch=6)
    images, _, metrics = taught(s, unlabelled)
    seen[share] = images, float(metrics['kept_share'])
  assert_equal(seen[0.0][0], seen[0.5][0])
  assert seen[0.5][1] < 0.7 < seen[0.0][1]


@pytest.mark.parametrize('mixing', ['cutmix', 'cutout'])
def test_padding_and_what_is_cut_out_stay_blank_whatever_the_colours(mixing):
  s = Setup('gta', mixing=mixing, mixing_probability=1.0, jitter=1.0, greyscale=1.0, blur=1.0)
  labelled, unlabelled = tiny.make_batches(9, batch=6)
  images, labels, _ = taught(s, unlabelled)
  counts, blank = labels != 255, ~images.any(-1)
  assert blank.any() and not (blank & counts).any()
  if mixing == 'cutmix':
    assert blank.sum() >= (~unlabelled['valid']).sum() // 2


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
  assert_close(plain(without), plain(with_masks))  # Two programs may round apart.
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
