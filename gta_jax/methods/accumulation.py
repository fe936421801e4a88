"""Gradient accumulation: passes over parts of a batch that does not fit in memory at once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gta_jax.ops.network import Array

Tree = Any


@dataclasses.dataclass(frozen=True)
class Accumulation:
  """How a batch is cut.

  Attributes:
    per_device: images of one kind in a pass on one device; 0 leaves batches whole.
    devices: over which the first axis of a batch is split. Each micro-batch takes its rows from
      every device's own, so that no image moves.
  """

  per_device: int = 0
  devices: int = 1

  def count(self, batch: int) -> int:
    """Micro-batches in a batch of so many images, one if it fits whole; ValueError if they are not
    of equal size."""
    size = self.per_device * self.devices
    if not size or batch <= size:
      return 1
    if batch % size:
      raise ValueError(
        f'train.per_device_batch={self.per_device} on {self.devices} devices does not divide a '
        f'batch of {batch}; use a divisor of {batch / self.devices:g}, or 0 for whole batches.')
    return batch // size


WHOLE = Accumulation()


def over_micro_batches(
  function: Callable[[Tree, Array], tuple[Tree, Tree]],
  batch: Tree,
  accumulation: Accumulation,
  *,
  key: Array,
) -> tuple[Tree, Tree, int]:
  """Calls a function on each micro-batch, one after the other.

  Args:
    function: (micro-batch, key) -> (rows [b,...], sums); the same function sees a whole batch where
      nothing is cut.
    batch: tree of [B,...].
    accumulation: how to cut it.
    key: folded with the micro-batch's number; passed on as it is where nothing is cut.
  Returns: rows [B,...] in the batch's order; the sums added up; the number of micro-batches.
  """
  counts = {accumulation.count(len(x)) for x in jax.tree.leaves(batch)}
  if len(counts) > 1:
    raise ValueError(
      f'batches are cut into {sorted(counts)} micro-batches, but go through the network together; '
      'use labelled and unlabelled batches of one size, or train.per_device_batch=0.')
  count, = counts
  if count == 1:
    return *function(batch, key), 1

  def cut(x: Array) -> Array:
    rows = x.reshape(accumulation.devices, count, accumulation.per_device, *x.shape[1:])
    return rows.swapaxes(0, 1).reshape(count, -1, *x.shape[1:])

  def join(x: Array) -> Array:
    rows = x.reshape(count, accumulation.devices, accumulation.per_device, *x.shape[2:])
    return rows.swapaxes(0, 1).reshape(-1, *x.shape[2:])

  def body(sums: Tree, inputs: tuple[Tree, Array]) -> tuple[Tree, Tree]:
    part, number = inputs
    rows, more = function(part, jax.random.fold_in(key, number))
    return jax.tree.map(jnp.add, sums, more), rows

  parts = jax.tree.map(cut, batch)
  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(function, first, key)[1]
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  # A true loop, although the CPU is slow at convolutions in one: of unrolled passes XLA keeps the
  # activations side by side.
  sums, rows = jax.lax.scan(body, zeros, (parts, jnp.arange(count)))
  return jax.tree.map(join, rows), sums, count


def mean(sums: Tree, count: int) -> Tree:
  """The mean over micro-batches of what over_micro_batches added up."""
  return jax.tree.map(lambda x: x / count, sums)
