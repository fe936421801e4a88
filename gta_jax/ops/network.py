"""What the method knows of a network: two pure functions and the statistics of its input."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Params = dict[str, Any]
Variables = dict[str, Params]


class Logits(NamedTuple):
  """Class logits at the network's own, low resolution.

  main: [B,h,w,K] float32.
  auxiliary: [B,h',w',K] float32 of the head on stage 3, or None where there is none.
  """

  main: Array
  auxiliary: Array | None = None


@dataclasses.dataclass(frozen=True)
class Network:
  """A segmentation network as pure functions.

  `params` and `batch_stats` have the same top-level keys (backbone, decoder, classifier and
  perhaps auxiliary): every rule of the method is a choice of these keys.

  Attributes:
    init: (key, (height, width)) -> {'params', 'batch_stats'}.
    apply: (variables, images, *, train=False, dropout_key=None) -> (Logits, batch_stats).
      images are normalised float [B,H,W,3]. With train=True the batch's own statistics are used
      and the returned batch_stats have moved towards them; without a dropout_key nothing is
      dropped. With train=False batch_stats are returned as they came.
    mean: RGB mean of the images that the weights were trained with, in [0,1].
    std: RGB standard deviation of the same.
  """

  init: Callable[[Array, tuple[int, int]], Variables]
  apply: Callable[..., tuple[Logits, Params]]
  mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
  std: tuple[float, float, float] = (0.229, 0.224, 0.225)

  def normalize(self, images: Array) -> Array:
    """uint8 [B,H,W,3] -> float32 of zero mean and unit deviation."""
    return (images.astype(jnp.float32) / 255.0 - jnp.array(self.mean)) / jnp.array(self.std)
