"""What tells a user whether the method works on his data."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gta_jax.methods.state import TrainState
from gta_jax.ops.network import Array, Params


@jax.jit
def distances(state: TrainState) -> dict[str, Array]:
  """How far the assistant's parameters are from the student's, by top-level key.

      || theta^assistant - theta^student || / || theta^student ||

  Returns: 'distance_KEY' -> [] float32; nothing for methods without an assistant.
  """
  if state.assistant is None:
    return {}
  student, assistant = state.student['params'], state.assistant['params']
  return {f'distance_{key}': _distance(student[key], assistant[key]) for key in student}


def _distance(a: Params, b: Params) -> Array:
  difference = jax.tree.map(lambda x, y: x - y, a, b)
  return jnp.sqrt(_sum_of_squares(difference) / _sum_of_squares(a))


def _sum_of_squares(tree: Params) -> Array:
  return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))


class CollapseWatch:
  """Warns once when the pseudo-labels lose a class, or become one class.

  Looks at shares averaged over many logs, since a batch need not hold every class.
  """

  def __init__(
    self, classes: Sequence[str], *, memory: int = 20, vanished: float = 0.05, all_of: float = 0.98
  ):
    """Starts without a history.

    Args:
      classes: K names.
      memory: logs over which shares are averaged, and before which nothing is said.
      vanished: a class is lost when its average falls below this share of its highest one.
      all_of: one class is all when its average exceeds this.
    """
    self._classes, self._memory = tuple(classes), memory
    self._vanished, self._all_of = vanished, all_of
    self._logs, self._mean = 0, np.zeros(len(classes))
    self._highest = np.zeros(len(classes))
    self._warned: set[str] = set()

  def observe(self, shares: np.ndarray) -> list[str]:
    """Takes in the shares [K] of the kept pseudo-labels by class; returns new warnings."""
    self._logs += 1
    weight = max(1 / self._logs, 1 / self._memory)
    self._mean += weight * (np.asarray(shares) - self._mean)
    if self._logs < self._memory:
      return []
    self._highest = np.maximum(self._highest, self._mean)
    warnings = []
    for name, mean, highest in zip(self._classes, self._mean, self._highest, strict=True):
      if mean < self._vanished * highest and name not in self._warned:
        self._warned.add(name)
        warnings.append(
          f'warning: class {name} vanishes from the pseudo-labels: {100 * mean:.3f} % of the kept '
          f'pixels after {100 * highest:.3f} %. A longer warm-up or more labels of it may help.')
      if mean > self._all_of and 'all' not in self._warned:
        self._warned.add('all')
        warnings.append(
          f'warning: {100 * mean:.1f} % of the kept pseudo-labels are {name}; the others have '
          'collapsed. A longer warm-up or a lower rate may help.')
    return warnings
