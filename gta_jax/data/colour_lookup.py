"""How far the colour of a pixel alone tells its class: a lookup, scored on images left out."""

from collections.abc import Sequence

import numpy as np

_GREYS, _COLOURS = 64, 8  # bins of grey levels, and of each channel


def told_by_colour(
  images: Sequence[np.ndarray], masks: Sequence[np.ndarray], num_classes: int
) -> float | None:
  """What a table from colours to classes, made of all images but one, says of that one.

      (r - 1/K) / (1 - 1/K),   r = mean over K classes of the share of its pixels that are told

  The class of a colour is the one of whose pixels the largest share has it, so that frequent
  classes are not preferred.

  Args:
    images: uint8 [H,W,3] each, RGB; by grey level where all are grey.
    masks: uint8 [H,W], ids; others than 0 to num_classes - 1 are left out.
  Returns: 1 where every pixel is told, 0 as by chance; None where fewer than two classes are in
    two or more masks.
  """
  grey = all((image == image[..., :1]).all() for image in images)
  counts = np.array([_count(image, mask, num_classes, grey=grey)
                     for image, mask in zip(images, masks, strict=True)])
  if not len(counts):
    return None
  held = (counts.sum(1) > 0).sum(0) > 1
  if held.sum() < 2:
    return None
  counts = counts[..., held]
  total, told = counts.sum(0), np.zeros(counts.shape[-1])
  for own in counts:
    others = total - own
    classes = (others / np.maximum(others.sum(0), 1)).argmax(1)
    told += own[np.arange(len(own)), classes] @ (classes[:, None] == np.arange(len(told)))
  chance = 1 / len(told)
  return float(((told / total.sum(0)).mean() - chance) / (1 - chance))


def _count(image: np.ndarray, mask: np.ndarray, num_classes: int, *, grey: bool) -> np.ndarray:
  """Pixels of each bin and class, [bins,K]."""
  steps = 256 // (_GREYS if grey else _COLOURS)
  levels = image.reshape(-1, 3).astype(np.int64) // steps
  bins = levels[:, 0] if grey else levels @ (_COLOURS**2, _COLOURS, 1)
  of_bins = _GREYS if grey else _COLOURS**3
  labelled = mask.ravel() < num_classes
  places = bins[labelled] * num_classes + mask.ravel()[labelled]
  return np.bincount(places, minlength=of_bins * num_classes).reshape(of_bins, num_classes)
