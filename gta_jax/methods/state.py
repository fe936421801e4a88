"""Everything that training changes, as one immutable tree."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gta_jax.methods.options import Method
from gta_jax.ops import trees
from gta_jax.ops.network import Array, Variables
from gta_jax.ops.optim import make_optimizer, poly_schedule


class TrainState(flax.struct.PyTreeNode):
  """The state of a run between two steps. No two leaves share a buffer.

  Attributes:
    step: int32 [], steps done.
    key: PRNG key of the run; a step folds its number in and never changes it.
    teacher: {'params', 'batch_stats'}; it has no optimiser.
    student: the same.
    assistant: the same, or None for methods without one.
    student_opt: optax state.
    assistant_opt: optax state, or None for methods without an assistant.
  """

  step: Array
  key: Array
  teacher: Variables
  student: Variables
  assistant: Variables | None
  student_opt: Any
  assistant_opt: Any

  @property
  def networks(self) -> dict[str, Variables]:
    """Name -> variables of the networks that exist."""
    named = {'teacher': self.teacher, 'student': self.student, 'assistant': self.assistant}
    return {name: variables for name, variables in named.items() if variables is not None}


class Optimizers(NamedTuple):
  """The optimisers of the two networks that learn, and their rates for the log."""

  student: optax.GradientTransformation
  assistant: optax.GradientTransformation
  student_rate: optax.Schedule
  assistant_rate: optax.Schedule


def make_optimizers(
  method: Method,
  *,
  rate: float,
  total_steps: int,
  power: float = 0.9,
  decoder_multiplier: float = 10.0,
  momentum: float = 0.9,
  weight_decay: float = 1e-4,
) -> Optimizers:
  """SGD for student and assistant; everything but the backbone has a multiplied rate.

  Args:
    method: decides whether the assistant's rate is scheduled or constant.
    rate: initial rate of the backbone.
    total_steps: T of the poly schedule, warm-up included.
    power: of the poly schedule.
    decoder_multiplier: on the rate of decoder, classifier and auxiliary head.
    momentum: of both optimisers.
    weight_decay: added to every gradient before momentum.
  """
  poly = poly_schedule(rate, total_steps=total_steps, power=power)
  assistant_rate = optax.constant_schedule(rate) if method.assistant_rate == 'constant' else poly
  heads = dict.fromkeys(('decoder', 'classifier', 'auxiliary'), decoder_multiplier)
  student, assistant = (
    make_optimizer(schedule, multipliers=heads, momentum=momentum, weight_decay=weight_decay)
    for schedule in (poly, assistant_rate)
  )
  return Optimizers(student, assistant, poly, assistant_rate)


def init_state(
  key: Array, variables: Variables, method: Method, optimizers: Optimizers
) -> TrainState:
  """The state before the first step: three equal networks, momentum at zero.

  Args:
    key: PRNG key of the run.
    variables: {'params', 'batch_stats'} of the network, perhaps with pretrained weights; copied.
    method: without an assistant, its place stays None.
    optimizers: as given to the step.
  Raises:
    ValueError: the method names a key that the network does not have.
  """
  params = variables['params']
  trees.select(params, method.transmitted_keys(params) + method.shared)
  assistant = trees.copy(variables) if method.has_assistant else None
  return TrainState(
    step=jnp.int32(0),
    key=jax.random.clone(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key.copy(),
    teacher=trees.copy(variables),
    student=trees.copy(variables),
    assistant=assistant,
    student_opt=trees.copy(optimizers.student.init(params)),
    assistant_opt=trees.copy(optimizers.assistant.init(params)) if assistant else None,
  )
