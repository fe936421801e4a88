"""A DINOv2 of 24 channels and four blocks with its DPT head, as a network."""

import functools

from gta_jax.models.dinov2 import PATCH, PLAIN, WITH_REGISTERS, DinoV2
from gta_jax.models.dpt import DptDecoder
from gta_jax.models.segmenter import Segmenter, make_network
from gta_jax.ops.network import Network

WIDTH, DEPTH, HEADS, TAPS = 24, 4, 3, (0, 1, 2, 3)
FEATURES, WIDTHS = 8, (4, 8, 12, 16)


def make_backbone(*, registers=0, positions=None, **options):
  return DinoV2(WIDTH, DEPTH, HEADS, TAPS, registers,
                positions or (WITH_REGISTERS if registers else PLAIN), **options)


def make_dinov2(
  num_classes=3, *, dropout=0.0, dtype='float32', heads=None, remat=False, **options
) -> Network:
  module = make_backbone(remat=remat, **options)
  segmenter = Segmenter(
    num_classes, functools.partial(make_backbone, remat=remat, **options),
    functools.partial(DptDecoder, FEATURES, WIDTHS, remat), dropout, False, dtype, heads or {})
  return make_network(segmenter, mean=Network.mean, std=Network.std,
                      frozen=module.frozen_modules, patch=PATCH)
