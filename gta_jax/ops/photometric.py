"""Photometric augmentation of single images on the device: colour jitter, greyscale, blur."""

import jax
import jax.numpy as jnp

from gta_jax.ops.network import Array, Network

_LUMA = (0.299, 0.587, 0.114)


def augment(
  key: Array, images: Array, network: Network, *, jitter: float, greyscale: float, blur: float
) -> Array:
  """Applies each augmentation to each image with the given probability; 0 leaves it out.

  Args:
    key: PRNG key.
    images: [B,H,W,3] normalised float.
    network: whose normalisation the images have.
    jitter: probability of a random brightness, contrast and saturation, each by a factor from
      0.5 to 1.5.
    greyscale: probability of losing all colour.
    blur: probability of a Gaussian blur of 0.1 to 2 pixels deviation.
  Returns: [B,H,W,3] float32.
  """
  if not (jitter or greyscale or blur):
    return images
  mean, std = jnp.array(network.mean), jnp.array(network.std)
  rgb = images * std + mean
  operations = ((jitter, _jitter), (greyscale, _greyscale), (blur, _blur))
  for i, (probability, operation) in enumerate(operations):
    if probability:
      key_whether, key_how = jax.random.split(jax.random.fold_in(key, i))
      chosen = jax.random.bernoulli(key_whether, probability, (rgb.shape[0], 1, 1, 1))
      rgb = jnp.where(chosen, operation(key_how, rgb), rgb)
  return (rgb - mean) / std


def _grey(rgb: Array) -> Array:
  return jnp.sum(rgb * jnp.array(_LUMA), axis=-1, keepdims=True)


def _jitter(key: Array, rgb: Array) -> Array:
  factors = jax.random.uniform(key, (3, rgb.shape[0], 1, 1, 1), minval=0.5, maxval=1.5)
  brightness, contrast, saturation = factors
  rgb = jnp.clip(rgb * brightness, 0, 1)
  middle = jnp.mean(_grey(rgb), axis=(1, 2), keepdims=True)
  rgb = jnp.clip(middle + (rgb - middle) * contrast, 0, 1)
  grey = _grey(rgb)
  return jnp.clip(grey + (rgb - grey) * saturation, 0, 1)


def _greyscale(key: Array, rgb: Array) -> Array:
  del key
  return jnp.broadcast_to(_grey(rgb), rgb.shape)


def _blur(key: Array, rgb: Array, *, radius: int = 4) -> Array:
  deviation = jax.random.uniform(key, (rgb.shape[0], 1), minval=0.1, maxval=2.0)
  offsets = jnp.arange(-radius, radius + 1)
  kernel = jnp.exp(-0.5 * (offsets / deviation) ** 2)
  kernel = kernel / jnp.sum(kernel, axis=1, keepdims=True)
  # Shifted sums, edge pixels repeated: the kernel differs from image to image, a convolution's
  # does not.
  for axis in (1, 2):
    widths = [(0, 0)] * 4
    widths[axis] = (radius, radius)
    padded = jnp.pad(rgb, widths, mode='edge')
    length, weights = rgb.shape[axis], kernel[..., None, None, None]
    rgb = sum(
      weights[:, i] * jax.lax.slice_in_dim(padded, i, i + length, axis=axis)
      for i in range(2 * radius + 1)
    )
  return rgb
