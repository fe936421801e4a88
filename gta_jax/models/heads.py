"""Heads on features of decoder or backbone: the classifiers, and the further heads of methods."""

from typing import Any, ClassVar, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from gta_jax.models.layers import BatchNorm, Conv, dropout

Array = jax.Array


class MakeHead(Protocol):
  """Makes a further head for a network; the module is called as head(inputs, train=...).

  The module says in `reads` what a forward pass of the network hands it while parameters are made:
  'decoder', the decoder's features, or 'stages', those of the backbone.
  """

  def __call__(self, *, num_classes: int, features: int) -> Any:
    """A flax module for K classes, in a network whose decoder is so many channels wide."""


class Head(nn.Module):
  """`depth` times 3x3 convolution, BatchNorm, ReLU, dropout, then 1x1 to float32 channels.

  Layers have their numbers in torch's sequence, which counts ReLU, and dropout beside BatchNorm.

  Attributes:
    channels: of the output, such as the number of classes.
    features: channels of the inner convolutions.
    depth: number of inner convolutions.
    dropout: probability that a channel of an inner convolution is dropped.
    norm: whether there is BatchNorm.
  """

  channels: int
  features: int
  depth: int
  dropout: float
  norm: bool = True
  reads: ClassVar[str] = 'decoder'

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    step = 4 if self.norm else 2
    for number in range(0, step * self.depth, step):
      x = Conv(self.features, bias=True, name=f'{number}')(x)
      if self.norm:
        x = BatchNorm(name=f'{number + 1}')(x, train=train)
      x = dropout(nn.relu(x), self.dropout, active=self.has_rng('dropout'))
    output = Conv(self.channels, 1, bias=True, name=f'{step * self.depth}')
    return output(x.astype(jnp.float32))


class Projection(nn.Module):
  """1x1 convolution, BatchNorm, ReLU, 1x1 convolution to float32 channels: an embedding of pixels.

  Attributes:
    channels: of the output.
    features: channels of the inner convolution.
  """

  channels: int
  features: int
  reads: ClassVar[str] = 'decoder'

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    x = Conv(self.features, 1, name='0')(x)
    x = nn.relu(BatchNorm(name='1')(x, train=train))
    return Conv(self.channels, 1, bias=True, name='3')(x.astype(jnp.float32))
