"""Class activation maps in closed form, and their fusion with a decoder's logits (PseudoSeg)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

CALIBRATIONS = ('mean', 'sum')


def masked_mean(features: Array, counted: Array) -> Array:
  """[B,h,w,C] -> [B,C] float32, the mean over what counts [B,h,w]; zero where nothing does."""
  share = counted / jnp.maximum(jnp.sum(counted, axis=(1, 2), keepdims=True), 1)
  return jnp.sum(features.astype(jnp.float32) * share[..., None], axis=(1, 2))


def grad_cam(features: Array, kernel: Array, present: Array, counted: Array) -> Array:
  """Grad-CAM of a linear classifier on pooled features, each map divided by its maximum.

      M_c = relu(sum_k W_kc F_k) present_c / max

  For such a classifier d logit_c / d F_k is W_kc / (h w) everywhere, and the common factor cancels.

  Args:
    features: [B,h,w,C], those that are pooled.
    kernel: [C,K] of the classifier, or [B,C,K] with the dropout of each image.
    present: [B,K] bool, the image's classes.
    counted: [B,h,w] bool, false on padding.
  Returns: [B,h,w,K] float32 in [0,1], without a gradient; zero for a class that is not there.
  """
  features, kernel = jax.lax.stop_gradient((features.astype(jnp.float32), kernel))
  equation = 'bhwc,ck->bhwk' if kernel.ndim == 2 else 'bhwc,bck->bhwk'
  heat = jax.nn.relu(jnp.einsum(equation, features, kernel))
  heat = jnp.where(present[:, None, None] & counted[..., None], heat, 0.0)
  most = jnp.max(heat, axis=(1, 2), keepdims=True)
  return jnp.where(most > 0, heat / jnp.where(most > 0, most, 1.0), 0.0)


def calibrated_fusion(
  decoder_logits: Array, attention_logits: Array, counted: Array, *, temperature: float,
  calibration: str = 'mean',
) -> Array:
  """Soft labels from two kinds of logits, brought to one scale, averaged and sharpened.

      r = sqrt(mean of squares of all entries of both + 1e-8)
      q = (softmax(z_w / r) + softmax(z_a / r)) / 2        q <- q^(1/T) / sum_c q^(1/T)

  Args:
    decoder_logits, attention_logits: [B,h,w,K] float32.
    counted: [B,h,w] bool, the pixels whose entries are in the mean.
    temperature: T > 0.
    calibration: 'mean' of squares, or their 'sum'.
  Returns: [B,h,w,K] float32, without a gradient.
  """
  both = jax.lax.stop_gradient(jnp.stack([decoder_logits, attention_logits]))
  squares = jnp.sum(jnp.where(counted[..., None], jnp.square(both), 0.0))
  if calibration == 'mean':
    entries = 2 * both.shape[-1] * jnp.maximum(jnp.sum(counted), 1)
    squares = squares / entries
  q = jnp.mean(jax.nn.softmax(both / jnp.sqrt(squares + 1e-8)), axis=0)
  # Logarithms, as a power of a small probability may be zero for all classes but one.
  return jax.nn.softmax(jnp.log(jnp.maximum(q, jnp.finfo(jnp.float32).tiny)) / temperature)


def nearest(mask: Array, size: Sequence[int]) -> Array:
  """[B,H,W] at the size (h,w), corners aligned: the value of the nearest pixel."""
  for axis, (source, target) in enumerate(zip(mask.shape[1:], size, strict=True), start=1):
    step = (source - 1) / (target - 1) if target > 1 else 0.0
    mask = jnp.take(mask, np.floor(np.arange(target) * step + 0.5).astype(int), axis=axis)
  return mask
