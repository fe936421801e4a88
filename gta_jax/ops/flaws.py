"""Flaw maps of GCT: what the detector's output and its target go through, and who follows whom."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_CONTRAST = 1e-9  # added to the range that a map is divided by


def odd_size(size: float) -> int:
  """A kernel's size: whole, at least 1, made odd by adding one."""
  return max(int(size), 1) // 2 * 2 + 1


def blur_matrix(pixels: int, size: int) -> np.ndarray:
  """The [pixels, pixels] float32 matrix of a Gaussian of `size` taps, cut off and normalised.

  Its deviation is 0.3 ((size - 1) / 2 - 1) + 0.8; the map goes on beyond its edges by reflection
  that leaves the edge itself out.
  """
  half = size // 2
  deviation = 0.3 * ((size - 1) / 2 - 1) + 0.8
  taps = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * deviation**2))
  sources = np.pad(np.arange(pixels), half, mode='reflect')
  matrix = np.zeros((pixels, pixels))
  for tap, weight in enumerate(taps / taps.sum()):
    np.add.at(matrix, (np.arange(pixels), sources[tap:tap + pixels]), weight)
  return matrix.astype(np.float32)


def blur(maps: Array, size: int) -> Array:
  """[B,H,W] with a Gaussian of size x size taps, as two matrix products; see blur_matrix."""
  rows, columns = (jnp.asarray(blur_matrix(n, size), maps.dtype) for n in maps.shape[1:])
  highest = jax.lax.Precision.HIGHEST
  maps = jnp.einsum('Hh,bhw->bHw', rows, maps, precision=highest)
  return jnp.einsum('Ww,bhw->bhW', columns, maps, precision=highest)


def dilate(maps: Array) -> Array:
  """[B,H,W]: the largest of 3x3 values; a reflected edge adds no value of its own."""
  return jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 3, 3), (1, 1, 1), 'SAME')


def handle_flaw(
  flaw: Array, valid: Array, *, size: int, least: float = 0.1, unsure: str = 'as_coded'
) -> Array:
  """The detector's output made comparable between two networks, g of the method.

      g = blur(max(F, 0));  0 where the image's maximum is <= least;  (g - min) / (max - min + 1e-9)

  Minimum and maximum are those of an image before it was set to 0.

  Args:
    flaw: [B,H,W] float32.
    valid: [B,H,W] bool; the rest is 0 before the blur and in neither minimum nor maximum.
    size: odd number of taps of the blur.
    least: of an image's maximum.
    unsure: 'as_coded', where an image that was set to 0 becomes a constant <= 0, or 'zero'.
  Returns: [B,H,W] float32, in [0,1] on valid pixels of images that were not set to 0.
  """
  blurred = blur(jnp.where(valid, jnp.maximum(flaw, 0), 0.0), size)
  low = jnp.min(blurred, (1, 2), keepdims=True, where=valid, initial=jnp.inf)
  high = jnp.max(blurred, (1, 2), keepdims=True, where=valid, initial=-jnp.inf)
  low, high = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (low, high))
  sure = high > least
  scaled = (jnp.where(sure, blurred, 0.0) - low) / (high - low + _CONTRAST)
  return scaled if unsure == 'as_coded' else jnp.where(sure, scaled, 0.0)


def flaw_target(probabilities: Array, labels: Array, *, sizes: tuple[int, int]) -> Array:
  """What the detector is to say of a prediction, T of the method.

      d = 1/2 sum_c |onehot(y) - p|;  T = scaled(blur(dilate(blur(d, sizes[0])), sizes[1]))

  scaled as in handle_flaw. A pixel without a label has no one-hot class, so that d is 1/2 there.

  Args:
    probabilities: [B,H,W,K] float32.
    labels: [B,H,W] integer, 255 where there is none.
    sizes: odd numbers of taps of the two blurs.
  Returns: [B,H,W] float32 in [0,1].
  """
  classes = jnp.arange(probabilities.shape[-1], dtype=labels.dtype)
  onehot = (labels[..., None] == classes).astype(jnp.float32)
  wrong = 0.5 * jnp.sum(jnp.abs(onehot - probabilities), axis=-1)
  found = blur(dilate(blur(wrong, sizes[0])), sizes[1])
  low, high = (f(found, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
  return (found - low) / (high - low + _CONTRAST)


def who_follows(one: Array, other: Array, *, threshold: float) -> tuple[Array, Array, Array]:
  """Which of two networks keeps its own prediction, pixel by pixel.

  Flaws above the threshold count as 1. A network keeps its own where the other's flaw is not the
  smaller one, so that both do where the flaws are equal.

  Args:
    one, other: [B,H,W] handled flaws of the two.
    threshold: xi.
  Returns: bool maps: where the first keeps its own, where the second does, and where the flaws of
    both are above the threshold.
  """
  both_bad = (one > threshold) & (other > threshold)
  one, other = (jnp.where(flaw > threshold, 1.0, flaw) for flaw in (one, other))
  return other >= one, one >= other, both_bad
