"""What methods and evaluation know of a network: pure functions, and its input's statistics."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Params = dict[str, Any]
Variables = dict[str, Params]
Stages = tuple[Array, ...]


class Logits(NamedTuple):
  """Class logits at the network's own, low resolution.

  main: [B,h,w,K] float32.
  auxiliary: [B,h',w',K] float32 of the head on stage 3, or None where there is none.
  """

  main: Array
  auxiliary: Array | None = None


class Decoded(NamedTuple):
  """What a decoder makes of a backbone's features.

  logits: of the classifier, and of the auxiliary head where there is one.
  features: [B,h,w,D], the decoder's, which the classifier and most further heads read.
  """

  logits: Logits
  features: Array


@dataclasses.dataclass(frozen=True)
class Network:
  """A segmentation network as pure functions.

  `params` and `batch_stats` have the same top-level keys (backbone, decoder, classifier, perhaps
  auxiliary, and those of a method's further heads): every rule of a method is a choice of these
  keys. All functions but `init` take train=False and dropout_key=None. With train=True the batch's
  own statistics are used and the returned batch_stats have moved towards them; without a
  dropout_key nothing is dropped. With train=False batch_stats are returned as they came.

  Attributes:
    init: (key, (height, width)) -> {'params', 'batch_stats'}.
    encode: (variables, images) -> (stages, batch_stats). images are normalised float [B,H,W,3];
      stages are the backbone's features [B,h,w,C], from fine to coarse.
    decode: (variables, stages) -> (Decoded, batch_stats).
    head: (variables, name, inputs) -> (output, batch_stats): the further head of that name.
    mean: RGB mean of the images that the weights were trained with, in [0,1].
    std: RGB standard deviation of the same.
    frozen: modules of the backbone, by their key in its params, that never learn.
    patch: sides of images must be multiples of so many pixels.
  """

  init: Callable[[Array, tuple[int, int]], Variables]
  encode: Callable[..., tuple[Stages, Params]]
  decode: Callable[..., tuple[Decoded, Params]]
  head: Callable[..., tuple[Any, Params]]
  mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
  std: tuple[float, float, float] = (0.229, 0.224, 0.225)
  frozen: tuple[str, ...] = ()
  patch: int = 1

  @property
  def multiple(self) -> int:
    """Of pixels, by which padded sides of whole images differ: about 32, of whole patches."""
    return max(32 // self.patch, 1) * self.patch

  def apply(
    self, variables: Variables, images: Array, *, train: bool = False,
    dropout_key: Array | None = None,
  ) -> tuple[Logits, Params]:
    """`decode` of `encode`, for whoever needs logits alone.

    Returns: the logits, and batch_stats.
    """
    stages, stats = self.encode(variables, images, train=train, dropout_key=dropout_key)
    decoded, stats = self.decode(
      with_statistics(variables, stats), stages, train=train, dropout_key=dropout_key)
    return decoded.logits, stats

  def normalize(self, images: Array) -> Array:
    """uint8 [B,H,W,3] -> float32 of zero mean and unit deviation."""
    return (images.astype(jnp.float32) / 255.0 - jnp.array(self.mean)) / jnp.array(self.std)


def check_sides(what: str, sides: Sequence[int], patch: int) -> None:
  """Refuses sides that patches do not fill.

  Args:
    what: has these sides, for the message.
    sides: in pixels.
    patch: side of a patch; 1 allows everything.
  Raises: ValueError with the nearest sides that are possible.
  """
  for side in sides:
    if side % patch:
      below = side // patch * patch
      nearest = f'{below} or {below + patch}' if below else f'{patch}'
      raise ValueError(f'{what}={side} is not a multiple of {patch}, the side of the patches of '
                       f'model.backbone; use {nearest}.')


def with_statistics(variables: Variables, batch_stats: Params) -> Variables:
  """The variables with these running statistics."""
  return {**variables, 'batch_stats': batch_stats}


def known_keys(heads: Iterable[str] = (), *, auxiliary: bool = False) -> tuple[str, ...]:
  """The top-level keys of a network with these further heads."""
  return ('backbone', 'decoder', 'classifier', *(('auxiliary',) if auxiliary else ()), *heads)
