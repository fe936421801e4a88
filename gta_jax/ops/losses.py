"""Cross-entropies with an ignored label."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gta_jax.ops.network import Logits
from gta_jax.ops.order_statistics import threshold_below_rank
from gta_jax.ops.resizing import resize_bilinear

Array = jax.Array

IGNORE = 255


def pixel_cross_entropy(logits: Array, labels: Array) -> Array:
  """-log softmax(logits)[label] of every pixel, zero where the label is IGNORE.

  Args:
    logits: [...,K] float32.
    labels: [...] integer, 0 <= label < K or IGNORE.
  Returns: [...] float32.
  """
  # A masked sum instead of a gather: it fuses with the softmax, and so does its gradient.
  classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
  of_label = jnp.sum(jnp.where(labels[..., None] == classes, logits, 0.0), axis=-1)
  return jnp.where(labels == IGNORE, 0.0, jax.nn.logsumexp(logits, axis=-1) - of_label)


def cross_entropy(
  logits: Array,
  labels: Array,
  weights: Array | None = None,
  *,
  class_weights: Array | None = None,
  reduction: str = 'mean',
  divisor: Array | None = None,
) -> Array:
  """Cross-entropy over the pixels that have a label (Eq. 7 and 10).

      mean:  sum_ij w_ij CE_ij / number of labelled pixels
      sum:   sum_ij w_ij CE_ij

  The paper writes sums; with its rates a sum over the pixels of a batch diverges at once, and
  its published code takes the mean. With weights of mean one (Eq. 6) the mean is also the
  weighted mean.

  Args:
    logits: [B,H,W,K] float32.
    labels: [B,H,W] integer, IGNORE where there is none.
    weights: [B,H,W] float32, a factor for each pixel; None for one.
    class_weights: [K] float32; the mean is then divided by the sum of the classes' weights, as
      in torch.
    reduction: 'mean' or 'sum'.
    divisor: what the mean divides by, mean_divisor of a batch that these images are part of; None
      for their own.
  Returns: [] float32; zero, with zero gradient, if no pixel has a label.
  """
  losses = pixel_cross_entropy(logits, labels)
  if class_weights is not None:
    losses = losses * _of_label(class_weights, labels)
  total = jnp.sum(losses if weights is None else losses * weights)
  if reduction == 'sum':
    return total
  if reduction != 'mean':
    raise ValueError(f'reduction={reduction!r} is unknown; use one of: mean, sum.')
  return total / (mean_divisor(labels, class_weights) if divisor is None else divisor)


def mean_divisor(labels: Array, class_weights: Array | None = None) -> Array:
  """The number of labelled pixels, or the sum of their classes' weights; never zero."""
  counted = (labels != IGNORE).astype(jnp.float32)
  if class_weights is not None:
    counted = counted * _of_label(class_weights, labels)
  return jnp.maximum(jnp.sum(counted), jnp.finfo(jnp.float32).tiny)


def squared_error(outputs: Array, targets: Array, counted: Array, *, divisor: Array) -> Array:
  """The squared distance of outputs from targets, averaged over channels and counted pixels.

      sum_ij counted_ij mean_k (o_ijk - t_ijk)^2 / divisor

  Args:
    outputs: [B,H,W,K] float32, such as probabilities.
    targets: [B,H,W,K] float32; no gradient passes through them.
    counted: [B,H,W] bool.
    divisor: number of the counted pixels of a batch that these images are part of.
  Returns: [] float32; zero, with zero gradient, if no pixel counts.
  """
  distances = jnp.mean(jnp.square(outputs - jax.lax.stop_gradient(targets)), axis=-1)
  return jnp.sum(jnp.where(counted, distances, 0.0)) / jnp.maximum(divisor, 1)


def _of_label(class_weights: Array, labels: Array) -> Array:
  return class_weights[jnp.where(labels == IGNORE, 0, labels)]


def ohem_cross_entropy(
  logits: Array, labels: Array, *, threshold: float, min_kept: int
) -> Array:
  """Mean cross-entropy over the hard pixels (online hard example mining).

  A pixel is hard if the probability of its label is at most `threshold`; where fewer than
  `min_kept` pixels are, the `min_kept` least probable ones are taken (all tied ones with them).

  Args:
    logits: [B,H,W,K] float32.
    labels: [B,H,W] integer, IGNORE where there is none.
    threshold: in [0,1].
    min_kept: at least so many pixels of the whole batch.
  Returns: [] float32; zero if no pixel has a label, NaN if a labelled pixel's probability is.
  """
  losses = pixel_cross_entropy(logits, labels)
  labelled = labels != IGNORE
  probability = jax.lax.stop_gradient(jnp.exp(-losses))
  # Everything up to the rank-th smallest probability: what lies above the threshold below it.
  rank = jnp.minimum(min_kept, jnp.sum(labelled)) - 1
  border = threshold_below_rank(probability, labelled, jnp.maximum(rank, 0))
  border = jnp.nextafter(border, jnp.float32(jnp.inf))
  # Not "<=": a probability that is NaN is hard, so that the loss is NaN and seen.
  hard = labelled & ~(probability > jnp.maximum(border, threshold))
  return jnp.sum(jnp.where(hard, losses, 0.0)) / jnp.maximum(jnp.sum(hard), 1)


def bootstrapped_cross_entropy(
  logits: Array, labels: Array, *, threshold: Array, rank: int
) -> Array:
  """Mean cross-entropy over the pixels whose label is improbable (bootstrapped cross-entropy).

      p_label < max(threshold, p_label of rank `rank` from below, counted from 0)

  Args:
    logits: [B,H,W,K] float32.
    labels: [B,H,W] integer, IGNORE where there is none.
    threshold: [] float32, in [0,1].
    rank: so many pixels of the whole batch count at least; the images of a batch as published.
  Returns: [] float32; zero, with zero gradient, if no pixel counts.
  """
  losses = pixel_cross_entropy(logits, labels)
  labelled = labels != IGNORE
  probability = jax.lax.stop_gradient(jnp.exp(-losses))
  last = jnp.minimum(rank, jnp.sum(labelled) - 1)
  border = threshold_below_rank(probability, labelled, jnp.maximum(last, 0))
  border = jnp.nextafter(border, jnp.float32(jnp.inf))
  hard = labelled & (probability < jnp.maximum(border, threshold))
  return jnp.sum(jnp.where(hard, losses, 0.0)) / jnp.maximum(jnp.sum(hard), 1)


@dataclasses.dataclass(frozen=True)
class SupervisedLoss:
  """How ground truth is turned into a loss.

  Attributes:
    ohem_threshold: probability below which a pixel is hard; None for plain cross-entropy.
    ohem_min_kept: at least so many pixels of the global batch.
    auxiliary_weight: factor on the auxiliary head's loss.
    class_weights: a factor for each class, or () for none; not together with ohem.
  """

  ohem_threshold: float | None = None
  ohem_min_kept: int = 100_000
  auxiliary_weight: float = 0.4
  class_weights: tuple[float, ...] = ()

  def __post_init__(self):
    if self.ohem_threshold is not None and self.class_weights:
      raise ValueError('ohem_threshold and class_weights are both set; choose one of them.')

  def __call__(
    self, logits: Logits, labels: Array, weights: Array | None = None, *,
    divisor: Array | None = None,
  ) -> Array:
    """The loss of low-resolution logits against labels [B,H,W], at the labels' resolution.

    weights, divisor: see cross_entropy; the divisor is that of a batch that the images are part of.
    OHEM has neither.
    """
    loss = self._of_head(logits.main, labels, weights, divisor)
    if logits.auxiliary is None:
      return loss
    return loss + self.auxiliary_weight * self._of_head(logits.auxiliary, labels, weights, divisor)

  def divisor(self, labels: Array) -> Array:
    """What the mean over a batch with these labels divides by."""
    return mean_divisor(labels, self._class_weights)

  @property
  def _class_weights(self) -> Array | None:
    return jnp.array(self.class_weights, jnp.float32) if self.class_weights else None

  def _of_head(
    self, logits_low: Array, labels: Array, weights: Array | None, divisor: Array | None
  ) -> Array:
    logits_full = resize_bilinear(logits_low, (labels.shape[1], labels.shape[2]))
    if self.ohem_threshold is not None:
      return ohem_cross_entropy(
        logits_full, labels, threshold=self.ohem_threshold, min_kept=self.ohem_min_kept
      )
    return cross_entropy(
      logits_full, labels, weights, class_weights=self._class_weights, divisor=divisor)


def group_weights(
  labels: Array, group: int, divisor: Callable[[Array], Array] = mean_divisor
) -> Array:
  """Weights with which a sum over a batch becomes the mean over groups of each group's mean.

  Args:
    labels: [B,H,W] integer.
    group: images in a group, a divisor of B.
    divisor: labels [group,H,W] -> what the group's mean divides by.
  Returns: [B,1,1] float32.
  """
  by_group = jax.vmap(divisor)(labels.reshape(-1, group, *labels.shape[1:]))
  return jnp.repeat(1 / (by_group * len(by_group)), group)[:, None, None]
