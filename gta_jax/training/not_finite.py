"""Losses and states that are infinite or NaN: stop, or skip the step and count."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gta_jax.methods.contract import Batch, Metrics, Step, TrainState
from gta_jax.ops.network import Array

_CHECKED = ('_loss', '_gradient_norm')
SKIPPED_IN_A_ROW = 20  # A run that skips more than these will not recover.


class NotFiniteError(RuntimeError):
  """A loss or the state became infinite or NaN, or too many steps in a row were skipped."""


def skip_not_finite(step: Step) -> Step:
  """A step that changes nothing where its losses or the state after it are not finite.

  The step and the optimisers' counts go on, so that the order of the data and the rates stay those
  of the step's number.

  Returns: the step; its metrics have skipped_steps, 0 or 1.
  """

  def guarded(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
    after, metrics = step(state, batches)
    losses = [value for name, value in metrics.items() if name.endswith(_CHECKED)]
    finite = _all_finite((losses, after))

    def as_before() -> TrainState:
      counted = jax.tree.map(lambda new, old: old if _is_float(new) else new, after, state)
      return counted.replace(memory=state.memory)  # Its whole numbers say where its floats are.

    # A branch, not a choice leaf by leaf: that has XLA compute the step inside hundreds of fusions,
    # and compile for minutes on a CPU.
    chosen = jax.lax.cond(finite, lambda: after, as_before)
    return chosen, metrics | {'skipped_steps': 1.0 - finite}

  return guarded


def check_state(state: TrainState, step: int) -> None:
  """Refuses a state that is not finite, so that it is not saved as a good one.

  The losses of all its steps may have been: those of the last step are from before its update.

  Raises: NotFiniteError with the step.
  """
  if not _jitted_all_finite(state):
    raise NotFiniteError(
      f'the state after step {step} is not finite, though its loss was. Lower optim.rate, look at '
      'the data, or set train.non_finite=skip.')


def _all_finite(tree: Any) -> Array:
  """[] bool, over every leaf of floats."""
  floats = [leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)]
  return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]).all()


_jitted_all_finite = jax.jit(_all_finite)


def _is_float(leaf: Array) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.floating)


def losses_not_finite(metrics: Metrics) -> list[str]:
  """The names of the losses and gradients of one step that are infinite or NaN."""
  return [k for k, v in metrics.items() if k.endswith(_CHECKED) and not np.isfinite(v)]


class SkipCount:
  """Counts skipped steps, and gives up after SKIPPED_IN_A_ROW of them."""

  def __init__(self) -> None:
    self._in_a_row = self.total = 0

  def observe(self, step: int, metrics: Metrics) -> bool:
    """Whether the step was skipped; NotFiniteError after too many in a row."""
    skipped = bool(metrics.get('skipped_steps', 0))
    self._in_a_row = self._in_a_row + 1 if skipped else 0
    self.total += skipped
    if self._in_a_row > SKIPPED_IN_A_ROW:
      raise NotFiniteError(
        f'{self._in_a_row} steps in a row, the last one step {step}, were not finite and skipped. '
        'Lower optim.rate, or look at the data.')
    return skipped
