"""Steps that are skipped because something is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.methods.gta import make_warmup_step
from gta_jax.methods.options import make_method
from gta_jax.methods.state import TrainState, init_state, make_optimizers
from gta_jax.training import not_finite
from gta_jax.training.not_finite import SKIPPED_IN_A_ROW, NotFiniteError, SkipCount, skip_not_finite
from tests.tiny import SIZE, linear_network, make_batches


def test_a_step_that_is_not_finite_changes_only_numbers_that_count():
  network, method = linear_network(), make_method('gta')
  optimizers = make_optimizers(method, rate=0.1, total_steps=10)
  variables = network.init(jax.random.key(0), SIZE)
  state = init_state(jax.random.key(1), variables, method, optimizers)
  plain = make_warmup_step(network, method, optimizers)
  step = jax.jit(skip_not_finite(plain))
  labelled, _ = make_batches()
  after, metrics = step(state, labelled, {})
  expected, _ = jax.jit(plain)(state, labelled, {})
  assert metrics['skipped_steps'] == 0
  for a, b in zip(*map(jax.tree.leaves, (after, expected)), strict=True):
    np.testing.assert_allclose(*map(_plain, (a, b)), rtol=1e-6)

  broken = state.replace(student=jax.tree.map(lambda x: x * np.nan, state.student))
  after, metrics = step(broken, labelled, {})
  assert metrics['skipped_steps'] == 1 and after.step == 1
  for a, b in zip(*map(jax.tree.leaves, (after, broken)), strict=True):
    if jnp.issubdtype(a.dtype, jnp.floating):
      np.testing.assert_array_equal(a, b)
  counts = [x for x in jax.tree.leaves(after.student_opt) if jnp.issubdtype(x.dtype, jnp.integer)]
  assert counts and all(count == 1 for count in counts)


def test_a_state_that_is_not_finite_is_named_wherever_it_is():
  def state_of(**changed):
    leaves = {name: {'kernel': jnp.ones((3, 2))} for name in ('teacher', 'student', 'assistant')}
    return TrainState(step=jnp.int32(7), key=jax.random.key(0), student_opt=(jnp.ones(2),),
                      assistant_opt=(jnp.ones(2),), **leaves).replace(**changed)

  not_finite.check_state(state_of(), 7)
  not_finite.check_state(state_of(assistant=None, assistant_opt=None), 7)
  for name in ('teacher', 'student', 'assistant', 'student_opt', 'assistant_opt'):
    for bad in (np.nan, -np.inf):
      with pytest.raises(NotFiniteError, match='the state after step 7 is not finite.*optim.rate'):
        broken = {'kernel': jnp.ones((3, 2)).at[1, 1].set(bad)}
        not_finite.check_state(state_of(**{name: broken}), 7)


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
