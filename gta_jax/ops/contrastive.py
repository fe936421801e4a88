"""What contrastive losses of pixels share: InfoNCE, and draws of anchors and of negatives.

Numbers of pixels are data, shapes are not: a draw is made of ranks among the pixels that may be
drawn, and a mask says which pixels these are.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

_EPSILON = 1e-8  # under the root, so that a vector of zeros has a direction and a finite gradient


def unit(x: Array) -> Array:
  """Vectors [...,D] divided by their length."""
  return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + _EPSILON)


def info_nce(
  positive: Array, negatives: Array, counted: Array | None = None, *, temperature: float
) -> Array:
  """The loss of anchors that should be nearer to their positive than to any negative.

      l = -log( e^(s+ / T) / (e^(s+ / T) + sum_m e^(s_m / T)) )

  Args:
    positive: [...] float32, cosine s+ of an anchor with its positive.
    negatives: [...,M] float32, cosines s_m with its negatives.
    counted: [...,M] bool, the negatives that are there; None for all.
    temperature: T > 0.
  Returns: [...] float32; 0 for an anchor without negatives.
  """
  if counted is not None:
    # Finite: the gradient of a maximum of infinities would not be.
    negatives = jnp.where(counted, negatives, -1e9)
  logits = jnp.concatenate([positive[..., None], negatives], -1) / temperature
  return jax.nn.logsumexp(logits, axis=-1) - logits[..., 0]


def draw_below(key: Array, count: Array, shape: tuple[int, ...]) -> Array:
  """Uniform ranks with replacement: [N,*shape] int32, row i below count[i] (0 where that is 0)."""
  most = jnp.maximum(count, 1).reshape(-1, *[1] * len(shape))
  return jax.random.randint(key, (len(count), *shape), 0, most)


def draw_spread(key: Array, count: Array, number: int) -> tuple[Array, Array]:
  """At most `number` of the ranks below each count, all equally likely and none twice.

  All of them in their order where there are no more; else ranks at equal distances from a random
  one on, cyclically, which takes one random number and no sort.

  Args:
    key: PRNG key.
    count: [N] int32.
    number: n, at most 46,340, so that n^2 is an int32.
  Returns: ranks [N,n] int32, and how many of them are meant, [N] int32: min(count, n).
  """
  order, total = jnp.arange(number), jnp.maximum(count, number)[:, None]
  # floor(order total / n) without an overflow of order total.
  ranks = order * (total // number) + order * (total % number) // number
  shift = jax.random.randint(key, total.shape, 0, total)
  ranks = (ranks + jnp.where(count[:, None] > number, shift, 0)) % total
  return ranks, jnp.minimum(count, number)


def nth_true(mask: Array, ranks: Array) -> Array:
  """Where the true entries of given ranks are.

  Args:
    mask: [N,P] bool.
    ranks: [N,...] int32 from 0.
  Returns: [N,...] int32 indices below P; P - 1 where fewer entries are true.
  """
  counts = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
  found = jax.vmap(jnp.searchsorted)(counts, ranks + 1)
  return jnp.minimum(found, mask.shape[1] - 1).astype(jnp.int32)


def draw_without_replacement(key: Array, log_weights: Array, number: int) -> tuple[Array, Array]:
  """Draws from each row in proportion to its weights, none twice (Gumbel-top-k).

  Args:
    key: PRNG key.
    log_weights: [N,P] float32, -inf for what is never drawn.
    number: n <= P.
  Returns: indices [N,n] int32, and whether each has been drawn, bool [N,n]: not all have where
    fewer than n weights of a row are positive.
  """
  scores, indices = jax.lax.top_k(log_weights + jax.random.gumbel(key, log_weights.shape), number)
  return indices, scores > -jnp.inf
