"""ResNets whose last stages may be dilated instead of strided.

Modules are named as torch names them, `layer1_0` for `layer1.0`, so that `pretrained` needs a rule
and no table.
"""

import flax.linen as nn
import jax

from gta_jax.models.layers import BatchNorm, Conv, call, max_pool, scaled, without_gradient

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
# names of convolution and BatchNorm, channels, size, stride
_STEM_LAYERS = {
  'deep': (('conv1_0', 'conv1_1', 64, 3, 2), ('conv1_3', 'conv1_4', 64, 3, 1),
           ('conv1_6', 'bn1', 128, 3, 1)),
  'torchvision': (('conv1', 'bn1', 64, 7, 2),),
}
STEMS = tuple(_STEM_LAYERS)
OUTPUT_STRIDES = (8, 16, 32)


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
    frozen_stages: so many stages, and with them the stem, do not learn: no gradient reaches them,
      and BatchNorm takes its running statistics, which stay.
  """

  depth: int
  stem: str
  output_stride: int
  multi_grid: tuple[int, ...] | None
  width: float
  remat: bool = False
  frozen_stages: int = 0

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> list[Array]:
    """[B,H,W,3] -> the stem's output, of stride 2, and those of the four stages.

    The stages have strides 4, 8, 16 and 32 up to the output stride.
    """
    blocks, bottleneck = DEPTHS[self.depth]
    frozen = self.frozen_stages > 0
    x = without_gradient(self._stem(x, train and not frozen), frozen)
    outputs = [x]
    x = max_pool(x, ceil_mode=self.stem == 'deep')
    plan = stage_plan(blocks, self.output_stride, self.multi_grid)
    for number, stage in enumerate(plan, start=1):
      features, frozen = scaled(32 * 2**number, self.width), number <= self.frozen_stages
      for index, (stride, dilation) in enumerate(stage):
        block = Block(features, stride, dilation, bottleneck, name=f'layer{number}_{index}')
        x = call(block, x, train=train and not frozen, remat=self.remat and not frozen)
      x = without_gradient(x, frozen)
      outputs.append(x)
    return outputs

  @property
  def frozen_modules(self) -> tuple[str, ...]:
    """Names of the submodules that do not learn."""
    if not self.frozen_stages:
      return ()
    blocks = DEPTHS[self.depth][0][:self.frozen_stages]
    stem = [name for layer in _STEM_LAYERS[self.stem] for name in layer[:2]]
    return (*stem, *(f'layer{number}_{index}' for number, count in enumerate(blocks, start=1)
                     for index in range(count)))

  def _stem(self, x: Array, train: bool) -> Array:
    for conv_name, norm_name, channels, size, stride in _STEM_LAYERS[self.stem]:
      features = scaled(channels, self.width)
      x = Conv(features, size, stride, name=conv_name)(x)
      x = nn.relu(BatchNorm(name=norm_name)(x, train=train))
    return x
