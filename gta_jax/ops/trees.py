"""Choosing top-level keys of a network's parameters, and the size of trees."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any


def select(tree: dict[str, Tree], keys: Iterable[str]) -> dict[str, Tree]:
  """The part of `tree` under the given top-level keys.

  Raises:
    ValueError: a key is not there.
  """
  keys = tuple(keys)
  unknown = [key for key in keys if key not in tree]
  if unknown:
    raise ValueError(f'unknown keys {unknown}; this network has {sorted(tree)}.')
  return {key: tree[key] for key in keys}


def replace(tree: dict[str, Tree], part: dict[str, Tree]) -> dict[str, Tree]:
  """`tree` with the top-level keys of `part` taken from `part`."""
  select(tree, part)
  return {**tree, **part}


def copy(tree: Tree) -> Tree:
  """The same values in buffers of their own (a donated buffer can be given away only once)."""
  return jax.tree.map(lambda leaf: leaf.copy(), tree)


def copy_key(key: Array) -> Array:
  """The same for a PRNG key, typed or not."""
  return jax.random.clone(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key.copy()


def add(one: Tree, other: Tree) -> Tree:
  """The sum of two trees of one structure, leaf by leaf."""
  return jax.tree.map(jnp.add, one, other)


def norm(tree: Tree) -> Array:
  """The Euclidean norm over all leaves, float32 []."""
  # Products of vectors: on a CPU XLA makes vector instructions of them, unlike of sums of squares.
  leaves = (leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(tree))
  return jnp.sqrt(sum((jnp.vdot(leaf, leaf) for leaf in leaves), start=jnp.float32(0)))
