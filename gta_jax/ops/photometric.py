"""Photometric augmentation of single images on the device: colour jitter, greyscale, blur."""

import functools

import jax
import jax.numpy as jnp

from gta_jax.ops.network import Array, Network

_LUMA = (0.299, 0.587, 0.114)


def strong_view(
  key: Array, images: Array, network: Network, *, jitter: float = 0.8, greyscale: float = 0.2,
  blur: float = 0.5, hue: float = 0.25,
) -> Array:
  """The strong photometric augmentation of FixMatch for segmentation, ST++ and UniMatch.

  `augment` with their figures: jitter with a hue shift for 80 % of the images, then greyscale for
  20 %, then a blur for 50 %.

  Args: see augment.
  Returns: [B,H,W,3] float32, of the same places as `images`.
  """
  return augment(key, images, network, jitter=jitter, greyscale=greyscale, blur=blur, hue=hue)


def augment(
  key: Array, images: Array, network: Network, *, jitter: float, greyscale: float, blur: float,
  hue: float = 0.0, brightness: str = 'factor',
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
    hue: largest shift of the jitter's hue, up to 0.5, in turns of the colour circle. Above 0 each
      image has its four changes in a random order of its own, as in torchvision; at 0 there are
      three, in the order above.
    brightness: with a hue, 'factor' from 0.5 to 1.5, or 'offset' from -0.5 to 0.5 of the range.
  Returns: [B,H,W,3] float32.
  """
  if not (jitter or greyscale or blur):
    return images
  mean, std = jnp.array(network.mean), jnp.array(network.std)
  rgb = images * std + mean
  of_colour = functools.partial(
    _jitter_with_hue, largest=hue, brightness=brightness) if hue else _jitter
  operations = ((jitter, of_colour), (greyscale, _greyscale), (blur, _blur))
  for i, (probability, operation) in enumerate(operations):
    if probability:
      key_whether, key_how = jax.random.split(jax.random.fold_in(key, i))
      chosen = jax.random.bernoulli(key_whether, probability, (rgb.shape[0], 1, 1, 1))
      rgb = jnp.where(chosen, operation(key_how, rgb), rgb)
  return (rgb - mean) / std


def _grey(rgb: Array) -> Array:
  return jnp.sum(rgb * jnp.array(_LUMA), axis=-1, keepdims=True)


def _jitter(key: Array, rgb: Array) -> Array:
  brightness, contrast, saturation = jax.random.uniform(
    key, (3, rgb.shape[0], 1, 1, 1), minval=0.5, maxval=1.5)
  return _saturate(_contrast(_brighten(rgb, brightness), contrast), saturation)


def _brighten(rgb: Array, factor: Array) -> Array:
  return jnp.clip(rgb * factor, 0, 1)


def _shift_brightness(rgb: Array, factor: Array) -> Array:
  return jnp.clip(rgb + factor - 1, 0, 1)


def _contrast(rgb: Array, factor: Array) -> Array:
  middle = jnp.mean(_grey(rgb), axis=(1, 2), keepdims=True)
  return jnp.clip(middle + (rgb - middle) * factor, 0, 1)


def _saturate(rgb: Array, factor: Array) -> Array:
  grey = _grey(rgb)
  return jnp.clip(grey + (rgb - grey) * factor, 0, 1)


def _shift_hue(rgb: Array, turns: Array) -> Array:
  """Hue plus so many turns, at the same value and chroma: to the HSV hexagon and back."""
  red, green, blue = (rgb[..., i] for i in range(3))
  value, chroma = jnp.max(rgb, axis=-1), jnp.ptp(rgb, axis=-1)
  safe = jnp.where(chroma > 0, chroma, 1.0)
  sixths = jnp.where(
    (red >= green) & (red >= blue), (green - blue) / safe,
    jnp.where(green >= blue, 2 + (blue - red) / safe, 4 + (red - green) / safe))
  # Channel n is value - chroma where its distance round the hexagon is at most 1 from the hue's
  # opposite, and rises linearly beside it.
  place = (jnp.array([5.0, 3.0, 1.0]) + sixths[..., None] + 6 * turns) % 6
  below = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
  return value[..., None] - chroma[..., None] * below


def _jitter_with_hue(
  key: Array, rgb: Array, *, largest: float, brightness: str = 'factor'
) -> Array:
  """Brightness, contrast, saturation and hue, in an order of its own for each image."""
  batch = rgb.shape[0]
  key_factors, key_hue, key_order = jax.random.split(key, 3)
  factors = jax.random.uniform(key_factors, (3, batch, 1, 1, 1), minval=0.5, maxval=1.5)
  turns = jax.random.uniform(key_hue, (batch, 1, 1, 1), minval=-largest, maxval=largest)
  order = jnp.argsort(jax.random.uniform(key_order, (batch, 4)), axis=1)
  brighten = _shift_brightness if brightness == 'offset' else _brighten
  changes = ((brighten, factors[0]), (_contrast, factors[1]), (_saturate, factors[2]),
             (_shift_hue, turns))
  for turn in range(4):
    # All four are computed and one of them is taken: a batch has images at each of them.
    now = order[:, turn, None, None, None]
    changed = [change(rgb, amount) for change, amount in changes]
    rgb = jnp.select([now == i for i in range(4)], changed)
  return rgb


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
      (weights[:, i] * jax.lax.slice_in_dim(padded, i, i + length, axis=axis)
       for i in range(2 * radius + 1)),
      start=jnp.zeros_like(rgb))
  return rgb
