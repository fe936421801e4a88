"""GCT's flaw detector: how wrong a prediction is, pixel by pixel, from it and the image.

Not a segmentation network: it reads 3 + K channels, gives one, and lives beside the networks under
a name of its own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze

from gta_jax.models.layers import BatchNorm
from gta_jax.ops.network import Array, Params, Variables
from gta_jax.ops.resizing import resize_bilinear

_BLOCKS = ((64,), (128, 128), (256, 256), (512, 512))  # channels; the first of each has stride 2
_EPSILON = 1e-5


class FlawDetector(NamedTuple):
  """The detector as pure functions.

  init: (key, (height, width), num_classes) -> {'params', 'batch_stats'}.
  apply: (variables, images [B,H,W,3] normalised, probabilities [B,H,W,K]) -> (flaw [B,H,W] float32,
    batch_stats). Always by the batch's own statistics, towards which batch_stats move; nothing
    reads these.
  """

  init: Callable[[Array, tuple[int, int], int], Variables]
  apply: Callable[[Variables, Array, Array], tuple[Array, Params]]


class _Detector(nn.Module):
  """4x4 convolutions with padding 1, split normalisation, leaky ReLU; bilinear to the input's size.

  The published convolutions have biases, which the normalisation takes away again. Their gradient
  is zero but for rounding, which Adam would turn into steps of full size, other ones on other
  numbers of devices.

  Attributes:
    blocks: how many of the four blocks it has; each halves the resolution, and so does the last
      convolution.
  """

  blocks: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    size = x.shape[1:3]
    for number, (channels, stride) in enumerate(_layers(self.blocks)):
      x = _convolution(channels, stride, f'conv_{number}')(x)
      x = nn.leaky_relu(_SplitNorm(name=f'norm_{number}')(x), 0.2)
    x = _convolution(1, 2, 'classifier', bias=True)(x)
    return resize_bilinear(x, size)[..., 0]


class _SplitNorm(nn.Module):
  """BatchNorm of the first half of the channels, instance norm without parameters of the second."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    of_batch, of_instance = jnp.split(x, 2, axis=-1)
    mean = of_instance.mean((1, 2), keepdims=True)
    variance = jnp.square(of_instance - mean).mean((1, 2), keepdims=True)
    of_instance = (of_instance - mean) * jax.lax.rsqrt(variance + _EPSILON)
    return jnp.concatenate([BatchNorm(name='batch')(of_batch, train=True), of_instance], axis=-1)


def _layers(blocks: int) -> list[tuple[int, int]]:
  """(channels, stride) of each layer."""
  return [(channels, 2 if i == 0 else 1)
          for block in _BLOCKS[:blocks] for i, channels in enumerate(block)]


def _convolution(channels: int, stride: int, name: str, *, bias: bool = False) -> nn.Conv:
  # torch's default variance.
  kernel = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
  return nn.Conv(channels, (4, 4), (stride, stride), padding=1, use_bias=bias, kernel_init=kernel,
                 name=name)


def map_size(pixels: int, blocks: int) -> int:
  """A side of the map that the detector resizes, for images of so many pixels a side."""
  for _, stride in (*_layers(blocks), (1, 2)):
    pixels = (pixels - 2) // stride + 1
  return pixels


def make_flaw_detector(*, blocks: int = len(_BLOCKS)) -> FlawDetector:
  """The published detector, or one of fewer blocks for images smaller than some 250 pixels."""
  module = _Detector(blocks)

  @functools.partial(jax.jit, static_argnums=(1, 2))
  def init(key: Array, size: tuple[int, int], num_classes: int) -> Variables:
    return unfreeze(module.init(key, jnp.zeros((1, *size, 3 + num_classes))))

  def apply(variables: Variables, images: Array, probabilities: Array) -> tuple[Array, Params]:
    x = jnp.concatenate([images.astype(jnp.float32), probabilities], axis=-1)
    flaw, state = module.apply(variables, x, mutable=['batch_stats'])
    statistics: Any = state['batch_stats']
    return flaw, statistics

  return FlawDetector(init, apply)
