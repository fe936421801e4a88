"""Images of 16 bits a channel as 8 bits, by a range of values that the whole data set shares."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

PERCENTILES = (0.1, 99.9)
_VALUES = 2**16


def scale_to_8_bits(pixels: np.ndarray, pixel_range: Sequence[int]) -> np.ndarray:
  """Spreads [black, white] over 0 to 255, rounded; what lies outside becomes 0 or 255.

  Args:
    pixels: uint16, any shape.
    pixel_range: (black, white) with 0 <= black < white.
  Returns: uint8, of the same shape.
  """
  black, white = pixel_range
  return _table(int(black), int(white))[pixels]


@functools.lru_cache(maxsize=4)
def _table(black: int, white: int) -> np.ndarray:
  levels = (np.arange(_VALUES) - black) * (255 / (white - black))
  return np.clip(np.round(levels), 0, 255).astype(np.uint8)


def percentile_range(
  read: Callable[[str], np.ndarray], ids: Sequence[str]
) -> tuple[int, int]:
  """The range between two percentiles (PERCENTILES) of all pixels of all channels.

  A few hot pixels move it by little, and one range for all images and channels keeps their
  differences in brightness and hue. Where nearly all pixels have one value, as the background of
  sparse spots, white is the upper percentile of the pixels that are brighter.

  Args:
    read: id -> uint16 [...].
    ids: at least one.
  Returns: (black, white), black < white.
  """
  counts = np.zeros(_VALUES, np.int64)
  for id in ids:
    counts += np.bincount(read(id).ravel(), minlength=_VALUES)
  black, white = (_percentile(counts, percent) for percent in PERCENTILES)
  if white == black and counts[black + 1:].any():
    white = black + 1 + _percentile(counts[black + 1:], PERCENTILES[1])
  return min(black, _VALUES - 2), max(white, min(black, _VALUES - 2) + 1)


def _percentile(counts: np.ndarray, percent: float) -> int:
  """The value that so many of the pixels, counted by value, do not exceed."""
  return int(np.searchsorted(counts.cumsum() / counts.sum(), percent / 100))
