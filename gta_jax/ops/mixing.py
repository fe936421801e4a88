"""Strong augmentations that mix the images of a batch, CutMix, ClassMix, Cutout; and boxes."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gta_jax.ops.losses import IGNORE

Array = jax.Array

MIXINGS = ('none', 'cutmix', 'classmix', 'cutout', 'boxes')
PARTNERED = ('cutmix', 'classmix', 'boxes')  # with another image


def box_masks(key: Array, batch: int, size: tuple[int, int], *, area: float = 0.5) -> Array:
  """Random boxes of a given share of the image, true inside.

  The width is uniform between area and one times the image's, the height follows from the area
  (rounded to a pixel), the place is uniform.

  Args:
    key: PRNG key.
    batch: B.
    size: (H, W).
    area: share of the image, in (0,1].
  Returns: [B,H,W] bool.
  """
  height, width = size
  key_width, key_top, key_left = jax.random.split(key, 3)
  share = jax.random.uniform(key_width, (batch,), minval=area, maxval=1.0)
  box_width = jnp.clip(jnp.round(share * width), 1, width)
  box_height = jnp.clip(jnp.round(area * height * width / box_width), 1, height)
  top = jnp.floor(jax.random.uniform(key_top, (batch,)) * (height - box_height + 1))
  left = jnp.floor(jax.random.uniform(key_left, (batch,)) * (width - box_width + 1))
  return _inside(top, left, box_height, box_width, size)


def _inside(top: Array, left: Array, high: Array, wide: Array, size: Sequence[int]) -> Array:
  """[B] corners and sides of boxes in pixels -> [B,H,W], true within."""
  rows = jnp.arange(size[0])[None, :, None] - top[:, None, None]
  columns = jnp.arange(size[1])[None, None, :] - left[:, None, None]
  inside_rows = (rows >= 0) & (rows < high[:, None, None])
  return inside_rows & (columns >= 0) & (columns < wide[:, None, None])


def unimatch_boxes(
  key: Array, batch: int, size: Sequence[int], *, probability: float = 0.5,
  area: tuple[float, float] = (0.02, 0.4), ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Array:
  """The CutMix boxes of UniMatch, ST++ and CorrMatch: a box for some images, true inside.

  Their rule: an area a, uniform; then a ratio r of height to width, uniform, sides
  h = floor(sqrt(a r)) and w = floor(sqrt(a / r)), and a pixel for the corner, uniform; ratio and
  corner are drawn anew until the box fits. That is, given a,

      P(h, w, corner) ~ measure of the ratios with these sides, for each corner where it fits

  which is drawn here as it stands: the sides change only at the ratios a / n^2 and n^2 / a, so the
  stretches between them are weighed with their length times the number of corners. The mean box is
  a fifth of the image (0.208 of 321 x 321), as large and long ones rarely fit.

  Args:
    key: PRNG key.
    batch: B.
    size: (H, W).
    probability: that an image has a box.
    area: least and largest share of the image.
    ratio: least and largest height over width.
  Returns: [B,H,W] bool.
  Raises: ValueError if no box of the largest area fits for any ratio.
  """
  height, width = size
  tall, flat = area[1] * ratio[0] * width / height, area[1] / ratio[1] * height / width
  if max(tall, flat) > 1:
    raise ValueError(f'a box of {area[1]:g} of {height} x {width} pixels does not fit at any ratio '
                     f'from {ratio[0]:g} to {ratio[1]:g}; use images that are more nearly square.')
  keys = jax.random.split(key, 5)
  pixels = jax.random.uniform(
    keys[0], (batch, 1), minval=area[0], maxval=area[1]) * (height * width)
  rows, columns = jnp.arange(1, height + 1), jnp.arange(1, width + 1)
  ends = jnp.broadcast_to(jnp.array(ratio), (batch, 2))
  borders = jnp.concatenate([ends, pixels / columns ** 2, rows ** 2 / pixels], axis=1)
  borders = jnp.sort(jnp.clip(borders, *ratio), axis=1)
  middle = (borders[:, 1:] + borders[:, :-1]) / 2
  high, wide = jnp.floor(jnp.sqrt(pixels * middle)), jnp.floor(jnp.sqrt(pixels / middle))
  # A side of 0 pixels, of tiny images, leaves no box; its corner is on the image all the same.
  corners = (jnp.clip(height - high + 1, 0, height), jnp.clip(width - wide + 1, 0, width))
  weights = (borders[:, 1:] - borders[:, :-1]) * corners[0] * corners[1]
  chosen = jax.random.categorical(keys[1], jnp.log(weights), axis=1)[:, None]
  high, wide, down, across = (
    jnp.take_along_axis(x, chosen, axis=1)[:, 0] for x in (high, wide, *corners))
  top = jnp.floor(jax.random.uniform(keys[2], (batch,)) * down)
  left = jnp.floor(jax.random.uniform(keys[3], (batch,)) * across)
  there = jax.random.bernoulli(keys[4], probability, (batch, 1, 1))
  return there & _inside(top, left, high, wide, size)


def squares(key: Array, batch: int, size: tuple[int, int], *, side: int) -> Array:
  """A square around a random pixel of every image, cut at the border; [B,H,W] bool, true inside.

  Args:
    key: PRNG key.
    batch: B.
    size: (H, W).
    side: pixels.
  """
  top, left = (
    jnp.floor(jax.random.uniform(k, (batch,)) * length) - side // 2
    for k, length in zip(jax.random.split(key), size, strict=True))
  sides = jnp.full((batch,), side)
  return _inside(top, left, sides, sides, size)


def xor_boxes(
  key: Array, batch: int, size: tuple[int, int], *, boxes: int = 3,
  area: tuple[float, float] = (0.25, 0.5),
) -> Array:
  """Masks of several boxes whose overlaps cancel, as CutMix-Seg and CPS cut: true in an odd number.

  Each of n boxes has a share a of the image, uniform, then height a^u and width a^(1 - u) of the
  image's, u uniform in [0,1], both times 1 / sqrt(n) and rounded to a pixel, and a uniform place.

  Args:
    key: PRNG key.
    batch: B.
    size: (H, W).
    boxes: n.
    area: least and largest share a.
  Returns: [B,H,W] bool.
  """
  key_area, key_shape, key_top, key_left = jax.random.split(key, 4)
  shape = (boxes, batch)
  share = jax.random.uniform(key_area, shape, minval=area[0], maxval=area[1])
  high = share ** jax.random.uniform(key_shape, shape)
  high, wide = (jnp.round(side * boxes ** -0.5 * pixels)
                for side, pixels in zip((high, share / high), size, strict=True))
  top, left = (jnp.round(jax.random.uniform(k, shape) * (pixels - side))
               for k, side, pixels in zip((key_top, key_left), (high, wide), size, strict=True))
  inside = [_inside(*of_box, size) for of_box in zip(top, left, high, wide, strict=True)]
  return functools.reduce(jnp.logical_xor, inside)


def class_masks(key: Array, labels: Array, *, num_classes: int) -> Array:
  """For every image half of the classes present in it (rounded up), true on their pixels.

  Args:
    key: PRNG key.
    labels: [B,H,W] int32; IGNORE belongs to no class.
    num_classes: K.
  Returns: [B,H,W] bool.
  """
  batch = labels.shape[0]
  classes = jnp.arange(num_classes)
  present = jax.vmap(lambda x: jnp.isin(classes, x))(labels)
  order = jnp.where(present, jax.random.uniform(key, (batch, num_classes)), 2.0)
  rank = jnp.argsort(jnp.argsort(order, axis=-1), axis=-1)
  chosen = present & (rank < (jnp.sum(present, axis=-1, keepdims=True) + 1) // 2)
  of_pixel = jax.vmap(lambda c, x: c[jnp.where(x == IGNORE, 0, x)])(chosen, labels)
  return of_pixel & (labels != IGNORE)


def mix(
  key: Array,
  images: Array,
  labels: Array,
  confidence: Array,
  kept: Array,
  *,
  kind: str,
  num_classes: int,
  probability: float,
  group: int | None = None,
) -> tuple[Array, Array, Array, Array]:
  """Mixes every image with the next one, and all that is known of its pixels along with it.

  cutmix pastes a box of half the image's area from the next image; classmix keeps half of an
  image's own classes and takes the rest from the next; cutout blanks the box (image at the mean,
  no label). The batch as a whole is mixed or left as it is. boxes pastes UniMatch's boxes, into
  some of the images.

  Args:
    key: PRNG key.
    images: [B,H,W,3] normalised float.
    labels: [B,H,W] int32, IGNORE where there is none.
    confidence: [B,H,W] float32.
    kept: [B,H,W] bool.
    kind: one of MIXINGS.
    num_classes: K.
    probability: that the batch is mixed; boxes: that an image is.
    group: a divisor of B: the next image is that of so many neighbours, cyclically; None for B.
  Returns: images, labels, confidence and kept of the same shapes.
  """
  if kind not in MIXINGS:
    raise ValueError(f'mixing={kind!r} is unknown; use one of: {", ".join(MIXINGS)}.')
  if kind == 'none':
    return images, labels, confidence, kept
  key_mask, key_whether = jax.random.split(key)
  if kind == 'classmix':
    foreign = ~class_masks(key_mask, labels, num_classes=num_classes)
  elif kind == 'boxes':
    foreign = unimatch_boxes(
      key_mask, images.shape[0], (images.shape[1], images.shape[2]), probability=probability)
  else:
    foreign = box_masks(key_mask, images.shape[0], (images.shape[1], images.shape[2]))
  if kind != 'boxes':
    foreign &= jax.random.bernoulli(key_whether, probability)

  def of_map(x: Array, blank: float) -> Array:
    return paste(x, blank if kind == 'cutout' else next_images(x, group), foreign)

  return of_map(images, 0.0), of_map(labels, IGNORE), of_map(confidence, 0.0), of_map(kept, False)


def paste(x: Array, other: Array | float, inside: Array) -> Array:
  """[B,H,W] or [B,H,W,C] with the other's values where `inside` [B,H,W] is true, in x's dtype."""
  mask = inside if x.ndim == 3 else inside[..., None]
  return jnp.where(mask, other, x).astype(x.dtype)


def next_images(x: Array, group: int | None = None) -> Array:
  """Row i + 1 of [B,...] in the place of row i, cyclically within groups of so many rows."""
  if group in (None, len(x)):
    return jnp.roll(x, -1, axis=0)
  grouped = x.reshape(-1, group, *x.shape[1:])
  return jnp.roll(grouped, -1, axis=1).reshape(x.shape)
