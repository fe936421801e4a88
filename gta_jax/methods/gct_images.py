"""GCT's images, labelled and unlabelled ones side by side, and their way through a network."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Tools
from gta_jax.methods.objectives import unlabelled_images
from gta_jax.ops.joining import join, separate
from gta_jax.ops.network import Array, Params
from gta_jax.ops.resizing import resize_bilinear

Parts = tuple[Array, ...]  # of the labelled images and of the unlabelled ones


class Images(NamedTuple):
  """x of the equations, in two parts.

  images: [B,H,W,3] normalised float each. valid: [B,H,W] bool each, true on all labelled images.
  labels: [B,H,W] int32 of the labelled part.
  """

  images: Parts
  valid: Parts
  labels: Array

  @property
  def size(self) -> tuple[int, int]:
    _, height, width = self.labels.shape
    return height, width


def read_images(tools: Tools, batches: Mapping[str, Batch]) -> Images:
  """The images of a step, normalised."""
  labelled, unlabelled = batches['labelled'], batches['unlabelled']
  labels = labelled['label'].astype(jnp.int32)
  images = tools.network.normalize(labelled['image']), unlabelled_images(tools, unlabelled)
  return Images(images, (jnp.ones(labels.shape, bool), unlabelled['valid']), labels)


def probabilities(parts: Parts, size: tuple[int, int]) -> Parts:
  """Of low-resolution logits, at the images' size."""
  return tuple(jax.nn.softmax(resize_bilinear(logits, size)) for logits in parts)


def in_passes(
  apply: Callable[[Params, Array, int], tuple[Any, Params]], stats: Params, parts: Parts, *,
  joint: bool,
) -> tuple[tuple[Any, ...], Params]:
  """Outputs for each part, of one pass over all of them or of a pass each.

  Args:
    apply: (running statistics, part, number of the pass) -> (output, running statistics
      afterwards); output is a tree of [B,...].
    stats: before the first pass.
    parts: [B,...] each.
    joint: whether the parts are one batch.
  """
  if joint:
    output, stats = apply(stats, join(*parts), 0)
    return separate(output, *map(len, parts)), stats
  found = []
  for number, part in enumerate(parts):
    output, stats = apply(stats, part, number)
    found.append(output)
  return tuple(found), stats


def shares(x: Images, own_l: Array, own_r: Array, both_bad: Array) -> Metrics:
  """How many of the pixels follow the other network, and where both networks are bad."""
  valid = join(*x.valid)
  pixels = jnp.maximum(jnp.sum(valid), 1)
  return {name: jnp.sum(valid & where) / pixels for name, where in {
    'student_follows_share': ~own_l, 'assistant_follows_share': ~own_r,
    'both_flawed_share': both_bad}.items()}
