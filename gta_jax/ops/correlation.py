"""Correlation maps, and labels that spread along them (CorrMatch, CVPR 2024)."""

import jax
import jax.numpy as jnp

from gta_jax.ops.resizing import resize_bilinear

Array = jax.Array

_NEVER = -1e9  # a score whose softmax is 0, and finite where a whole row has it


def correlation_maps(query: Array, key: Array, counted: Array) -> Array:
  """How every place of an image resembles every other.

      A_ij = softmax over j of g1_i . g2_j / sqrt(D)

  Args:
    query: [B,h,w,D] float32, g1.
    key: [B,h,w,D] float32, g2.
    counted: [B,h,w] bool; places that do not count are no column: A is 0 there.
  Returns: [B,N,N] float32 with N = h w; rows sum to one.
  """
  query, key = (x.reshape(len(x), -1, x.shape[-1]) for x in (query, key))
  scores = jnp.einsum('bid,bjd->bij', query, key) * key.shape[-1] ** -0.5
  return jax.nn.softmax(jnp.where(counted.reshape(len(counted), 1, -1), scores, _NEVER), axis=-1)


def correlation_logits(maps: Array, logits: Array, counted: Array) -> Array:
  """Logits that have spread along correlation maps; no gradient reaches the logits.

      z_j = sum_i logit_i A_ij

  The sum runs over the rows, so that its weights do not add up to one.

  Args:
    maps: [B,N,N], A.
    logits: [B,h,w,K] float32, N = h w.
    counted: [B,h,w] bool; logits of other places are left out.
  Returns: [B,h,w,K] float32.
  """
  logits = jax.lax.stop_gradient(logits) * counted[..., None]
  z = jnp.einsum('bik,bij->bjk', logits.reshape(len(logits), -1, logits.shape[-1]), maps)
  return z.reshape(logits.shape)


def region(row: Array, counted: Array) -> Array:
  """The pixels that lie above the middle between a map's least and largest value.

  Args:
    row: [B,h,w] float32, a row of A as a map.
    counted: [B,H,W] bool, the pixels that are looked at.
  Returns: [B,H,W] bool, false where not counted; empty where the map is flat.
  """
  _, height, width = counted.shape
  full = resize_bilinear(row[..., None], (height, width))[..., 0]
  low = jnp.min(full, axis=(1, 2), keepdims=True, where=counted, initial=jnp.inf)
  high = jnp.max(full, axis=(1, 2), keepdims=True, where=counted, initial=-jnp.inf)
  spread = jnp.where(high > low, high - low, 1.0)
  return counted & ((full - low) / spread > 0.5)


def spread_labels(
  labels: Array, confident: Array, rows: Array, *, counted: Array, blocked: Array,
  threshold: Array, num_classes: int,
) -> tuple[Array, Array]:
  """Gives whole regions the label of their confident majority, one region after the other.

  With q the confident pixels of a region r, all of r takes the most frequent label of q, and is
  kept, where |q| / |r| >= threshold and more than that share of q has the label. A later region
  sees the labels that earlier ones have changed.

  Args:
    labels: [B,H,W] int32 below num_classes.
    confident: [B,H,W] bool; who votes, whatever is relabelled.
    rows: [B,R,h,w] float32, rows of correlation maps, in this order.
    counted: [B,H,W] bool, where regions may lie (see region).
    blocked: [B,H,W] bool, pixels that belong to no region.
    threshold: [] float32 in [0,1].
    num_classes: K.
  Returns: labels, and kept [B,H,W] bool: all confident pixels and all of the regions taken.
  """
  classes = jnp.arange(num_classes)

  def visit(carry: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], None]:
    labels, kept = carry
    inside = region(row, counted) & ~blocked
    voters = inside & confident
    size, sure = (jnp.sum(x, axis=(1, 2), dtype=jnp.float32) for x in (inside, voters))
    votes = jnp.sum(
      voters[..., None] & (labels[..., None] == classes), axis=(1, 2), dtype=jnp.float32)
    agreed = (sure > 0) & (sure / jnp.maximum(size, 1) >= threshold) & (
      jnp.max(votes, axis=-1) / jnp.maximum(sure, 1) > threshold)
    inside &= agreed[:, None, None]
    winner = jnp.argmax(votes, axis=-1).astype(labels.dtype)[:, None, None]
    return (jnp.where(inside, winner, labels), kept | inside), None

  found, _ = jax.lax.scan(visit, (labels, confident), rows.swapaxes(0, 1))
  return found


def moved_threshold(
  threshold: Array, labels: Array, confidence: Array, valid: Array, *, decay: float,
  num_classes: int,
) -> Array:
  """The threshold after a step: it follows the mean over classes of their surest pixel.

      tau' = decay tau + (1 - decay) mean over predicted classes c of max_{i labelled c} kappa_i

  Args:
    threshold: [] float32, tau.
    labels: [B,H,W] int32, as predicted.
    confidence: [B,H,W] float32, kappa.
    valid: [B,H,W] bool; other pixels are left out.
    decay: in [0,1].
    num_classes: K.
  Returns: [] float32; tau itself if no pixel is valid.
  """
  of_class = valid[..., None] & (labels[..., None] == jnp.arange(num_classes))
  surest = jnp.max(jnp.where(of_class, confidence[..., None], 0.0), axis=(0, 1, 2))
  found = jnp.any(of_class, axis=(0, 1, 2))
  mean = jnp.sum(surest) / jnp.maximum(jnp.sum(found), 1)
  moved = decay * threshold + (1 - decay) * mean
  return jnp.where(jnp.any(found), moved, threshold).astype(threshold.dtype)
