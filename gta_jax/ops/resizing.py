"""Resizing as two matrix products: bilinear with aligned corners, and bicubic as torch's."""

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


def bicubic_matrix(
  target: int, source: int, *, scale: float | None = None, antialias: bool = False
) -> np.ndarray:
  """The [target, source] float32 weights of bicubic interpolation with half-pixel centres.

  Output i lies at (i + 1/2) / scale - 1/2. The same as torch's interpolate(mode='bicubic',
  align_corners=False) with scale_factor=scale, or with size=target for the default scale.

  Args:
    target: outputs.
    source: inputs.
    scale: outputs an input; target / source by default.
    antialias: widen the filter when shrinking. As in torch it is another one then, of Keys'
      a = -1/2 instead of -3/4, and weights beyond the border are left out, not clamped to it.
  """
  scale = target / source if scale is None else scale
  position = (np.arange(target)[:, None] + 0.5) / scale - 0.5
  if antialias:
    matrix = _cubic((np.arange(source) - position) * min(scale, 1.0), -0.5)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)
  matrix = np.zeros((target, source))
  for tap in range(-1, 3):
    inputs = np.floor(position).astype(np.int64) + tap
    np.add.at(matrix, (np.arange(target)[:, None], np.clip(inputs, 0, source - 1)),
              _cubic(inputs - position, -0.75))
  return matrix.astype(np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
  """Keys' cubic convolution kernel."""
  x = np.abs(distance)
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


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
