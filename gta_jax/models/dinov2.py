"""DINOv2's vision transformers of patch 14, with and without registers, as published.

Modules are named as in the published code (`blocks_0` for `blocks.0`), so that `pretrained` reads
its weights by rule; `dinov2_names` brings other layouts to these names. Neither dropout nor
stochastic depth: fine-tuning uses none.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gta_jax.models.layers import add_bias, call, without_gradient
from gta_jax.ops.resizing import bicubic_matrix

Array = jax.Array

PATCH = 14  # pixels a side
_GRID = 37  # patches a side of the images that positions were learnt for, 518 pixels
_EPSILON = 1e-6
# Keys and queries beyond so many are not compared all at once: for large images in evaluation.
_MOST_TOKENS, _QUERIES = 4096, 1024
_draw = nn.initializers.truncated_normal(0.02)


class Size(NamedTuple):
  """width: channels. taps: blocks, counted from 0, whose outputs are the four stages.

  head: of DPT on it, as UniMatch V2 has it: features, and the widths of the four taps there.
  """

  width: int
  depth: int
  heads: int
  taps: tuple[int, int, int, int]
  head: tuple[int, tuple[int, int, int, int]]


SIZES = {
  's': Size(384, 12, 6, (2, 5, 8, 11), (64, (48, 96, 192, 384))),
  'b': Size(768, 12, 12, (2, 5, 8, 11), (128, (96, 192, 384, 768))),
  'l': Size(1024, 24, 16, (4, 11, 17, 23), (256, (256, 512, 1024, 1024))),
}


class Positions(NamedTuple):
  """How position embeddings are brought to another grid, a published rule for each kind.

  offset: n patches a side are taken for n + offset in the scale. antialias: filter when shrinking.
  """

  offset: float
  antialias: bool


# As the authors publish those without and with registers.
PLAIN, WITH_REGISTERS = Positions(0.1, antialias=False), Positions(0.0, antialias=True)
REGISTERS = 4


class _Dense(nn.Module):
  """A product with kernel [C,features], in x's dtype."""

  features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param('kernel', nn.initializers.zeros, (x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return add_bias(x @ kernel.astype(x.dtype), bias)


class _PatchEmbedding(nn.Module):
  """A convolution of patches that do not overlap, as one product."""

  features: int

  @nn.compact
  def __call__(self, images: Array) -> Array:
    batch, height, width, colours = images.shape
    rows, columns = height // PATCH, width // PATCH
    kernel = self.param('kernel', nn.initializers.zeros, (PATCH, PATCH, colours, self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = images.reshape(batch, rows, PATCH, columns, PATCH, colours)
    x = x.swapaxes(2, 3).reshape(batch, rows * columns, -1)
    return add_bias(x @ kernel.reshape(-1, self.features).astype(x.dtype), bias)


class _Embedding(nn.Module):
  """`proj`, the patches' embedding, one level down as in the published code."""

  features: int

  @nn.compact
  def __call__(self, images: Array) -> Array:
    return _PatchEmbedding(self.features, name='proj')(images)


class _Attention(nn.Module):
  """Self-attention of [B,N,C]."""

  heads: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, tokens, width = x.shape
    qkv = _Dense(3 * width, name='qkv')(x)
    query, key, value = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, -1), 2, 0)
    return _Dense(width, name='proj')(attend(query, key, value).reshape(x.shape))


class _Mlp(nn.Module):
  """Four times as wide inside, exact GELU."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    inner = nn.gelu(_Dense(4 * x.shape[-1], name='fc1')(x), approximate=False)
    return _Dense(x.shape[-1], name='fc2')(inner)


class _LayerScale(nn.Module):
  """Each channel times a number of its own, in float32."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return x.astype(jnp.float32) * self.param('gamma', nn.initializers.ones, x.shape[-1:])


class _Block(nn.Module):
  """x + scale(attention(norm(x))), then the same with the MLP; x stays float32, as it adds up."""

  heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    del train
    branches = _Attention(self.heads, name='attn'), _Mlp(name='mlp')
    for number, branch in enumerate(branches, start=1):
      inner = nn.LayerNorm(_EPSILON, name=f'norm{number}')(x).astype(self.dtype)
      x = x + _LayerScale(name=f'ls{number}')(branch(inner))
    return x


class DinoV2(nn.Module):
  """The backbone.

  Attributes:
    width: channels.
    depth: blocks.
    heads: of attention.
    taps: blocks, counted from 0, whose outputs are returned.
    registers: tokens beside the class token.
    positions: how these are interpolated.
    remat: whether gradients compute the inside of each block again instead of keeping it.
    frozen_stages: the embeddings and the blocks up to that tap do not learn: no gradient reaches
      them. With all four the last LayerNorm does not either.
  """

  width: int
  depth: int
  heads: int
  taps: tuple[int, ...]
  registers: int = 0
  positions: Positions = PLAIN
  remat: bool = False
  frozen_stages: int = 0

  @nn.compact
  def __call__(self, images: Array, *, train: bool) -> list[Array]:
    """[B,H,W,3] -> four times [B,H/14,W/14,C], each through the one last LayerNorm.

    Sides must be multiples of 14.
    """
    batch, grid = len(images), (images.shape[1] // PATCH, images.shape[2] // PATCH)
    patches = _Embedding(self.width, name='patch_embed')(images)
    first = self.param('cls_token', _draw, (1, 1, self.width))
    learnt = self.param('pos_embed', _draw, (1, 1 + _GRID**2, self.width))
    first, places = first + learnt[:, :1], at_grid(learnt[0, 1:], grid, self.positions)
    extra = [first]
    if self.registers:  # They have no place.
      extra.append(self.param('register_tokens', _draw, (1, self.registers, self.width)))
    extra = [jnp.broadcast_to(token, (batch, *token.shape[1:])) for token in extra]
    x = jnp.concatenate([*extra, patches.astype(jnp.float32) + places], axis=1)
    norm, outputs = nn.LayerNorm(_EPSILON, name='norm'), []
    for number in range(self.depth):
      frozen = self.frozen_stages > 0 and number <= self.taps[self.frozen_stages - 1]
      block = _Block(self.heads, images.dtype, name=f'blocks_{number}')
      x = call(block, x, train=train, remat=self.remat and not frozen)
      x = without_gradient(x, frozen)
      if number in self.taps:
        tap = norm(x[:, 1 + self.registers:]).astype(images.dtype)
        tap = without_gradient(tap, self.frozen_stages == len(self.taps))
        outputs.append(tap.reshape(batch, *grid, self.width))
    return outputs

  @property
  def frozen_modules(self) -> tuple[str, ...]:
    """Names of the parameters and submodules that do not learn."""
    if not self.frozen_stages:
      return ()
    tokens = ('cls_token', 'pos_embed', *(('register_tokens',) if self.registers else ()))
    last = ('norm',) if self.frozen_stages == len(self.taps) else ()
    blocks = range(self.taps[self.frozen_stages - 1] + 1)
    return ('patch_embed', *tokens, *(f'blocks_{number}' for number in blocks), *last)


def attend(query: Array, key: Array, value: Array) -> Array:
  """softmax(q k^T / sqrt(d)) v, the softmax in float32.

  Tokens are compared again in the backward pass: kept, the [B,heads,N,N] of all blocks are most of
  the memory of a step.

  Args: [B,N,heads,d] each. Of many tokens so many queries at a time are compared that memory grows
    with N, not with its square.
  Returns: [B,N,heads,d].
  """
  tokens = query.shape[1]
  if tokens <= _MOST_TOKENS:
    return jax.checkpoint(jax.nn.dot_product_attention)(query, key, value)
  parts = -(-tokens // _QUERIES)
  query = jnp.pad(query, ((0, 0), (0, parts * _QUERIES - tokens), (0, 0), (0, 0)))
  query = jnp.moveaxis(query.reshape(len(query), parts, _QUERIES, *query.shape[2:]), 1, 0)
  compare = jax.checkpoint(lambda part: jax.nn.dot_product_attention(part, key, value))
  found = jax.lax.map(compare, query)
  return jnp.moveaxis(found, 0, 1).reshape(len(key), -1, *key.shape[2:])[:, :tokens]


def at_grid(learnt: Array, grid: tuple[int, int], positions: Positions) -> Array:
  """Position embeddings [37 x 37,C] for another grid [h x w,C], by the published bicubic rule.

  On the grid of 518 pixels they are returned as they are.
  """
  if grid == (_GRID, _GRID):
    return learnt
  rows, columns = (jnp.asarray(bicubic_matrix(
    side, _GRID, scale=(side + positions.offset) / _GRID, antialias=positions.antialias))
    for side in grid)
  square = learnt.reshape(_GRID, _GRID, -1)
  return jnp.einsum('hi,wj,ijc->hwc', rows, columns, square, precision=jax.lax.Precision.HIGHEST
                    ).reshape(np.prod(grid), -1)
