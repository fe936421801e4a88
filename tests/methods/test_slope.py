"""An objective may measure, and its slopes may be found one by one."""

import jax
import jax.numpy as jnp
import numpy as np

from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.contract import init_state
from gta_jax.methods.gradient_step import Objective, Outcome, descend, gradient_step, slope
from tests import tiny


def test_what_is_measured_has_no_gradient_and_is_that_of_the_whole_batch():
  def loss(variables, batch, key):
    del key
    product = batch * variables['params']['w']
    return Outcome(
      {'a': jnp.sum(product)}, {'count': jnp.float32(2)}, {'sum': jnp.sum(product, axis=0)})

  variables = {'params': {'w': jnp.float32(3)}, 'batch_stats': {}}
  objective = Objective(loss, jnp.arange(8.0).reshape(4, 2), jax.random.key(0))
  for per_device in (0, 2):
    tools = tiny.make_tools(tiny.linear_network(), accumulation=Accumulation(per_device))
    found = slope(tools, variables, objective)
    assert found.gradient['w'] == 28 and found.losses['a'] == 84
    assert found.sums['sum'].tolist() == [36, 48]
    assert found.batch_stats['count'] == 2  # the mean over passes


def test_what_a_pass_says_of_each_image_is_in_the_batchs_order():
  def loss(variables, batch, key):
    del key
    said = batch * variables['params']['w']
    return Outcome({'a': jnp.sum(said)}, {}, rows={'said': said})

  variables = {'params': {'w': jnp.float32(3)}, 'batch_stats': {}}
  objective = Objective(loss, jnp.arange(8.0).reshape(8, 1), jax.random.key(0))
  for accumulation in (Accumulation(), Accumulation(2), Accumulation(2, devices=2)):
    tools = tiny.make_tools(tiny.linear_network(), accumulation=accumulation)
    found = slope(tools, variables, objective)
    np.testing.assert_array_equal(found.rows['said'], 3 * objective.batch)
    assert found.sums == {} and found.gradient['w'] == 28


def test_slopes_one_by_one_are_the_step_of_all():
  def objective(sign):
    def loss(variables, batch, key):
      del key
      return Outcome(
        {f'of_{sign}': sign * jnp.sum(batch @ variables['params']['backbone']['kernel'])},
        {'passes': variables['batch_stats']['passes'] + 1})
    return Objective(loss, jnp.ones((4, 3)), jax.random.key(0))

  tools = tiny.make_tools(tiny.linear_network())
  variables = {'params': tools.network.init(jax.random.key(0), tiny.SIZE)['params'],
               'batch_stats': {'passes': jnp.int32(0)}}
  optimizer = tools.make_optimizer()
  state = init_state(jax.random.key(1), {'student': variables}, {'student': optimizer})
  objectives = objective(1.0), objective(3.0)
  one, metrics = gradient_step(tools, state, 'student', optimizer, *objectives)
  assert int(one.networks['student']['batch_stats']['passes']) == 2
  first = slope(tools, variables, objectives[0])
  second = slope(tools, {**variables, 'batch_stats': first.batch_stats}, objectives[1])
  other, again = descend(state, 'student', optimizer, first, second)
  jax.tree.map(np.testing.assert_array_equal, one.networks, other.networks)
  assert metrics == again and {'student_of_1.0_loss', 'student_rate'} <= metrics.keys()
