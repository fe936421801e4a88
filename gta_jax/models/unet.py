"""A decoder that reaches the image's own resolution, after U-Net."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gta_jax.models.layers import BatchNorm, Conv, call, scaled
from gta_jax.ops.network import Stages
from gta_jax.ops.resizing import resize_bilinear

Array = jax.Array

_WIDTHS = (96, 64, 48, 32, 24)  # from coarse to fine


class UnetDecoder(nn.Module):
  """From the last stage up to the image: five times {upsample, join the next finer stage, two 3x3}.

  Its finest stage is no backbone's: two 3x3 convolutions on the image itself, which `stages` makes,
  so that whoever perturbs or keeps stages has all that the decoder reads. At output stride 16 and 8
  the coarsest stages have one size and are joined as they are.

  Attributes:
    width: multiplies the channels, 96, 64, 48, 32 and 24 from coarse to fine.
    remat: whether gradients compute the inside of each pair of convolutions again.
  """

  width: float
  remat: bool
  head_depth: ClassVar[int] = 1
  head_norm: ClassVar[bool] = True

  def setup(self):
    widths = [scaled(channels, self.width) for channels in _WIDTHS]
    self.full = _TwoConvs(widths[-1])
    self.up = [_TwoConvs(channels) for channels in widths]

  @property
  def features(self) -> int:
    """Channels of its output."""
    return scaled(_WIDTHS[-1], self.width)

  def stages(self, images: Array, pyramid: Sequence[Array], *, train: bool) -> Stages:
    """Features of the image, [B,H,W,24], then those of the backbone's stem and its four stages."""
    return (call(self.full, images, train=train, remat=self.remat), *pyramid)

  def __call__(self, stages: Stages, *, train: bool) -> Array:
    """Six stages -> [B,H,W,24] at the first one's size."""
    *skips, x = stages
    for convs, skip in zip(self.up, reversed(skips), strict=True):
      x = jnp.concatenate([resize_bilinear(x, skip.shape[1:3]), skip], axis=-1)
      x = call(convs, x, train=train, remat=self.remat)
    return x


class _TwoConvs(nn.Module):
  """Two times 3x3 convolution, BatchNorm, ReLU."""

  features: int

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    for number in (1, 2):
      x = Conv(self.features, name=f'conv{number}')(x)
      x = nn.relu(BatchNorm(name=f'bn{number}')(x, train=train))
    return x
