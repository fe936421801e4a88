"""DeepLabV3+'s decoder as in the published code: it ends at the feature before the classifier."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gta_jax.models.layers import BatchNorm, Conv, call, dropout
from gta_jax.ops.network import Stages
from gta_jax.ops.resizing import resize_bilinear

Array = jax.Array


class Aspp(nn.Module):
  """Image pooling, a 1x1 and dilated 3x3 convolutions side by side: [B,h,w,C] -> 5 x features.

  Pooling comes first in the concatenation, as in the published code.

  Attributes:
    features: of each branch.
    rates: dilations of the 3x3 convolutions.
    pool_norm: whether the pooled branch, one value an image and channel, has BatchNorm; else it
      has a bias in its place.
  """

  features: int
  rates: tuple[int, ...]
  pool_norm: bool = True

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    pooled = x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
    pooled = Conv(self.features, 1, bias=not self.pool_norm, name='conv1_1')(pooled)
    if self.pool_norm:
      pooled = BatchNorm(name='conv1_2')(pooled, train=train)
    # In float32, as the gradient is a sum over all cells.
    pooled = nn.relu(pooled).astype(jnp.float32)
    branches = [jnp.broadcast_to(pooled, (*x.shape[:3], self.features)).astype(x.dtype)]
    for number, (size, rate) in enumerate([(1, 1), *((3, rate) for rate in self.rates)], start=2):
      branch = Conv(self.features, size, dilation=rate, name=f'conv{number}_0')(x)
      branches.append(nn.relu(BatchNorm(name=f'conv{number}_1')(branch, train=train)))
    return jnp.concatenate(branches, axis=-1)


class DeepLabDecoder(nn.Module):
  """The first and the last of four stages -> [B,h,w,2 x features] at the first one's size.

  The low-level half comes first, then ASPP's.

  Attributes:
    features: 256 in the paper.
    rates: of ASPP.
    dropout: probability that a channel is dropped.
    remat: whether gradients compute the inside of ASPP again.
    pool_norm: of ASPP.
  """

  features: int
  rates: tuple[int, ...]
  dropout: float
  remat: bool
  pool_norm: bool = True
  head_depth: ClassVar[int] = 2
  head_norm: ClassVar[bool] = True

  def stages(self, images: Array, pyramid: list[Array], *, train: bool) -> Stages:
    """What it reads of the backbone's outputs: all but the stem's."""
    del images, train
    return tuple(pyramid[-4:])

  @nn.compact
  def __call__(self, stages: Stages, *, train: bool) -> Array:
    low, high = stages[0], stages[-1]
    drop = self.has_rng('dropout')
    low = Conv(self.features, 1, bias=True, name='low_conv_0')(low)
    low = nn.relu(BatchNorm(name='low_conv_1')(low, train=train))
    aspp = Aspp(self.features, self.rates, self.pool_norm, name='aspp')
    high = call(aspp, high, train=train, remat=self.remat)
    high = Conv(self.features, name='head_0')(high)
    high = nn.relu(BatchNorm(name='head_1')(high, train=train))
    high = dropout(high, self.dropout, active=drop)
    return jnp.concatenate([low, resize_bilinear(high, (low.shape[1], low.shape[2]))], axis=-1)
