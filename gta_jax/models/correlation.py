"""The head that compares every place of an image with every other (CorrMatch)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gta_jax.models.layers import BatchNorm, Conv, dropout
from gta_jax.ops.network import Stages

Array = jax.Array


class CorrelationHead(nn.Module):
  """A 3x3 projection of the last stage, and on it two 1x1 convolutions side by side.

  Attributes:
    channels: of query and key; CorrMatch takes the number of classes.
    features: channels of the projection.
    dropout: probability that a channel of the projection is dropped.
  """

  channels: int
  features: int
  dropout: float = 0.1
  reads: ClassVar[str] = 'stages'

  @nn.compact
  def __call__(self, stages: Stages, *, train: bool) -> tuple[Array, Array]:
    """Stages [B,h,w,C] -> query and key, [B,h,w,channels] float32 of the last stage's size."""
    x = Conv(self.features, bias=True, name='projection_0')(stages[-1])
    x = nn.relu(BatchNorm(name='projection_1')(x, train=train))
    x = dropout(x, self.dropout, active=self.has_rng('dropout')).astype(jnp.float32)
    query = Conv(self.channels, 1, bias=True, name='query')(x)
    return query, Conv(self.channels, 1, bias=True, name='key')(x)
