"""Exact ranks of non-negative floats without a sort."""

import jax
import jax.numpy as jnp

Array = jax.Array


def threshold_below_rank(values: Array, valid: Array, rank: Array) -> Array:
  """The largest float32 that at most `rank` of the valid values do not exceed.

  So `values > threshold` drops exactly `rank` valid values when they are distinct. Values tied
  at the border are all kept, hence never more than `rank` are dropped.

  Non-negative floats are ordered as their bit patterns are, so the threshold is found from its
  highest bit to its lowest, one count of the whole array each: no sort, and on several devices
  no gather, only 31 sums of one number.

  Args:
    values: any shape, float32, finite and >= 0.
    valid: the same shape, bool.
    rank: int32 [], 0 <= rank.
  Returns: float32 []; -1 if more than `rank` values are 0, the largest finite float if no more
    than `rank` values are valid.
  """
  bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
  largest_finite = jnp.int32(0x7F7FFFFF)

  def count(candidate: Array) -> Array:
    return jnp.sum(valid & (bits <= candidate), dtype=jnp.int32)

  def try_bit(i: int, found: Array) -> Array:
    candidate = jnp.minimum(found | (jnp.int32(1) << (30 - i)), largest_finite)
    return jnp.where(count(candidate) <= rank, candidate, found)

  found = jax.lax.fori_loop(0, 31, try_bit, jnp.int32(0))
  threshold = jax.lax.bitcast_convert_type(found, jnp.float32)
  return jnp.where(count(found) <= rank, threshold, jnp.float32(-1.0))
