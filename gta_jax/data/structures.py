"""How wide the structures of a mask are."""

import cv2
import numpy as np

_RADII = (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33)
# In pixels; a circle of radius r about a pixel's centre covers 2 r - 1 of them.
DIAMETERS = tuple(2 * radius - 1 for radius in _RADII)


def survivors(mask: np.ndarray, id: int, *, most: int | None = None) -> np.ndarray:
  """How many of a class's pixels lie where a circle of each of DIAMETERS fits into the class.

  Such counts (a granulometry) are robust where parts of a class are not: specks and jagged borders
  hold few pixels. A circle may reach over the border of the image, or of what is looked at.

  Args:
    mask: uint8 [H,W].
    id: of the class.
    most: pixels that are looked at, in a window around the middle one of the class's pixels; None
      looks at all.
  Returns: int64, one count a diameter; the first is that of all pixels of the class.
  """
  counts = np.zeros(len(_RADII), np.int64)
  where = (mask == id).astype(np.uint8)
  left, top, width, height = cv2.boundingRect(where)
  if not width:
    return counts
  # One more pixel on each side, where there is one: what lies beyond bounds the class.
  rows = slice(max(top - 1, 0), top + height + 1)
  columns = slice(max(left - 1, 0), left + width + 1)
  own = where[rows, columns].astype(bool)
  if most is not None and own.size > most:
    own = _window(own, max(int(most ** 0.5), 1))
  if own.all():
    return np.full(len(_RADII), own.sum())
  inside = cv2.distanceTransform(own.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
  for i, radius in enumerate(_RADII):
    centres = inside >= radius
    if not centres.any():
      break
    away = cv2.distanceTransform(
      (~centres).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    counts[i] = np.count_nonzero(own & (away < radius))
  return counts


def _window(own: np.ndarray, side: int) -> np.ndarray:
  """A part of [H,W] bool, `side` high and wide where there is so much, with the middle one of the
  pixels that are true in its middle, or as near to it as the border allows."""
  row = _middle(np.count_nonzero(own, axis=1))
  column = _middle(own[row])
  top, left = (min(max(place - side // 2, 0), max(length - side, 0))
               for place, length in zip((row, column), own.shape, strict=True))
  return own[top:top + side, left:left + side]


def _middle(counts: np.ndarray) -> int:
  """Where half of the counts lies before."""
  summed = np.cumsum(counts)
  return int(np.searchsorted(summed, (summed[-1] + 1) // 2))


def median_width(counts: np.ndarray) -> float | None:
  """The diameter of the circle that fits around half of a class's pixels.

  Args:
    counts: as survivors gives them, of one mask or summed over masks.
  Returns: pixels, the largest of DIAMETERS for that and more; None where there is no pixel.
  """
  if not counts[0]:
    return None
  shares = np.minimum.accumulate(counts / counts[0])
  above = int(np.flatnonzero(shares >= 0.5)[-1])
  if above == len(DIAMETERS) - 1:
    return float(DIAMETERS[-1])
  low, high = DIAMETERS[above], DIAMETERS[above + 1] - 1  # all widths that are counted alike
  part = (shares[above] - 0.5) / (shares[above] - shares[above + 1])
  return round(float(low + part * (high - low)), 1)
