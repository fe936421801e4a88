"""Pseudo-labels, their threshold and their weights (Eq. 1, 2 and 6)."""

import jax
import jax.numpy as jnp

from gta_jax.ops.order_statistics import threshold_below_rank

Array = jax.Array


def pseudo_labels(probabilities: Array) -> tuple[Array, Array]:
  """Labels every pixel with its most probable class (Eq. 1).

      y_ij = argmax_k p_ijk        c_ij = max_k p_ijk

  Args:
    probabilities: [...,K] float32, the teacher's class probabilities.
  Returns: labels [...] int32 and confidence [...] float32; no gradient passes through either.
  """
  probabilities = jax.lax.stop_gradient(probabilities)
  labels = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)
  return labels, jnp.max(probabilities, axis=-1)


def confidence_threshold(
  confidence: Array, valid: Array, *, drop_fraction: float, rule: str = 'rank'
) -> Array:
  """The threshold gamma_t that drops the given share of the least confident pixels (Eq. 2).

  A pixel is kept if its confidence is strictly above the threshold. Of n valid pixels exactly
  floor(drop_fraction n) are dropped when their confidences differ. Pixels tied at the border are
  all kept: a teacher that is sure everywhere (confidence 1) still teaches.

  Args:
    confidence: [B,H,W] float32 in [0,1].
    valid: [B,H,W] bool, false on padding.
    drop_fraction: in [0,1]; the paper drops 0.2.
    rule: 'rank' as above. 'percentile' as np.percentile and `<=` do it in the published code: of n
      valid pixels floor(drop_fraction (n - 1)) + 1 are dropped, and all that are tied with the last
      of them, be it all there are.
  Returns: [] float32, at most 1; -1 if nothing is to be dropped and some confidence is 0.
  """
  if not 0 <= drop_fraction <= 1:
    raise ValueError(f'drop_fraction={drop_fraction} is not a share; use a value from 0 to 1.')
  if rule not in ('rank', 'percentile'):
    raise ValueError(f'rule={rule!r} is unknown; use one of: rank, percentile.')
  pixels = jnp.sum(valid, dtype=jnp.int32)
  if rule == 'percentile':
    rank = jnp.floor(jnp.float32(drop_fraction) * (pixels - 1).astype(jnp.float32))
    below = threshold_below_rank(confidence, valid, jnp.maximum(rank, 0).astype(jnp.int32))
    # The value of that rank itself: the first float above all that leave it out. -1 leaves out 0.
    return jnp.where(below < 0, 0.0, jnp.nextafter(below, jnp.float32(jnp.inf)))
  # float32 holds products up to 2^24 exactly; a larger batch may be off by its last bit (1e-7).
  rank = jnp.floor(jnp.float32(drop_fraction) * pixels.astype(jnp.float32)).astype(jnp.int32)
  return jnp.minimum(threshold_below_rank(confidence, valid, rank), 1.0)


def confidence_weights(
  confidence: Array,
  kept: Array,
  labelled: Array | None = None,
  *,
  smoothing: float,
  normalizer: str = 'kept',
) -> Array:
  """Re-weights kept pixels by Laplace-smoothed confidence (Eq. 6).

      w_ij = (c_ij + tau) k_ij / sum((c + tau) k) * sum(k)

  Args:
    confidence: [B,H,W] float32 in [0,1], the teacher's largest class probability.
    kept: [B,H,W] bool, above the threshold and not ignored.
    labelled: [B,H,W] bool, those that had a label before the threshold; None for all.
    smoothing: tau >= 0; the paper uses 1.
    normalizer: 'kept' as in the paper. 'all' as in the published code, whose lower sum also runs
      over the dropped pixels (not the ignored ones) as if their confidence were 0, so that weights
      average below one.
  Returns: [B,H,W] float32, zero where dropped, mean one over kept pixels (normalizer='kept');
    all zero if nothing is kept.
  """
  smoothed = jnp.where(kept, confidence + smoothing, 0.0)
  total = jnp.sum(smoothed)
  if normalizer == 'all':
    dropped = ~kept if labelled is None else labelled & ~kept
    total = total + smoothing * jnp.sum(dropped)
  elif normalizer != 'kept':
    raise ValueError(f'normalizer={normalizer!r} is unknown; use one of: kept, all.')
  return smoothed * (jnp.sum(kept) / jnp.maximum(total, jnp.finfo(jnp.float32).tiny))


def entropy(probabilities: Array) -> Array:
  """-sum_k p_k log(p_k + 1e-10) of every pixel: [...,K] float32 -> [...] float32, not negative."""
  total = jnp.sum(probabilities * jnp.log(probabilities + 1e-10), axis=-1)
  return jnp.abs(jnp.minimum(total, 0.0))  # Neither rounding's negatives nor -0 have a rank.
