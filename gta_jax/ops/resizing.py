"""Bilinear resizing with aligned corners, as two matrix products."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def interpolation_matrix(target: int, source: int) -> np.ndarray:
  """The [target, source] float32 weights of linear interpolation with aligned corners.

  Output i lies at i (source - 1) / (target - 1); a single output lies at 0, as in torch.
  """
  position = np.arange(target) * ((source - 1) / (target - 1) if target > 1 else 0.0)
  low = np.minimum(position.astype(np.int64), max(source - 2, 0))
  fraction = position - low
  matrix = np.zeros((target, source))
  rows = np.arange(target)
  matrix[rows, low] += 1 - fraction
  matrix[rows, np.minimum(low + 1, source - 1)] += fraction
  return matrix.astype(np.float32)


def resize_bilinear(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """Resizes [B,h,w,C] to [B,H,W,C] for size (H,W), corners aligned, in x's dtype.

  The same as torch's interpolate(mode='bilinear', align_corners=True).
  """
  (height, width), (target_height, target_width) = x.shape[1:3], size
  if height != target_height:
    rows = jnp.asarray(interpolation_matrix(target_height, height), x.dtype)
    x = jnp.einsum('Hh,bhwc->bHwc', rows, x, precision=jax.lax.Precision.HIGHEST)
  if width != target_width:
    columns = jnp.asarray(interpolation_matrix(target_width, width), x.dtype)
    x = jnp.einsum('Ww,bhwc->bhWc', columns, x, precision=jax.lax.Precision.HIGHEST)
  return x


def resize_nearest(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """Picks [B,h,w,...] from [B,H,W,...] for size (h,w): row i is row floor(i H / h), as in torch."""
  rows, columns = (np.arange(n) * of // n for n, of in zip(size, x.shape[1:3], strict=True))
  return x[:, rows][:, :, columns]
