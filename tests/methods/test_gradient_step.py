"""Cut batches: the step of the whole batch, but for BatchNorm's statistics; and less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.methods.accumulation import WHOLE, Accumulation, over_micro_batches
from gta_jax.methods.registry import make_method, option_names
from gta_jax.ops import trees
from gta_jax.ops.losses import SupervisedLoss
from tests import tiny

TWO = Accumulation(per_device=2)


def take_step(network, accumulation, name='gta', recipe='paper', *, stage='main', loss=None):
  """All leaves after two steps, and the second one's metrics."""
  groups = {k: 0 for k in ('threshold_images', 'labelled_images', 'mixing_images')
            if k in option_names(name)}
  method = make_method(name, recipe=recipe, **groups)
  tools = tiny.make_tools(network, batch=6, loss=loss, accumulation=accumulation)
  method.check(tools)
  state, step = tiny.first_state(method, tools), tiny.make_steps(method, tools)[stage]
  state = state.replace(step=jnp.int32(2))  # past the warm-up and the hand-over
  for seed in range(2):
    state, metrics = step(state, *tiny.make_batches(seed, batch=6))
  return jax.tree.leaves(state.replace(key=None)), metrics


def assert_same(one, other):
  for a, b in zip(*(jax.tree.leaves(x) for x in (one, other)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name, recipe', [
  ('gta', 'paper'), ('gta', 'released'), ('cutmix', 'paper'), ('sup_only', 'released')])
def test_cut_batches_give_the_step_of_the_whole_batch(name, recipe):
  """Threshold, weights, CutMix and divisors are the whole batch's; this model has no BatchNorm."""
  network = tiny.linear_network()
  assert_same(*(take_step(network, cut, name, recipe) for cut in (WHOLE, TWO)))


@pytest.mark.parametrize('stage', ['main', 'warmup'])
def test_batch_norm_takes_the_statistics_of_each_part(stage):
  whole, parts = (tiny.conv_network(groups=groups, dropout=False) for groups in (1, 3))
  expected = take_step(parts, WHOLE, stage=stage)
  assert_same(take_step(whole, TWO, stage=stage), expected)
  if stage == 'warmup':
    with pytest.raises(AssertionError):
      assert_same(take_step(whole, WHOLE, stage=stage), expected)


def test_class_weights_divide_by_those_of_the_whole_batch():
  network, loss = tiny.linear_network(), SupervisedLoss(class_weights=(1.0, 5.0, 0.2))
  assert_same(
    *(take_step(network, cut, loss=loss, stage='warmup') for cut in (WHOLE, TWO)))


def test_norms_are_those_of_gradient_update_and_parameters():
  network, method = tiny.linear_network(), make_method('sup_only')
  tools = tiny.make_tools(network, weight_decay=0.0)
  state = tiny.first_state(method, tools)
  after, metrics = tiny.make_steps(method, tools)['main'](state, *tiny.make_batches(0))
  before, params = (x.networks['student']['params'] for x in (state, after))
  moved = jax.tree.map(lambda a, b: a - b, params, before)
  # With a fresh optimiser and no decay the update is the rate by key times the gradient.
  gradient = {key: jax.tree.map(lambda x, k=key: x / (0.05 if k == 'backbone' else 0.5), part)
              for key, part in moved.items()}
  for name, tree in (('gradient', gradient), ('update', moved), ('parameter', params)):
    assert metrics[f'student_{name}_norm'] == pytest.approx(float(trees.norm(tree)), rel=1e-4)


def test_each_part_drops_channels_of_its_own():
  rows, _, _ = over_micro_batches(
    lambda x, key: (x + jax.random.uniform(key), ()), jnp.zeros(6), TWO, key=jax.random.key(0))
  assert len(set(rows.tolist())) == 3


def test_parts_take_rows_of_every_device():
  x = jnp.arange(12)
  rows, sums, count = over_micro_batches(
    lambda x, key: (x, x), x, Accumulation(per_device=2, devices=2), key=jax.random.key(0))
  np.testing.assert_array_equal(rows, x)
  np.testing.assert_array_equal(sums, [0 + 2 + 4, 1 + 3 + 5, 6 + 8 + 10, 7 + 9 + 11])
  assert count == 3


def test_smaller_parts_need_less_memory():
  network, method = tiny.conv_network(width=48), make_method('sup_only')
  batches = tiny.make_batches(batch=16, size=(64, 64))

  def temporary(per_device):
    tools = tiny.make_tools(network, batch=16, accumulation=Accumulation(per_device))
    state, step = tiny.first_state(method, tools), tiny.make_steps(method, tools)['main']
    return step.lower(state, *batches).compile().memory_analysis().temp_size_in_bytes

  assert temporary(4) < 0.5 * temporary(0)


def test_what_cannot_be_cut_is_refused():
  network = tiny.linear_network()
  with pytest.raises(ValueError, match='does not divide a batch of 6; use a divisor of 6'):
    take_step(network, Accumulation(4))
  with pytest.raises(ValueError, match='of one size'):
    over_micro_batches(None, (jnp.zeros(4), jnp.zeros(2)), TWO, key=jax.random.key(0))


@pytest.mark.parametrize('name', ['mean_teacher', 'fixmatch', 'cps', 'ael'])
def test_a_pass_waits_for_the_pass_before(name):
  """Else a GPU keeps the activations of both; a CPU can show the barrier alone, as it drops it."""
  method = make_method(name)
  tools = tiny.make_tools(tiny.linear_network())
  state, step = tiny.first_state(method, tools), tiny.make_steps(method, tools)['main']
  program = step.trace(state, *tiny.make_batches(0)).jaxpr
  assert 'optimization_barrier' in str(program)


def test_what_fits_whole_is_not_cut():
  accumulation = Accumulation(8, devices=2)
  assert [accumulation.count(batch) for batch in (4, 16, 32)] == [1, 1, 2]
