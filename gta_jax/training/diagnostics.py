"""What tells a user whether the method works on his data."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from gta_jax.methods.contract import TrainState
from gta_jax.ops import trees
from gta_jax.ops.network import Array


@functools.partial(jax.jit, static_argnums=1)
def distances(state: TrainState, compared: tuple[str, ...]) -> dict[str, Array]:
  """How far the parameters of two networks are from each other, by top-level key.

      || theta^b - theta^a || / || theta^a ||

  Args:
    state: of the run.
    compared: names of the networks a and b, or ().
  Returns: 'distance_KEY' -> [] float32; nothing if no networks are named.
  """
  if not compared:
    return {}
  one, other = (state.networks[name]['params'] for name in compared)
  return {
    f'distance_{key}': trees.norm(jax.tree.map(lambda a, b: b - a, one[key], other[key]))
    / trees.norm(one[key]) for key in one}


class CollapseWatch:
  """Warns once when the pseudo-labels lose a class, never held it, or become one class.

  Looks at shares averaged over many logs, since a batch need not hold every class.
  """

  def __init__(
    self, classes: Sequence[str], labelled: Sequence[float] = (), *,
    memory: int = 20, vanished: float = 0.05, all_of: float = 0.98,
  ):
    """Starts without a history.

    Args:
      classes: K names.
      labelled: [K] shares of the labelled pixels by class; () where they are not known.
      memory: logs over which shares are averaged, and before which nothing is said.
      vanished: a class is lost when its average falls below this share of its highest one, or of
        its share of the labelled pixels.
      all_of: one class is all when its average exceeds this.
    """
    self._classes, self._memory = tuple(classes), memory
    self._labelled = np.array(labelled or np.zeros(len(classes)))
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
    if self._mean.sum() < self._vanished:  # Shares of a step add up to one, or none is kept.
      if 'none' in self._warned:
        return []
      self._warned.add('none')
      return ['warning: hardly any step keeps a pixel of its pseudo-labels, so that unlabelled '
              'images teach nothing. Lower method.threshold, if the method has one, or lengthen '
              'the warm-up.']
    self._highest = np.maximum(self._highest, self._mean)
    warnings = self._never_held()
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

  def _never_held(self) -> list[str]:
    """One warning of all classes that masks have and pseudo-labels have not."""
    rare = {
      name: f"{name} ({100 * mean:.1f} % of their pixels, {100 * labelled:.1f} % of the masks')"
      for name, mean, labelled in zip(self._classes, self._mean, self._labelled, strict=True)
      if mean < self._vanished * labelled and name not in self._warned}
    if not rare:
      return []
    self._warned.update(rare)
    return [f'warning: the kept pseudo-labels hold hardly any {", ".join(rare.values())}. Of such '
            'classes unlabelled images teach nothing, and the network may lose them. Lower '
            'method.threshold or method.drop_fraction, if the method has one, and compare with '
            'method=sup_only.']
