"""Soft consistency, plain and on mixed images, against its oracles and invariants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.cutmix_consistency import CutMixConsistency
from gta_jax.methods.mean_teacher_consistency import MeanTeacherConsistency
from gta_jax.methods.registry import make_method
from gta_jax.ops.losses import squared_error
from gta_jax.ops.mixing import xor_boxes
from tests import tiny
from tests.methods import kit
from tests.oracles import cutmix_consistency as oracle_cutmix
from tests.oracles import linear_model as lm
from tests.oracles import mean_teacher_consistency as oracle

NAMES = ('student', 'teacher')


def setup(method, *, batch=2, equal=False):
  networks, labelled, unlabelled = lm.make_problem(0, names=NAMES, batch=batch)
  if equal:
    networks['teacher'] = networks['student']
  tools = tiny.make_tools(tiny.linear_network(), batch=batch, size=(4, 5))
  return networks, labelled, unlabelled, tools, kit.state_of(method, tools, networks)


def hyper(method, **options):
  ramp = method.ramp_epochs  # an epoch is a step here
  return {
    'rate': lm.poly(0.05, 20), 'momentum': 0.9, 'weight_decay': 1e-4,
    'consistency_weight': lambda k: method.consistency_weight * (
      np.exp(-5 * (1 - min(k / ramp, 1)) ** 2) if ramp else 1),
    'ema_decay': (oracle.ramped if method.ema_ramp else lambda decay: lambda _: decay)(
      method.teacher_decay), **options}


@pytest.mark.parametrize('name, options', [
  # The published weight of 100 makes 1e-4 of float32's rounding within three steps.
  ('mean_teacher_consistency', {'consistency_weight': 5.0}),
  ('mean_teacher_consistency_released', {'consistency_weight': 5.0}),
  ('mean_teacher_consistency', {
    'consistency_on': 'unlabelled', 'consistency_of': 'logits', 'consistency_weight': 1.0,
    'ramp_epochs': 4.0, 'ema_ramp': True, 'batch_norm': 'joint'})])
def test_three_steps_agree_with_the_oracle(name, options):
  method = make_method(name, **options)
  networks, labelled, unlabelled, tools, state = setup(method, equal=method.average == 'before')
  expected = lm.initial_state(networks, ('student',))
  of_oracle = hyper(method, **{option: getattr(method, option) for option in (
    'average', 'consistency_on', 'consistency_of', 'labelled_void')})
  step = jax.jit(method.step(tools))
  for k in range(kit.STEPS):
    expected, losses = oracle.step(expected, labelled[k], unlabelled[k], hyper=of_oracle)
    state, metrics = step(state, kit.batches(labelled[k], unlabelled[k]))
    kit.assert_networks(state, expected['networks'])
    found = metrics['student_consistency_loss'] + metrics['student_consistency_labelled_loss']
    np.testing.assert_allclose(
      found, of_oracle['consistency_weight'](k) * losses['consistency'], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('options', [
  {}, {'confidence_on': 'all', 'reduction': 'sum'}, {'partner': 'half'}])
def test_three_steps_on_mixed_images_agree_with_the_oracle(options):
  method = CutMixConsistency(threshold=0.6, **options)
  networks, labelled, unlabelled, tools, state = setup(method, batch=4)
  expected = lm.initial_state(networks, ('student',))
  of_oracle = hyper(method, threshold=0.6, confidence_on=method.confidence_on,
                    reduction=method.reduction)
  step = jax.jit(method.step(tools))
  for k in range(kit.STEPS):
    key_mix = jax.random.split(jax.random.split(state.step_key(), 3)[0])[0]
    first, second = unlabelled[k], None
    if method.partner == 'half':
      first, second = ({key: x[rows] for key, x in unlabelled[k].items()}
                       for rows in (slice(2), slice(2, None)))
    inside = xor_boxes(key_mix, len(first['valid']), (4, 5), boxes=1, area=(0.5, 0.5))
    expected, losses = oracle_cutmix.step(
      expected, labelled[k], first, partner=second, inside=np.asarray(inside), hyper=of_oracle)
    state, metrics = step(state, kit.batches(labelled[k], unlabelled[k]))
    kit.assert_networks(state, expected['networks'])
    assert 0 < losses['confidence'] < 1
    np.testing.assert_allclose(metrics['kept_share'], losses['confidence'], rtol=1e-6)


def test_squared_error_is_torchs_and_so_is_its_gradient():
  rng = np.random.default_rng(0)
  logits, target = rng.normal(size=(2, 3, 4, 5)), rng.dirichlet(np.ones(5), size=(2, 3, 4))
  ours, slope = jax.value_and_grad(lambda z: squared_error(
    jax.nn.softmax(z), jnp.asarray(target, jnp.float32), jnp.full((2, 3, 4), True),
    divisor=jnp.float32(24)))(jnp.asarray(logits, jnp.float32))
  z = torch.tensor(logits, requires_grad=True)
  theirs = torch.nn.functional.mse_loss(torch.softmax(z, -1), torch.tensor(target))
  theirs.backward()
  np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
  np.testing.assert_allclose(slope, z.grad, rtol=1e-4, atol=1e-8)


def test_without_weight_the_student_takes_a_supervised_step():
  method = MeanTeacherConsistency(consistency_weight=0.0)
  networks, labelled, unlabelled, tools, state = setup(method)
  after, _ = jax.jit(method.step(tools))(state, kit.batches(labelled[0], unlabelled[0]))
  start = lm.initial_state({'student': networks['student']}, ('student',))
  _, gradient = lm.supervised(networks['student'], labelled[0])
  kit.assert_close(after.networks['student']['params'],
                   lm.learn(start, {'student': gradient}, hyper(method))['networks']['student'])


def test_nothing_sure_is_nothing_to_learn_from_unlabelled_images():
  method = CutMixConsistency(threshold=1.0)
  tools = tiny.make_tools(tiny.conv_network())
  state, step = tiny.first_state(method, tools), jax.jit(method.step(tools))
  labelled, unlabelled = tiny.make_batches(3)
  after, metrics = step(state, kit.batches(labelled, unlabelled))
  assert float(metrics['student_consistency_loss']) == float(metrics['kept_share']) == 0
  assert np.isfinite(float(metrics['student_labelled_loss']))


def test_the_teacher_has_no_gradient_and_starts_as_the_student():
  method = MeanTeacherConsistency(teacher_decay=1.0)
  tools = tiny.make_tools(tiny.conv_network())
  state = tiny.first_state(method, tools)
  assert state.optimizers.keys() == {'student'}
  kit.assert_equal(state.networks['teacher'], state.networks['student'])
  after, _ = jax.jit(method.step(tools))(state, kit.batches(*tiny.make_batches(3)))
  kit.assert_equal(after.networks['teacher']['params'], state.networks['teacher']['params'])
  # Its own passes in train mode move its statistics, one for each kind of images.
  assert kit.differs(after.networks['teacher']['batch_stats'],
                     state.networks['teacher']['batch_stats'])


def test_the_first_step_of_the_ramped_average_copies_the_student():
  method = CutMixConsistency(teacher_batch_norm='ema')
  tools = tiny.make_tools(tiny.conv_network())
  after, _ = jax.jit(method.step(tools))(
    tiny.first_state(method, tools), kit.batches(*tiny.make_batches(3)))
  kit.assert_equal(after.networks['teacher'], after.networks['student'])


def test_there_is_no_warm_up():
  tools = tiny.make_tools(tiny.linear_network())
  for method in (MeanTeacherConsistency(), CutMixConsistency()):
    assert [(s.name, s.steps) for s in method.stages(tools)] == [('main', tools.total_steps)]


@pytest.mark.parametrize('batch, options, message', [
  (1, {}, 'train.unlabelled_batch=1 cannot be mixed'),
  (3, {'partner': 'half'}, 'an even number of images; use 4'),
  (4, {'partner': 'half', 'batch_norm': 'joint'}, 'use method.partner=next')])
def test_batches_that_cannot_be_mixed_are_refused(batch, options, message):
  tools = tiny.make_tools(tiny.linear_network(), batch=batch)
  with pytest.raises(ValueError, match=message):
    CutMixConsistency(**options).check(tools)


def test_parts_that_do_not_fit_are_refused():
  tools = tiny.make_tools(
    tiny.linear_network(), batch=12, accumulation=Accumulation(per_device=4))
  with pytest.raises(ValueError, match='does not divide a batch of 6'):
    CutMixConsistency(partner='half').check(tools)
  uneven = tools._replace(labelled_batch=8)
  with pytest.raises(ValueError, match='batch_norm=joint takes together'):
    MeanTeacherConsistency(batch_norm='joint').check(uneven)
  MeanTeacherConsistency().check(uneven)


def test_options_without_a_meaning_are_refused():
  with pytest.raises(ValueError, match="consistency_of='logits' is unknown"):
    CutMixConsistency(consistency_of='logits')
  assert {f.name for f in dataclasses.fields(CutMixConsistency)} > {'partner', 'ramp_epochs'}


def test_ramps_count_the_steps_since_the_warm_up():
  """Weight and decay, where an epoch is not a step and the warm-up not nothing."""
  method = MeanTeacherConsistency(
    warmup_epochs=2.0, ramp_epochs=4.0, ema_ramp=True, teacher_decay=0.9, consistency_weight=5.0)
  tools = tiny.make_tools(tiny.linear_network(), total_steps=60, epoch_steps=3)
  state = tiny.first_state(method, tools)
  for step in (6, 9, 12, 18, 40):
    now = state.replace(step=jnp.int32(step))
    left = max(1 - (step - 6) / 12, 0)
    np.testing.assert_allclose(
      method.weight(tools, now), 5 * np.exp(-5 * left ** 2), rtol=1e-6)
    np.testing.assert_allclose(
      method.follow(tools, now)[1]['teacher_decay'], min(1 - 1 / (step - 6 + 1), 0.9), rtol=1e-6)
