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


def percentiles(values: Array, valid: Array, percent: Array) -> Array:
  """Percentiles of the valid values with linear interpolation, as np.percentile's.

      place = percent (n - 1) / 100,  v = v_floor(place) + (place - floor(place)) (v_ceil - v_floor)

  Args:
    values: any shape, float32, finite and >= 0.
    valid: the same shape, bool; n of them are true.
    percent: [Q] in [0,100]. In float32 a place is exact to 6e-8 of itself: of a million values it
      may be a tenth of a rank off.
  Returns: [Q] float32; 0 if nothing is valid.
  """
  last = jnp.maximum(jnp.sum(valid, dtype=jnp.int32) - 1, 0)
  place = jnp.asarray(percent, jnp.float32) * last.astype(jnp.float32) / 100
  low = jnp.minimum(jnp.floor(place).astype(jnp.int32), last)
  ranks = jnp.concatenate([low, jnp.minimum(low + 1, last)])
  below = jax.vmap(lambda rank: threshold_below_rank(values, valid, rank))(ranks)
  # The value of a rank is the first float above all that leave it out; -1 leaves out 0.
  found = jnp.where(below < 0, 0.0, jnp.nextafter(below, jnp.float32(jnp.inf)))
  lower, upper = jnp.split(jnp.where(jnp.any(valid), found, 0.0), 2)
  return lower + (place - low) * (upper - lower)
