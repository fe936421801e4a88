"""Strong augmentations that mix the images of a batch: CutMix, ClassMix, Cutout."""

import jax
import jax.numpy as jnp

from gta_jax.ops.losses import IGNORE

Array = jax.Array

MIXINGS = ('none', 'cutmix', 'classmix', 'cutout')


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
  rows = jnp.arange(height)[None, :, None] - top[:, None, None]
  columns = jnp.arange(width)[None, None, :] - left[:, None, None]
  inside_rows = (rows >= 0) & (rows < box_height[:, None, None])
  return inside_rows & (columns >= 0) & (columns < box_width[:, None, None])


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
  no label). The batch as a whole is mixed or left as it is.

  Args:
    key: PRNG key.
    images: [B,H,W,3] normalised float.
    labels: [B,H,W] int32, IGNORE where there is none.
    confidence: [B,H,W] float32.
    kept: [B,H,W] bool.
    kind: one of MIXINGS.
    num_classes: K.
    probability: that the batch is mixed.
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
  else:
    foreign = box_masks(key_mask, images.shape[0], (images.shape[1], images.shape[2]))
  foreign &= jax.random.bernoulli(key_whether, probability)

  def paste(x: Array, blank: float) -> Array:
    other = blank if kind == 'cutout' else next_images(x, group)
    mask = foreign if x.ndim == 3 else foreign[..., None]
    return jnp.where(mask, other, x).astype(x.dtype)

  return paste(images, 0.0), paste(labels, IGNORE), paste(confidence, 0.0), paste(kept, False)


def next_images(x: Array, group: int | None = None) -> Array:
  """Row i + 1 of [B,...] in the place of row i, cyclically within groups of so many rows."""
  if group in (None, len(x)):
    return jnp.roll(x, -1, axis=0)
  grouped = x.reshape(-1, group, *x.shape[1:])
  return jnp.roll(grouped, -1, axis=1).reshape(x.shape)
