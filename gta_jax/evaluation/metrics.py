"""Confusion matrices, counted on the device, and the scores that follow from them on the host."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gta_jax.ops.losses import IGNORE


@dataclasses.dataclass(frozen=True)
class Scores:
  """How well one network labels a data set.

  Attributes:
    miou: mean of `iou` over the classes that have one, in [0,1]; NaN if there is none.
    iou: [K] intersection over union by class in [0,1]; NaN for a class that is absent from both
      truth and prediction.
    pixel_accuracy: share of valid pixels with the right class, in [0,1]; NaN without any.
    confusion: [K,K] int64 counts, truth by row and prediction by column.
  """

  miou: float
  iou: tuple[float, ...]
  pixel_accuracy: float
  confusion: np.ndarray

  @classmethod
  def from_confusion(cls, confusion: np.ndarray) -> 'Scores':
    """Scores of [K,K] counts, truth by row and prediction by column."""
    by_class, miou = iou(confusion)
    total = confusion.sum()
    accuracy = float(np.trace(confusion) / total) if total else float('nan')
    return cls(float(miou), tuple(by_class.tolist()), accuracy, confusion)


def confusion_matrix(
  prediction: jax.Array, label: jax.Array, *, num_classes: int, ignore: int = IGNORE
) -> jax.Array:
  """Counts pairs of true and predicted class.

  Args:
    prediction: [...] integers in [0, num_classes).
    label: [...] integers of the same shape; those equal to `ignore` are not counted.
    num_classes: K.
    ignore: the label of pixels without truth.
  Returns: [K,K] int32, truth by row and prediction by column. Exact up to 2^31 pixels a call; sum
    calls in int64 on the host.
  """
  if prediction.shape != label.shape:
    raise ValueError(
      f'prediction has shape {prediction.shape} and label {label.shape}; they must be equal: '
      'resize the logits to the size of the labels first.'
    )
  pair = label.astype(jnp.int32) * num_classes + prediction.astype(jnp.int32)
  # One more bin takes what is ignored, so that the shape does not depend on the data.
  pair = jnp.where(label == ignore, num_classes**2, pair)
  counts = jnp.bincount(pair.ravel(), length=num_classes**2 + 1)
  return counts[:-1].reshape(num_classes, num_classes).astype(jnp.int32)


def iou(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Intersection over union by class, and its mean.

      IoU_k = n_kk / (sum_j n_kj + sum_i n_ik - n_kk)

  Args:
    confusion: [...,K,K] counts, truth by row and prediction by column.
  Returns: ([...,K] float64 in [0,1], NaN for classes absent from truth and prediction; [...] the
    mean over the other classes, NaN where there are none).
  """
  hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
  union = confusion.sum(-2) + confusion.sum(-1) - hit
  present = union > 0
  by_class = np.divide(hit, union, out=np.full_like(hit, np.nan), where=present)
  total, count = by_class.sum(-1, where=present), present.sum(-1)
  return by_class, np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
