"""Pasting by class: whole classes of labelled images, boxes around a class of unlabelled ones."""

import jax
import jax.numpy as jnp

from gta_jax.ops.components import bounding_boxes, choose_component
from gta_jax.ops.losses import IGNORE

Array = jax.Array

REGIONS = ('component', 'class_box')


def copy_paste(
  images: Array, labels: Array, source_images: Array, source_labels: Array, classes: Array
) -> tuple[Array, Array]:
  """Pastes all pixels of the given classes from other labelled images.

  Args:
    images, source_images: [B,H,W,3].
    labels, source_labels: [B,H,W] integer; IGNORE is never pasted.
    classes: [B,K] bool, those that are pasted into each image.
  Returns: images and labels of the same dtypes.
  """
  known = source_labels != IGNORE
  index = jnp.where(known, source_labels, 0).astype(jnp.int32)
  pasted = known & jax.vmap(lambda chosen, label: chosen[label])(classes, index)
  return (jnp.where(pasted[..., None], source_images, images),
          jnp.where(pasted, source_labels, labels))


def choose_donors(key: Array, holds: Array, classes: Array) -> Array:
  """For every image another one of the batch that holds a class; any other where none does.

  Args:
    key: PRNG key.
    holds: [B,K] bool, which classes an image holds.
    classes: [B] int32, the class that is looked for.
  Returns: [B] int32 in [0,B), never the image's own number; B must be two or more.
  """
  others = ~jnp.eye(len(holds), dtype=bool)
  eligible = holds[:, classes].T & others
  eligible = jnp.where(jnp.any(eligible, axis=1, keepdims=True), eligible, others)
  return jax.random.categorical(key, jnp.where(eligible, 0.0, -jnp.inf)).astype(jnp.int32)


def half_boxes(key: Array, batch: int, size: tuple[int, int]) -> Array:
  """Random boxes of half the image: height H 0.5^u with u uniform in [0,1), place uniform.

  Returns: [B,H,W] bool, true inside; sides are rounded to a pixel.
  """
  height, width = size
  share = 0.5 ** jax.random.uniform(jax.random.fold_in(key, 0), (batch,))
  inside = []
  for i, (length, exact) in enumerate(((height, height * share), (width, 0.5 * width / share))):
    side = jnp.clip(jnp.round(exact), 1, length)
    place = jax.random.uniform(jax.random.fold_in(key, 1 + i), (batch,))
    offset = jnp.arange(length) - jnp.floor(place * (length - side + 1))[:, None]
    inside.append((offset >= 0) & (offset < side[:, None]))
  return inside[0][:, :, None] & inside[1][:, None, :]


def class_boxes(key: Array, mask: Array, *, region: str, area: float) -> Array:
  """A box around a class in every image, or one at random where there is too little of it.

  Args:
    key: PRNG key.
    mask: [B,H,W] bool, the pixels of the class.
    region: 'component', around one of its components; 'class_box', around all of it.
    area: share of the image that the component, or the class, must have more than.
  Returns: [B,H,W] bool, true inside.
  """
  key_component, key_box = jax.random.split(key)
  batch, height, width = mask.shape
  least = area * height * width
  if region == 'component':
    mask = choose_component(mask, jax.random.uniform(key_component, mask.shape), least=least)
  else:
    mask = mask & (jnp.sum(mask, axis=(1, 2), keepdims=True) > least)
  found = jnp.any(mask, axis=(1, 2), keepdims=True)
  return jnp.where(found, bounding_boxes(mask), half_boxes(key_box, batch, (height, width)))


def paste_boxes(donor: Array, box: Array, *arrays: Array) -> tuple[Array, ...]:
  """Arrays [B,H,W] or [B,H,W,C] with the values of image donor[i] inside of box i."""
  return tuple(
    jnp.where(box[..., None] if x.ndim == 4 else box, x[donor], x) for x in arrays)
