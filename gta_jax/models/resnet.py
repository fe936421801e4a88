"""ResNets whose last stages may be dilated instead of strided.

Modules are named as torch names them, `layer1_0` for `layer1.0`, so that `pretrained` needs a rule
and no table.
"""

import flax.linen as nn
import jax

from gta_jax.models.layers import BatchNorm, Conv, call, max_pool

Array = jax.Array

# depth -> (blocks of each stage, whether a block is a bottleneck)
DEPTHS = {
  10: ((1, 1, 1, 1), False),
  18: ((2, 2, 2, 2), False),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
  101: ((3, 4, 23, 3), True),
  152: ((3, 8, 36, 3), True),
}
STEMS = ('deep', 'torchvision')
OUTPUT_STRIDES = (8, 16, 32)


def scaled(channels: int, width: float) -> int:
  """channels x width, rounded to a multiple of 8, at least 8."""
  return max(8, int(channels * width / 8 + 0.5) * 8)


def stage_plan(
  blocks: tuple[int, ...], output_stride: int, multi_grid: tuple[int, ...] | None
) -> list[list[tuple[int, int]]]:
  """(stride, dilation) of every block of the four stages.

  A stage beyond the output stride multiplies the dilation instead of striding; its first block
  still has the dilation of the stage before. multi_grid multiplies the last stage's dilations.
  """
  plan, reached, dilation = [], 4, 1
  for stage, count in enumerate(blocks):
    stride, first = (1 if stage == 0 else 2), dilation
    if reached * stride > output_stride:
      stride, dilation = 1, dilation * stride
    reached *= stride
    grid = multi_grid if multi_grid and stage == len(blocks) - 1 else (1,) * count
    rest = [(1, dilation * factor) for factor in grid[1:]]
    plan.append([(stride, first * grid[0]), *rest])
  return plan


class Block(nn.Module):
  """A residual block: two 3x3 convolutions, or 1x1, 3x3 and 1x1 in a bottleneck.

  Attributes:
    features: of the inner convolutions; a bottleneck returns four times as many.
    stride: of the (first) 3x3 convolution.
    dilation: of all 3x3 convolutions.
    bottleneck: which of the two kinds.
  """

  features: int
  stride: int
  dilation: int
  bottleneck: bool

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    out = self.features * (4 if self.bottleneck else 1)
    if self.bottleneck:  # features, size, stride, dilation
      layers = [(self.features, 1, 1, 1), (self.features, 3, self.stride, self.dilation),
                (out, 1, 1, 1)]
    else:
      layers = [(out, 3, self.stride, self.dilation), (out, 3, 1, self.dilation)]
    shortcut = x
    if self.stride != 1 or x.shape[-1] != out:
      shortcut = Conv(out, 1, self.stride, name='downsample_0')(x)
      shortcut = BatchNorm(name='downsample_1')(shortcut, train=train)
    for number, (features, size, stride, dilation) in enumerate(layers, start=1):
      x = Conv(features, size, stride, dilation, name=f'conv{number}')(x)
      x = BatchNorm(name=f'bn{number}')(x, train=train)
      if number < len(layers):
        x = nn.relu(x)
    return nn.relu(x + shortcut)


class ResNet(nn.Module):
  """A ResNet without its classifier.

  The deep stem is three 3x3 convolutions (64, 64, 128) and pools in ceil mode, as the published
  code does; torchvision's is one 7x7 convolution (64) and pools in floor mode. They differ in size
  only where the stem's output is even: 64 pixels become 17 or 16.

  Attributes:
    depth: a key of DEPTHS.
    stem: one of STEMS.
    output_stride: one of OUTPUT_STRIDES.
    multi_grid: a factor for each block of the last stage, None for ones.
    width: multiplies all channels.
    remat: whether gradients compute the inside of each block again instead of keeping it.
  """

  depth: int
  stem: str
  output_stride: int
  multi_grid: tuple[int, ...] | None
  width: float
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> list[Array]:
    """[B,H,W,3] -> the four stages' outputs, of strides 4, 8, 16 and 32 up to the output stride."""
    blocks, bottleneck = DEPTHS[self.depth]
    x = self._stem(x, train)
    x = max_pool(x, ceil_mode=self.stem == 'deep')
    stages = []
    plan = stage_plan(blocks, self.output_stride, self.multi_grid)
    for number, stage in enumerate(plan, start=1):
      features = scaled(32 * 2**number, self.width)
      for index, (stride, dilation) in enumerate(stage):
        block = Block(features, stride, dilation, bottleneck, name=f'layer{number}_{index}')
        x = call(block, x, train=train, remat=self.remat)
      stages.append(x)
    return stages

  def _stem(self, x: Array, train: bool) -> Array:
    if self.stem == 'deep':
      layers = [('conv1_0', 'conv1_1', 64, 3, 2), ('conv1_3', 'conv1_4', 64, 3, 1),
                ('conv1_6', 'bn1', 128, 3, 1)]
    else:
      layers = [('conv1', 'bn1', 64, 7, 2)]
    for conv_name, norm_name, channels, size, stride in layers:
      features = scaled(channels, self.width)
      x = Conv(features, size, stride, name=conv_name)(x)
      x = nn.relu(BatchNorm(name=norm_name)(x, train=train))
    return x
