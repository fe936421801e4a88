"""CCT's seven perturbations of features, by name; their mathematics is gta_jax/ops's."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gta_jax.ops.feature_perturbations import (
  adversarial_as_shipped,
  adversarial_direction,
  channel_dropout,
  component_boxes,
  cut_out,
  weak_activations,
)
from gta_jax.ops.network import Array
from gta_jax.ops.resizing import resize_nearest

KINDS = ('vat', 'dropout', 'guided_cutout', 'context_masking', 'object_masking', 'feature_drop',
         'feature_noise')
NEED_BACKGROUND = ('guided_cutout', 'context_masking', 'object_masking')
COMPONENTS = 8  # of an image's foreground, from which guided cutout erases
CONTOUR = 50  # pixels of border, at the image's size, that such a component must exceed


class Seen(NamedTuple):
  """What perturbations know of unlabelled images, at the features' size; constants.

  features: [B,h,w,F] float32. valid, foreground: [B,h,w] bool. boxes: [B,N,4] of the foreground.
  numbers: [B] int32, the images' in the batch.
  """

  features: Array
  valid: Array
  foreground: Array
  boxes: Array
  numbers: Array


def see(features: Array, logits: Array, valid: Array, numbers: Array) -> Seen:
  """Foreground, where the main decoder says another class than 0, and its components' boxes.

  Args:
    features: [B,h,w,F] float32.
    logits: [B,H,W,K] of the main decoder; valid: [B,H,W] bool; numbers: [B] int32.
  """
  size = features.shape[1:3]
  low_valid = resize_nearest(valid, size)
  foreground = low_valid & resize_nearest(jnp.argmax(logits, axis=-1) != 0, size)
  boxes = component_boxes(
    foreground, count=COMPONENTS, least=CONTOUR * size[0] / valid.shape[1])
  return Seen(jax.lax.stop_gradient(features), low_valid, foreground, boxes, numbers)


def perturbation(
  kind: str, key: Array, seen: Seen, decode: Callable[[Array], Array], *, radius: float,
  as_shipped: bool = False,
) -> tuple[Array, Array]:
  """What features are multiplied by, and what is added: constants that broadcast to [B,h,w,F].

      dropout          whole channels, p = 1/2, of each image
      feature_noise    f (1 + n), n ~ U(-.3, .3) of [h,w,F], one draw for the batch
      feature_drop     keeps where mean_c f < g max(mean_c f), g ~ U(.7, .9) one draw for the batch;
                       all of an image whose largest mean is below 0 (no ReLU before the features)
      guided_cutout    a box of .4 x .4 of the box around a component of the foreground, in whole
                       cells, erased: nothing of a box under three cells high or wide
      context_masking  keeps the foreground
      object_masking   keeps the background
      vat              plus the adversarial direction of this decoder

  Args:
    kind: one of KINDS.
    key: of this decoder; every image has one of its own from it.
    seen: the images.
    decode: features -> logits of this decoder, with constant parameters.
    radius: of vat, in each image.
    as_shipped: whether vat takes the published code's direction.
  """
  features, nothing = seen.features, jnp.float32(0)
  shape = features.shape[1:]
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(seen.numbers)
  if kind == 'vat':
    drawn = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-0.5, maxval=0.5))(keys)
    direction = adversarial_as_shipped if as_shipped else adversarial_direction
    added = direction(decode, features, drawn, seen.valid, radius=radius)
    return jnp.float32(1), jax.lax.stop_gradient(added)
  if kind == 'dropout':
    return channel_dropout(keys, shape[-1])[:, None, None], nothing
  if kind == 'feature_noise':
    return 1 + jax.random.uniform(key, shape, minval=-0.3, maxval=0.3), nothing
  if kind == 'feature_drop':
    share = jax.random.uniform(key, minval=0.7, maxval=0.9)
    kept = weak_activations(features, seen.valid, share)
  elif kind == 'guided_cutout':
    kept = cut_out(keys, seen.boxes, shape[:2])
  else:
    kept = seen.foreground if kind == 'context_masking' else ~seen.foreground
  return kept[..., None].astype(features.dtype), nothing
