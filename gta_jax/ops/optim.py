"""Optimisers as torch has them, with rates by top-level key; the run's step decides the rate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


class Optimizer(NamedTuple):
  """How parameters move.

  init: parameters -> state.
  update: (gradient, state, parameters, *, step) -> (updates to be added, state). step is the run's,
    int32 []; no optimiser counts steps for its rate, so that one that pauses does not fall behind.
  rate: step -> rate of a multiplier of one.
  """

  init: Callable[[optax.Params], optax.OptState]
  update: Callable[..., tuple[optax.Updates, optax.OptState]]
  rate: optax.Schedule


def poly_schedule(
  initial: float, *, total_steps: int, power: float = 0.9, first_step: int = 0
) -> optax.Schedule:
  """The polynomial decay of the learning rate.

      rate(t) = initial (1 - (t - first_step) / total_steps)^power

  Args:
    initial: the rate at the first step.
    total_steps: T; the rate is 0 from first_step + T on.
    power: 0.9 in the paper.
    first_step: of the phase that the schedule is for.
  Returns: step -> rate.
  """
  if total_steps < 1:
    raise ValueError(f'total_steps={total_steps} leaves nothing to train; use 1 or more.')

  def rate(step: jax.typing.ArrayLike) -> Array:
    done = jnp.asarray(step, jnp.float32) - first_step if first_step else step
    left = 1.0 - jnp.asarray(done, jnp.float32) / total_steps
    return initial * jnp.maximum(left, 0.0) ** power

  return rate


def make_sgd(
  schedule: optax.Schedule,
  *,
  multiplier: float = 1.0,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  decay: str = 'all',
  undecayed: tuple[str, ...] = (),
  frozen: tuple[str, ...] = (),
) -> Optimizer:
  """torch.optim.SGD with one parameter group for each top-level key.

      g <- gradient + weight_decay theta        (every parameter, BatchNorm's and biases too)
      v <- momentum v + g
      theta <- theta - multiplier[key] rate(t) v

  Args:
    schedule: step -> rate of a multiplier of one.
    multiplier: of every key but `backbone`, whose multiplier is one.
    momentum: in [0,1).
    weight_decay: >= 0.
    decay: 'all', or 'kernels' for parameters of two and more axes alone: neither biases nor
      BatchNorm's.
    undecayed: top-level keys that weight decay spares altogether.
    frozen: keys of `backbone` that stay as they are.
  Returns: an optimiser for parameters whose top level is a dict of keys.
  """
  return _make(
    schedule, multiplier, frozen,
    optax.add_decayed_weights(weight_decay, _decayed(decay, undecayed)), optax.trace(momentum))


def make_adam(
  schedule: optax.Schedule,
  *,
  multiplier: float = 1.0,
  b1: float = 0.9,
  b2: float = 0.999,
  weight_decay: float = 0.0,
  decay: str = 'all',
  undecayed: tuple[str, ...] = (),
  frozen: tuple[str, ...] = (),
) -> Optimizer:
  """torch.optim.AdamW with one parameter group for each top-level key; Adam without weight decay.

      m <- b1 m + (1 - b1) g         v <- b2 v + (1 - b2) g^2
      theta <- theta - multiplier[key] rate(t) (m^ / (sqrt(v^) + 1e-8) + weight_decay theta)

  The bias correction of m^ and v^ counts a key's steps from its first gradient that is not zero: a
  head that only a later phase trains begins as at step 1, where a count of all steps would have
  its first steps several times too long.

  Args: as of make_sgd; b1 and b2 in [0,1).
  """
  return _make(
    schedule, multiplier, frozen, _scale_by_adam(b1, b2),
    optax.add_decayed_weights(weight_decay, _decayed(decay, undecayed)))


def _scale_by_adam(b1: float, b2: float) -> optax.GradientTransformation:
  """optax's, with a state for each top-level key that begins with the key's first gradient."""
  adam = optax.scale_by_adam(b1, b2)

  def init(params: Any) -> dict[str, Any]:
    return {key: adam.init(part) for key, part in params.items()}

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, dict[str, Any]]:
    del params
    scaled, after = {}, {}
    for key, part in updates.items():
      moved: Any
      scaled[key], moved = adam.update(part, state[key])
      begun = jnp.array([jnp.any(leaf != 0) for leaf in jax.tree.leaves(part)]).any()
      count = jnp.where(begun | (state[key].count > 0), moved.count, 0)
      after[key] = moved._replace(count=count)  # Its moments are zero as long as its gradient is.
    return scaled, after

  return optax.GradientTransformation(init, update)


def with_factor(optimizer: Optimizer, factor: float) -> Optimizer:
  """The optimiser with rates that many times as large."""
  def update(*args: Any, **options: Any) -> tuple[optax.Updates, optax.OptState]:
    updates, state = optimizer.update(*args, **options)
    return optax.tree.scale(factor, updates), state

  return Optimizer(optimizer.init, update, lambda step: factor * optimizer.rate(step))


def _decayed(decay: str, undecayed: tuple[str, ...]) -> Callable[[Any], Any] | None:
  """Which leaves decay, as optax's mask; None for all."""
  if decay == 'all' and not undecayed:
    return None
  least = {'all': 0, 'kernels': 2}[decay]
  return lambda params: {
    key: jax.tree.map(lambda leaf, key=key: key not in undecayed and leaf.ndim >= least, part)
    for key, part in params.items()}


def _make(
  schedule: optax.Schedule, multiplier: float, frozen: tuple[str, ...],
  *transforms: optax.GradientTransformation,
) -> Optimizer:
  def by_key(updates: Any, _: Any) -> Any:
    if frozen:  # Their gradient is zero, but weight decay is not.
      stays = optax.tree.zeros_like({name: updates['backbone'][name] for name in frozen})
      updates = {**updates, 'backbone': {**updates['backbone'], **stays}}
    return {
      key: part if key == 'backbone' else optax.tree.scale(multiplier, part)
      for key, part in updates.items()
    }

  chain = optax.chain(*transforms, optax.stateless(by_key))

  def update(
    gradient: optax.Updates, state: optax.OptState, params: optax.Params, *, step: Array
  ) -> tuple[optax.Updates, optax.OptState]:
    updates, state = chain.update(gradient, state, params)
    rate = -jnp.asarray(schedule(step))
    return jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates), state

  return Optimizer(chain.init, update, schedule)
