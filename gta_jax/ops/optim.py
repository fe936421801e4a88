"""SGD as torch has it, with rates by top-level key and the poly schedule."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def poly_schedule(initial: float, *, total_steps: int, power: float = 0.9) -> optax.Schedule:
  """The polynomial decay of the learning rate.

      rate(t) = initial (1 - t / total_steps)^power

  Args:
    initial: the rate at step 0.
    total_steps: T; the rate is 0 from there on.
    power: 0.9 in the paper.
  Returns: step -> rate.
  """
  if total_steps < 1:
    raise ValueError(f'total_steps={total_steps} leaves nothing to train; use 1 or more.')

  def rate(step: jax.typing.ArrayLike) -> jax.Array:
    left = 1.0 - jnp.asarray(step, jnp.float32) / total_steps
    return initial * jnp.maximum(left, 0.0) ** power

  return rate


def make_optimizer(
  schedule: optax.Schedule,
  *,
  multipliers: Mapping[str, float],
  momentum: float = 0.9,
  weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """torch.optim.SGD with one parameter group for each top-level key.

      g <- gradient + weight_decay theta        (every parameter, BatchNorm's and biases too)
      v <- momentum v + g
      theta <- theta - multiplier[key] rate(t) v

  Args:
    schedule: step -> rate of a multiplier of one.
    multipliers: top-level key -> factor on the rate, one where a key is not named.
    momentum: in [0,1).
    weight_decay: >= 0.
  Returns: a transformation for parameters whose top level is a dict of keys. Its state counts
    its own updates for the schedule.
  """
  def by_key(updates: Any, _: optax.Params | None) -> optax.Updates:
    return {
      key: optax.tree.scale(multipliers.get(key, 1.0), part) for key, part in updates.items()
    }

  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.trace(momentum),
    optax.stateless(by_key),
    optax.scale_by_learning_rate(schedule),
  )
