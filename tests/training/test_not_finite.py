"""Steps that are skipped because something is not finite."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.methods.contract import TrainState
from gta_jax.methods.registry import make_method
from gta_jax.training import loop, not_finite, setup, steps
from gta_jax.training.not_finite import SKIPPED_IN_A_ROW, NotFiniteError, SkipCount, skip_not_finite
from tests import tiny
from tests.runs import tiny_config


def test_a_step_that_is_not_finite_changes_only_numbers_that_count():
  method, tools = make_method('gta'), tiny.make_tools(tiny.linear_network())
  state = tiny.first_state(method, tools)
  # Adam's corrections count; so does a queue, but where its floats are.
  state = state.replace(memory=(jnp.int32(0),),
                        optimizers=state.optimizers | {'count': jnp.int32(0)})
  warmup = method.stages(tools)[0].step

  def counting(state, batches):
    after, metrics = warmup(state, batches)
    count = state.optimizers['count'] + 1
    return after.replace(memory=(state.memory[0] + 1,),
                         optimizers=after.optimizers | {'count': count}), metrics

  step = jax.jit(skip_not_finite(counting))
  batches = {'labelled': tiny.make_batches()[0]}
  after, metrics = step(state, batches)
  expected, _ = jax.jit(counting)(state, batches)
  assert metrics['skipped_steps'] == 0
  for a, b in zip(*map(jax.tree.leaves, (after, expected)), strict=True):
    np.testing.assert_allclose(*map(_plain, (a, b)), rtol=1e-6)

  student = jax.tree.map(lambda x: x * np.nan, state.networks['student'])
  broken = state.with_networks(student=student)
  after, metrics = step(broken, batches)
  assert metrics['skipped_steps'] == 1 and after.step == 1
  for a, b in zip(*map(jax.tree.leaves, (after, broken)), strict=True):
    if jnp.issubdtype(a.dtype, jnp.floating):
      np.testing.assert_array_equal(a, b)
  assert (after.optimizers['count'], after.memory) == (1, (0,))


def test_a_state_that_is_not_finite_is_named_wherever_it_is():
  sound = {'kernel': jnp.ones((3, 2))}
  state = TrainState(
    step=jnp.int32(7), key=jax.random.key(0), networks={'teacher': sound, 'student': sound},
    optimizers={'student': sound}, memory={'queue': sound})
  not_finite.check_state(state, 7)
  for bad in (np.nan, -np.inf):
    broken = {'kernel': jnp.ones((3, 2)).at[1, 1].set(bad)}
    for field, name in (('networks', 'teacher'), ('networks', 'student'), ('optimizers', 'student'),
                        ('memory', 'queue')):
      changed = getattr(state, field) | {name: broken}
      with pytest.raises(NotFiniteError, match='the state after step 7 is not finite.*optim.rate'):
        not_finite.check_state(state.replace(**{field: changed}), 7)


def _plain(leaf):
  is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return jax.random.key_data(leaf) if is_key else leaf


def test_too_many_skipped_in_a_row_end_the_run():
  count = SkipCount()
  for step in range(SKIPPED_IN_A_ROW):
    assert count.observe(step, {'skipped_steps': 1.0})
  assert not count.observe(99, {'skipped_steps': 0.0})
  for step in range(SKIPPED_IN_A_ROW):
    count.observe(step, {'skipped_steps': 1.0})
  assert count.total == 2 * SKIPPED_IN_A_ROW
  with pytest.raises(NotFiniteError, match='21 steps in a row, the last one step 120'):
    count.observe(120, {'skipped_steps': 1.0})


@pytest.mark.slow
def test_infinite_loss_stops_with_step_and_checkpoint(tmp_path, capsys):
  config = tiny_config(**{'optim.rate': 1e12, 'method.warmup_epochs': 3.0})
  with pytest.raises(NotFiniteError, match=r'not finite at step \d+.*last good checkpoint is none'):
    loop.train(setup.make_run(config), tmp_path)
  assert not list((tmp_path / 'checkpoints').iterdir())
  assert 'the warm-up lasts to the end' in capsys.readouterr().err


@pytest.mark.slow
def test_a_state_that_overflowed_is_not_saved_though_its_losses_were_finite(
  finished, tmp_path, monkeypatch
):
  workdir = shutil.copytree(finished[0], tmp_path / 'run')
  (workdir / 'checkpoints' / '12.json').unlink()
  take = steps.Steps.advance

  def overflow(self, state, *arguments):
    state = take(self, state, *arguments)
    teacher = jax.tree.map(lambda x: x * np.inf, state.networks['teacher'])
    return state.with_networks(teacher=teacher)

  monkeypatch.setattr(steps.Steps, 'advance', overflow)
  with pytest.raises(NotFiniteError, match=r'state after step 12 is not .*last good .* step 8\.'):
    loop.train(setup.make_run(tiny_config()), workdir)
  with loop.Checkpoints(workdir / 'checkpoints') as checkpoints:
    assert checkpoints.last_step == 8
