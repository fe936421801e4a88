"""Every backbone by its name in model.backbone.

A backbone is a flax module called as backbone(images, train=...) -> five features [B,h,w,C], from
fine to coarse: the stem's of stride 2, then those of four stages of stride 4, 8, 16 and 32 up to
the output stride. One without such a pyramid, a transformer, gives its four stages alone, all of
the stride of its patches. Its `frozen_modules` are the names in its params that do not learn.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from gta_jax.models import dinov2, efficientnet_lite
from gta_jax.models.resnet import DEPTHS, OUTPUT_STRIDES, STEMS, ResNet
from gta_jax.ops.network import Network

Colour = tuple[float, float, float]
STAGES = 4


@dataclasses.dataclass(frozen=True)
class Options:
  """Of make_segmenter, whatever backbones read; each reads its own."""

  depth: int
  stem: str
  output_stride: int
  multi_grid: tuple[int, ...] | None
  width: float
  frozen_stages: int
  remat: bool


class Backbone(NamedTuple):
  """make: the module for checked options. mean, std: RGB in [0,1] of its images.

  patch: sides of images are multiples of so many pixels. head: of the DPT head that it is published
  with, the features and the widths of four taps; () for a pyramid, whose stages have the strides
  above, the stem's included.
  """

  make: Callable[[Options], Any]
  mean: Colour = Network.mean
  std: Colour = Network.std
  patch: int = 1
  head: tuple[Any, ...] = ()


def check_known(name: str, value: Any, known: tuple) -> None:
  """Raises: ValueError for a value that is none of the known ones."""
  if value not in known:
    raise ValueError(f'{name}={value!r} is unknown; use one of {", ".join(map(str, known))}.')


def _resnet(options: Options) -> ResNet:
  check_known('depth', options.depth, tuple(DEPTHS))
  check_known('stem', options.stem, STEMS)
  check_known('output_stride', options.output_stride, OUTPUT_STRIDES)
  last, grid = DEPTHS[options.depth][0][-1], options.multi_grid
  if grid is not None and len(grid) != last:
    raise ValueError(
      f'multi_grid={grid} has {len(grid)} factors, but ResNet-{options.depth} has {last} blocks in '
      f'its last stage; give {last} factors, or None for ones.')
  return ResNet(
    options.depth, options.stem, options.output_stride, None if grid is None else tuple(grid),
    options.width, options.remat, options.frozen_stages)


def _efficientnet_lite(variant: str, options: Options) -> efficientnet_lite.EfficientNetLite:
  check_known('output_stride', options.output_stride, efficientnet_lite.OUTPUT_STRIDES)
  _check_no_grid(variant, options)
  return efficientnet_lite.EfficientNetLite(
    efficientnet_lite.groups_of(variant), options.output_stride, options.remat,
    options.frozen_stages)


def _dinov2(variant: str, options: Options) -> dinov2.DinoV2:
  """Of Options it reads remat and frozen_stages."""
  _check_no_grid(variant, options)
  _, size, *registers = variant.split('_')
  kind = dinov2.SIZES[size]
  return dinov2.DinoV2(
    kind.width, kind.depth, kind.heads, kind.taps, dinov2.REGISTERS if registers else 0,
    dinov2.WITH_REGISTERS if registers else dinov2.PLAIN, options.remat, options.frozen_stages)


def _check_no_grid(variant: str, options: Options) -> None:
  if options.multi_grid:
    raise ValueError(
      f'multi_grid={options.multi_grid} is for ResNets, and the backbone is {variant}; set '
      'multi_grid=().')


BACKBONES = {
  'resnet': Backbone(_resnet),
  **{variant: Backbone(functools.partial(_efficientnet_lite, variant), efficientnet_lite.MEAN,
                       efficientnet_lite.STD) for variant in efficientnet_lite.VARIANTS},
  **{f'dinov2_{size}{end}': Backbone(functools.partial(_dinov2, f'dinov2_{size}{end}'),
                                     patch=dinov2.PATCH, head=kind.head)
     for size, kind in dinov2.SIZES.items() for end in ('', '_reg')},
}
