"""A network of four stages that takes any method's heads and compiles in a second."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gta_jax.models.heads import MakeHead
from gta_jax.models.layers import BatchNorm, Conv, dropout
from gta_jax.models.segmenter import make_network
from gta_jax.ops.network import Decoded, Logits, Network
from gta_jax.ops.resizing import resize_bilinear


class TinyModel(nn.Module):
  """Two 3x3 convolutions, two 1x1, a decoder of one; a quarter of the image's size in the end."""

  num_classes: int
  heads: Mapping[str, MakeHead]
  norm: bool
  dropout: float
  dtype: str
  width: int = 4

  def setup(self):
    self.backbone = Backbone(self.width, self.norm)
    self.decoder = Decoder(self.width, self.dropout)
    self.classifier = Conv(self.num_classes, 1, bias=True)
    for name, make in self.heads.items():
      setattr(self, name, make(num_classes=self.num_classes, features=self.width))

  def __call__(self, images):
    stages = self.encode(images, train=False)
    decoded = self.decode(stages, train=False)
    for name in self.heads:
      head = getattr(self, name)
      head(decoded.features if head.reads == 'decoder' else stages, train=False)

  def encode(self, images, *, train):
    return self.backbone(images.astype(self.dtype), train=train)

  def decode(self, stages, *, train):
    del train
    x = self.decoder(stages[0], stages[-1])
    return Decoded(Logits(self.classifier(x.astype(jnp.float32)), None), x)

  def head(self, name: str, inputs: Any, *, train: bool):
    return getattr(self, name)(inputs, train=train)


class Decoder(nn.Module):
  width: int
  dropout: float

  @nn.compact
  def __call__(self, low, high):
    x = jnp.concatenate([low, resize_bilinear(high, low.shape[1:3])], axis=-1)
    x = nn.relu(Conv(self.width, 1, bias=True, name='conv')(x))
    return dropout(x, self.dropout, active=self.has_rng('dropout'))


class Backbone(nn.Module):
  width: int
  norm: bool

  @nn.compact
  def __call__(self, x, *, train):
    self.variable('batch_stats', 'of_no_norm', jnp.zeros, ())  # so that there are statistics
    stages = []
    for number, (size, stride) in enumerate(((3, 2), (3, 2), (1, 1), (1, 1))):
      x = Conv(self.width, size, stride, bias=True, name=f'conv{number}')(x)
      x = nn.relu(BatchNorm(name=f'norm{number}')(x, train=train) if self.norm else x)
      stages.append(x)
    return tuple(stages)


def tiny_model(
  method: Any, *, classes: int = 3, norm: bool = True, dropout: float = 0.1,
  dtype: str = 'float32',
) -> Network:
  """The network with the method's heads; without norm and dropout images do not meet in it."""
  module = TinyModel(classes, method.heads, norm, dropout, dtype)
  return make_network(module, mean=Network.mean, std=Network.std)
