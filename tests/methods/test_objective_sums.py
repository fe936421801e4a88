"""What an objective says besides its losses."""

import jax
import jax.numpy as jnp
import pytest

from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.gradient_step import Objective, Outcome, gradient_step
from gta_jax.methods.registry import make_method
from tests import tiny


@pytest.mark.parametrize('per_device', [0, 2])
def test_objectives_may_say_more_than_losses(per_device):
  """What is added up over parts is found among the metrics."""
  tools = tiny.make_tools(tiny.linear_network(), accumulation=Accumulation(per_device))
  state = tiny.first_state(make_method('sup_only'), tools)

  def loss(variables, part, key):
    logits, stats = tools.network.apply(variables, part)
    return Outcome({'a': logits.main.sum()}, stats, {'images': jnp.float32(len(part))})

  objective = Objective(loss, jnp.ones((6, *tiny.SIZE, 3)), jax.random.key(0))
  _, metrics = gradient_step(tools, state, 'student', tools.make_optimizer(), objective)
  assert metrics['images'] == 6 and 'student_a_loss' in metrics
