"""The DPT head as UniMatch V2 has it on DINOv2: it ends at the feature before the classifier.

Modules are named as in that code, below `head`. Its coarsest fusion there has a unit for a finer
neighbour, `refinenet4.resConfUnit1`, that is never used; here it does not exist.
"""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gta_jax.models.layers import Conv, add_bias, call
from gta_jax.ops.network import Stages
from gta_jax.ops.resizing import resize_bilinear

Array = jax.Array


class Unfold(nn.Module):
  """torch's transposed convolution of a kernel as large as its stride: [B,h,w,C] -> [B,hk,wk,C].

  Its windows do not overlap, so that every input makes a square of its own: one product and a
  change of order, the same on every platform. The kernel is [k,k,out,in], torch's with axes moved.
  """

  stride: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, height, width, channels = x.shape
    shape = (self.stride, self.stride, channels, channels)
    kernel = self.param('kernel', nn.initializers.zeros, shape).astype(x.dtype)
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    x = jnp.einsum('bhwi,kloi->bhkwlo', x, kernel)
    return add_bias(
      x.reshape(batch, height * self.stride, width * self.stride, channels), bias)


class _Residual(nn.Module):
  """x + conv(relu(conv(relu(x))))."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    inner = x
    for number in (1, 2):
      inner = Conv(x.shape[-1], bias=True, name=f'conv{number}')(nn.relu(inner))
    return x + inner


class _Fusion(nn.Module):
  """Adds a finer map, if there is one, resizes to `size` and mixes channels."""

  size: tuple[int, int]

  @nn.compact
  def __call__(self, x: Array, *finer: Array, train: bool) -> Array:
    del train
    for other in finer:
      x = x + _Residual(name='resConfUnit1')(other)
    x = resize_bilinear(_Residual(name='resConfUnit2')(x), self.size)
    return Conv(x.shape[-1], 1, bias=True, name='out_conv')(x)


class _Scratch(nn.Module):
  """Four maps from fine to coarse, joined from the coarsest on; the result is doubled."""

  features: int
  remat: bool

  @nn.compact
  def __call__(self, maps: Sequence[Array], *, train: bool) -> Array:
    maps = [Conv(self.features, name=f'layer{number}_rn')(x)
            for number, x in enumerate(maps, start=1)]
    sizes = [(2 * maps[0].shape[1], 2 * maps[0].shape[2]), *(x.shape[1:3] for x in maps[:-1])]
    path: tuple[Array, ...] = ()
    for number in (4, 3, 2, 1):
      fusion = _Fusion(sizes[number - 1], name=f'refinenet{number}')
      path = (call(fusion, *path, maps[number - 1], train=train, remat=self.remat),)
    return path[0]


class DptDecoder(nn.Module):
  """Four taps of one stride -> [B,8h,8w,features].

  Attributes:
    features: of the maps that are joined, and of the output.
    widths: of the taps before.
    remat: whether gradients compute the inside of each fusion again.
  """

  features: int
  widths: tuple[int, ...]
  remat: bool
  head_depth: ClassVar[int] = 1
  head_norm: ClassVar[bool] = False

  def stages(self, images: Array, pyramid: Sequence[Array], *, train: bool) -> Stages:
    """What it reads of the backbone's outputs: all."""
    del images, train
    return tuple(pyramid)

  @nn.compact
  def __call__(self, stages: Stages, *, train: bool) -> Array:
    maps = [Conv(width, 1, bias=True, name=f'projects_{index}')(stage)
            for index, (width, stage) in enumerate(zip(self.widths, stages, strict=True))]
    maps[0] = Unfold(4, name='resize_layers_0')(maps[0])
    maps[1] = Unfold(2, name='resize_layers_1')(maps[1])
    maps[3] = Conv(self.widths[3], stride=2, bias=True, name='resize_layers_3')(maps[3])
    return _Scratch(self.features, self.remat, name='scratch')(maps, train=train)
