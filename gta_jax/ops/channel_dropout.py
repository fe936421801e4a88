"""Dropout of whole channels of a backbone's stages, as methods perturb features."""

import jax
import jax.numpy as jnp

from gta_jax.ops.network import Stages

Array = jax.Array
Masks = tuple[Array, ...]


def channel_masks(key: Array, batch: int, widths: tuple[int, ...], *, rate: float = 0.5) -> Masks:
  """Independent masks of every stage and image (torch's Dropout2d).

  Args:
    key: PRNG key.
    batch: B.
    widths: channels C of each stage.
    rate: probability in [0,1) that a channel is dropped.
  Returns: [B,C] float32 for each stage: 0, or 1 / (1 - rate).
  """
  return tuple(
    jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, (batch, width)) / (1 - rate)
    for i, width in enumerate(widths))


def complementary_masks(
  key: Array, batch: int, widths: tuple[int, ...], *, undropped: float = 0.5
) -> Masks:
  """Masks of pairs of views, of which one keeps the channels that the other drops (UniMatch V2).

      M1 = 2 Bernoulli(0.5)        M2 = 2 - M1

  Stages of one width share a mask, as the taps of a transformer do; those of other widths have one
  of their own.

  Args:
    key: PRNG key.
    batch: B.
    widths: channels C of each stage.
    undropped: share of the pairs, chosen at random and rounded down, whose masks are one.
  Returns: [B,2,C] float32 for each stage.
  """
  key_whole, key_channels = jax.random.split(key)
  whole = jax.random.permutation(key_whole, batch) < int(undropped * batch)
  by_width = {}
  for width in widths:
    of_width = jax.random.fold_in(key_channels, width)
    first = 2.0 * jax.random.bernoulli(of_width, 0.5, (batch, width))
    first = jnp.where(whole[:, None], 1.0, first)
    by_width[width] = jnp.stack([first, 2.0 - first], axis=1)
  return tuple(by_width[width] for width in widths)


def dropped(stages: Stages, masks: Masks) -> Stages:
  """Stages [B,h,w,C] times masks [B,C], in the stages' dtype."""
  return tuple(
    stage * mask[:, None, None].astype(stage.dtype)
    for stage, mask in zip(stages, masks, strict=True))
