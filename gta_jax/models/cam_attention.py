"""PseudoSeg's heads on the backbone: an image classifier, and attention that refines its CAM."""

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gta_jax.ops.network import Stages
from gta_jax.ops.resizing import resize_bilinear

Array = jax.Array


class ImageClassifier(nn.Module):
  """Which classes an image holds, background (class 0) left out: a linear layer on pooled features.

  Attributes:
    num_classes: K.
    features: of the decoder; not used.
  """

  num_classes: int
  features: int
  reads: ClassVar[str] = 'stages'

  @nn.compact
  def __call__(self, inputs: Any, *, train: bool) -> Array:
    """[B,C] features of the last stage, pooled (or the stages) -> [B,K-1] float32 logits."""
    del train
    pooled = inputs[-1].mean((1, 2)) if isinstance(inputs, tuple | list) else inputs
    pooled = pooled.astype(jnp.float32)
    shape = (pooled.shape[-1], self.num_classes - 1)
    kernel = self.param('kernel', nn.initializers.truncated_normal(0.01), shape)
    return pooled @ kernel + self.param('bias', nn.initializers.zeros, shape[1:])


class AttentionInputs(NamedTuple):
  """What CamAttention reads.

  columns: [B,h,w,D] features that decide who looks at whom.
  cam: [B,h,w,K-1] float32 in [0,1].
  valid: [B,h,w] bool, false on padding.
  """

  columns: Array
  cam: Array
  valid: Array


def columns_of(stages: Stages) -> Array:
  """The last two stages side by side, at the last one's size, float32."""
  before, last = (x.astype(jnp.float32) for x in stages[-2:])
  return jnp.concatenate([resize_bilinear(before, last.shape[1:3]), last], axis=-1)


class CamAttention(nn.Module):
  """Class logits [B,h,w,K] from a class activation map M that looks around in its image.

      A = softmax(q k^T / sqrt(width))        N = A M + M        z = norm([2 - max N, N] W) + b

  Padding is not looked at, and has no part in the batch statistics of the norm. These are those of
  the batch at hand in training and there is no other use, so that no running ones are kept.

  Attributes:
    num_classes: K.
    features: of the decoder; not used.
    residual: whether M is added to A M; without it the background is 1 - max N.
    norm: whether the output is normalised, without a scale.
    width: of queries and keys.
  """

  num_classes: int
  features: int
  residual: bool = True
  norm: bool = True
  width: int = 128
  reads: ClassVar[str] = 'stages'

  @nn.compact
  def __call__(self, inputs: Any, *, train: bool) -> Array:
    """AttentionInputs (or the stages, for the shapes of parameters) -> [B,h,w,K] float32."""
    del train
    if not isinstance(inputs, AttentionInputs):
      shape = inputs[-1].shape[:3]
      inputs = AttentionInputs(
        columns_of(inputs), jnp.zeros((*shape, self.num_classes - 1)), jnp.ones(shape, bool))
    draw, shape = nn.initializers.glorot_uniform(), (inputs.columns.shape[-1], self.width)
    kernels = [self.param(name, draw, shape) for name in ('query', 'key')]
    output = self.param('kernel', draw, (self.num_classes, self.num_classes))
    bias = self.param('bias', nn.initializers.zeros, (self.num_classes,))

    columns, cam, valid = (
      x.reshape(len(x), -1, *x.shape[3:]) for x in inputs)
    query, key = (columns @ kernel for kernel in kernels)
    scores = jnp.einsum('bid,bjd->bij', query, key) / self.width ** 0.5
    attention = jax.nn.softmax(jnp.where(valid[:, None], scores, -1e9))
    refined = attention @ cam + (cam if self.residual else 0.0)
    background = (2.0 if self.residual else 1.0) - jnp.max(refined, axis=-1, keepdims=True)
    logits = jnp.concatenate([background, refined], axis=-1) @ output
    if self.norm:
      logits = _normalize(logits, valid)
    return (logits + bias).reshape(*inputs.cam.shape[:3], -1)


def _normalize(x: Array, counted: Array, *, epsilon: float = 1e-3) -> Array:
  """[B,N,C] of zero mean and unit variance over what counts [B,N], which may be nothing."""
  share = (counted / jnp.maximum(jnp.sum(counted), 1))[..., None]
  x = x - jnp.sum(x * share, axis=(0, 1))
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x) * share, axis=(0, 1)) + epsilon)
