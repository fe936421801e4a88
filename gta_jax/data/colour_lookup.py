"""How far the colour of a pixel alone tells its class: a lookup, scored on images left out."""

import math
from collections.abc import Sequence

import numpy as np

_GREYS, _COLOURS = 64, 8  # bins of grey levels, and of each channel
_PIXELS = 1_000_000  # of an image: of larger ones only some rows and columns are counted


def count_colours(
  image: np.ndarray, mask: np.ndarray, num_classes: int, *, grey: bool
) -> np.ndarray:
  """How often each colour occurs in each class.

  Args:
    image: uint8 [H,W,3] RGB.
    mask: uint8 [H,W], ids; others than 0 to num_classes - 1 are left out.
    grey: count grey levels, those of the first channel, instead of colours.
  Returns: int [bins,num_classes].
  """
  step = math.ceil(math.sqrt(mask.size / _PIXELS))
  image, labels = image[::step, ::step], mask[::step, ::step].ravel()
  steps, bins = (256 // _GREYS, _GREYS) if grey else (256 // _COLOURS, _COLOURS**3)
  levels = image.reshape(-1, 3).astype(np.int64) // steps
  places = levels[:, 0] if grey else levels @ (_COLOURS**2, _COLOURS, 1)
  of_class = labels < num_classes
  places = places[of_class] * num_classes + labels[of_class]
  return np.bincount(places, minlength=bins * num_classes).reshape(bins, num_classes)


def told_by_colour(counts: Sequence[np.ndarray]) -> float | None:
  """What a table from colours to classes, made of all images but one, says of that one.

      (r - 1/K) / (1 - 1/K),   r = mean over K classes of the share of its pixels that are told

  The class of a colour is the one of whose pixels the largest share has it, so that frequent
  classes are not preferred. Classes that fewer than two images hold are left out.

  Args:
    counts: of each image, see count_colours.
  Returns: 1 where every pixel is told, 0 as by chance; None where fewer than two classes remain.
  """
  if not counts:
    return None
  by_image = np.stack(counts)
  held = (by_image.sum(1) > 0).sum(0) > 1
  if held.sum() < 2:
    return None
  by_image = by_image[..., held]
  total, told = by_image.sum(0), np.zeros(held.sum())
  for own in by_image:
    others = total - own
    classes = (others / np.maximum(others.sum(0), 1)).argmax(1)
    told += np.bincount(classes, own[np.arange(len(own)), classes], minlength=len(told))
  chance = 1 / len(told)
  return float(((told / total.sum(0)).mean() - chance) / (1 - chance))
