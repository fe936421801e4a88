"""Whether one labelling of the same images is better than another, by a paired bootstrap."""

from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from gta_jax.evaluation.metrics import iou

_CHUNK = 2**22  # numbers of a pass


class Difference(NamedTuple):
  """mIoU of the first less that of the second, in [-1,1], and the borders of its 95 % interval."""

  value: float
  low: float
  high: float

  @property
  def shown(self) -> bool:
    """Whether the interval leaves zero out."""
    return self.low > 0 or self.high < 0


def miou_difference(
  first: np.ndarray, second: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> Difference:
  """Draws images with replacement, the same ones for both, and takes both mIoUs of each draw.

  The interval tells how far the difference would move with other validation images of the same
  kind. It says nothing about other seeds of training. Few images hide how much they differ: the
  quantiles are as far from the value as Student's t with N - 1 degrees of freedom has them instead
  of the normal distribution, and by sqrt(N / (N - 1)), as the spread of N draws is that of N - 1.

  Args:
    first, second: [N,K,K] counts of the same N images, truth by row and prediction by column.
    resamples: draws.
    seed: of the draws.
  Returns: the difference; its interval is infinite for one image. Images without a labelled pixel
    are none: they say nothing, and as draws they would narrow the interval.
  """
  if first.shape != second.shape:
    raise ValueError(f'confusions of shapes {first.shape} and {second.shape} are not of the same '
                     'images and classes; score both on the same ones.')
  labelled = first.any((1, 2))
  first, second = first[labelled], second[labelled]
  images = len(first)
  one, other = (iou(counts.sum(0))[1] for counts in (first, second))
  value = float(one - other)
  if images <= 1:
    return Difference(value, -np.inf, np.inf)
  rng = np.random.default_rng(seed)
  flat = [counts.reshape(images, -1).astype(np.float64) for counts in (first, second)]
  differences = []
  rows = max(1, _CHUNK // max(flat[0].shape[1], images))
  for start in range(0, resamples, rows):
    draws = rng.multinomial(images, np.full(images, 1 / images), min(rows, resamples - start))
    one, other = (iou((draws @ counts).reshape(-1, *first.shape[1:]))[1] for counts in flat)
    differences.append(one - other)
  low, high = np.nanpercentile(np.concatenate(differences), (2.5, 97.5))
  wider = float(stdtrit(images - 1, 0.975) / ndtri(0.975) * np.sqrt(images / (images - 1)))
  return Difference(value, *(value + wider * (float(border) - value) for border in (low, high)))
