"""How AEL draws classes and regions, as distributions and choices (sheet b, section 1)."""

import numpy as np

from tests.oracles import linear_model_b as lm


def paste_probabilities(confidence, allowed=None, *, root=False):
  """Step 2: how likely each class is pasted; `allowed` bool [K]."""
  x = np.sqrt(1 - confidence) if root else 1 - confidence
  return lm.softmax(x if allowed is None else np.where(allowed, x, -np.inf))


def cut_probabilities(confidence):
  """Step 3: how likely each class is cut."""
  return lm.softmax(1 - confidence)


def donor_probabilities(bank, cut_class):
  """Step 3: uniform over images that hold the class, over all if there is none."""
  row = bank[cut_class] if bank[cut_class].any() else np.ones(bank.shape[1])
  return row / row.sum()


def components(mask):
  """8-connected components of a [H,W] mask, in raster order of their first pixels."""
  left, found = {tuple(p) for p in np.argwhere(mask)}, []
  while left:
    queue = [min(left)]
    left.discard(queue[0])
    for y, x in queue:
      near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
      queue.extend(near)
      left -= near
    found.append(np.array(queue))
  return found


def region(mask, priority, fallback, least_area):
  """Step 5: the box of the first component with more than least_area H W pixels, or `fallback`.

  Components are taken by falling priority [H,W] of their first pixels in raster order.
  """
  large = [c for c in components(mask) if len(c) > least_area * mask.size]
  if not large:
    return tuple(fallback)
  chosen = max(large, key=lambda c: priority[tuple(c[0])])
  return (*chosen.min(0), *(chosen.max(0) + 1))
