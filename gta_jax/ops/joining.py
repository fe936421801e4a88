"""Batches that go through a network together, and what comes out of it taken apart again.

One batch put behind another would cross the devices: the first half of them would hold all of one
kind, and every device would have to send its rows or gather those of all. Here the rows of all
batches alternate, in as many groups as all of them can be cut into,

    a0 a1 a2 a3 with b0 b1  ->  a0 a1 b0  a2 a3 b1

so that every number of devices over which each of the batches splits evenly also splits the joined
one between groups: a device joins rows of its own, and the order does not depend on their number.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def join(*batches: Tree) -> Tree:
  """One batch of the rows of several.

  Args:
    *batches: trees of one structure, [B_i,...] each; all leaves of one have the same B_i.
  Returns: the same structure, [sum of B_i,...] each, in the order that is said above.
  """
  counts = [len(jax.tree.leaves(batch)[0]) for batch in batches]
  groups = math.gcd(*counts)

  def of_leaf(*parts: jax.Array) -> jax.Array:
    grouped = [part.reshape(groups, len(part) // groups, *part.shape[1:]) for part in parts]
    return jnp.concatenate(grouped, axis=1).reshape(sum(counts), *parts[0].shape[1:])

  return batches[0] if len(batches) == 1 else jax.tree.map(of_leaf, *batches)


def separate(joined: Tree, *counts: int) -> tuple[Tree, ...]:
  """What `join` has put together, or what a network has made of it: a tree for each batch.

  Args:
    joined: tree of [sum of counts,...].
    *counts: B_i of the batches, in the order in which they were joined.
  """
  groups, total = math.gcd(*counts), sum(counts)
  ends = list(itertools.accumulate(count // groups for count in counts))

  def rows(start: int, end: int) -> Tree:
    def of_leaf(x: jax.Array) -> jax.Array:
      grouped = x.reshape(groups, total // groups, *x.shape[1:])
      return grouped[:, start:end].reshape(groups * (end - start), *x.shape[1:])

    return jax.tree.map(of_leaf, joined)

  return tuple(rows(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True))
