"""First-in-first-out queues of vectors, one for each class, in arrays of fixed size."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Queues(NamedTuple):
  """Ring buffers behind one another; sizes may differ and are given to every function.

  keys: [sum of sizes, D] float32; class c owns sizes[c] rows, behind those of the classes before.
  count: [K] int32, keys in each queue.
  position: [K] int32, row within the class's own that the next key takes.
  """

  keys: Array
  count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
  position: Array


def init_queues(sizes: Sequence[int], channels: int) -> Queues:
  """Empty queues that hold sizes[c] vectors of so many channels."""
  zeros = jnp.zeros(len(sizes), jnp.int32)
  return Queues(jnp.zeros((sum(sizes), channels), jnp.float32), zeros, zeros)


def push(queues: Queues, sizes: Sequence[int], keys: Array, number: Array) -> Queues:
  """Appends keys; a full queue loses its oldest ones.

  Args:
    queues: with these sizes.
    sizes: [K] of the queues.
    keys: [K,P,D], the oldest first.
    number: [K] int32, how many of the P are meant, from the first one on.
  """
  size, start = _layout(sizes)
  order = jnp.arange(keys.shape[1])
  # Of more keys than a queue holds only the newest are written: no row is written twice.
  written = (order < number[:, None]) & (order >= (number - size)[:, None])
  rows = start[:, None] + (queues.position[:, None] + order) % size[:, None]
  rows = jnp.where(written, rows, len(queues.keys))
  return Queues(
    queues.keys.at[rows].set(keys.astype(queues.keys.dtype), mode='drop'),
    jnp.minimum(queues.count + number, size), (queues.position + number) % size)


def read(queues: Queues, sizes: Sequence[int], classes: Array, ages: Array) -> Array:
  """Keys by class and place in its queue.

  Args:
    queues: with these sizes.
    sizes: [K] of the queues.
    classes: [N] int32.
    ages: [N,...] int32 below the class's count, 0 for its oldest key.
  Returns: [N,...,D] float32.
  """
  size, start = (x[classes].reshape(-1, *[1] * (ages.ndim - 1)) for x in _layout(sizes))
  oldest = (queues.position - queues.count)[classes].reshape(size.shape)
  return queues.keys[start + (oldest + ages) % size]


def _layout(sizes: Sequence[int]) -> tuple[Array, Array]:
  """Sizes and first rows of the queues, [K] each."""
  ends = np.cumsum(sizes)
  return jnp.asarray(sizes, jnp.int32), jnp.asarray(ends - np.asarray(sizes), jnp.int32)
