"""Choosing top-level keys of a network's parameters."""

from collections.abc import Iterable
from typing import Any

import jax

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
