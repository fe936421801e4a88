"""Devices: one mesh with a `data` axis, batches split over it, the state on every device."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = Any


def make_mesh() -> Mesh:
  """All devices of all processes along one axis, `data`."""
  return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
  """The first axis cut over the devices."""
  return NamedSharding(mesh, PartitionSpec('data'))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
  """Puts a tree on every device."""
  return jax.device_put(tree, replicated(mesh))


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Joins the rows that every process holds into one batch, cut over all devices.

  Args:
    batch: this process's rows, [B / process_count, ...] each.
  Returns: the same names, [B, ...] each.
  """
  sharding = split(mesh)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def compile_step(step: Callable, mesh: Mesh) -> Callable:
  """Jits (state, labelled, unlabelled) -> (state, metrics); the given state is used up."""
  whole, rows = replicated(mesh), split(mesh)
  return jax.jit(
    step, donate_argnums=0, in_shardings=(whole, rows, rows), out_shardings=(whole, whole))


def check_batch(name: str, size: int) -> None:
  """Raises ValueError where a global batch does not split evenly over the devices."""
  devices = jax.device_count()
  if size < 1 or size % devices:
    raise ValueError(
      f'{name}={size} does not split over {devices} devices; use a multiple of {devices}.')
