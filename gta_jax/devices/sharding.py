"""Devices: one mesh with a `data` axis, batches split over it, the state on every device.

In a run of several processes every process enters every program over the mesh, in the same order.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = Any


def make_mesh(
  # jax sets Device to a class of its compiled part, which has no types.
  devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
  """Devices along one axis, `data`: the given ones, or all of all processes.

  Process by process, so that a process's rows of a batch are those that its stream reads.
  """
  devices = jax.devices() if devices is None else devices
  ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(ordered), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
  """The first axis cut over the devices."""
  return NamedSharding(mesh, PartitionSpec('data'))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
  """Puts a tree, the same in every process, on every device."""
  return _regroup(jax.device_put(tree, replicated(make_mesh(mesh.local_devices))), mesh)


def local_copy(tree: Tree) -> Tree:
  """A replicated tree on this process's devices alone, for programs that it enters by itself.

  Nothing is copied: the buffers are the tree's own, and go when it is donated.
  """
  return _regroup(tree, make_mesh(jax.local_devices()))


def _regroup(tree: Tree, mesh: Mesh) -> Tree:
  """The copies that this process holds of a replicated tree, as its part of one over `mesh`."""
  sharding = replicated(mesh)

  def of_leaf(leaf: jax.Array) -> jax.Array:
    copies = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, copies)

  return tree if jax.process_count() == 1 else jax.tree.map(of_leaf, tree)


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Joins the rows that every process holds into one batch, cut over all devices.

  Args:
    batch: this process's rows, [B / process_count, ...] each.
  Returns: the same names, [B, ...] each.
  """
  sharding = split(mesh)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def compile_step(step: Callable, mesh: Mesh, *, deterministic: bool = False) -> Callable:
  """Jits (state, {stream: batch}) -> (state, metrics); the given state is used up.

  deterministic: GPU kernels that give the same bits every time, which may be slower: no sums by
    atomics, no choice of kernels by measuring them. Means nothing on a CPU.
  """
  whole, rows = replicated(mesh), split(mesh)
  # Unused inputs are kept, as jax pairs donated buffers with results of their shape in order: one
  # that is left out, such as a parameter that another network's replaces, shifts all pairs after
  # it, and the compiler must copy.
  return jax.jit(
    step, donate_argnums=0, keep_unused=True, in_shardings=(whole, rows),
    out_shardings=(whole, whole),
    compiler_options={'xla_gpu_deterministic_ops': True} if deterministic else None)


def compile_hand_over(enter: Callable, mesh: Mesh) -> Callable:
  """Jits state -> state on every device; the given state is used up."""
  whole = replicated(mesh)
  return jax.jit(enter, donate_argnums=0, in_shardings=whole, out_shardings=whole)


def check_batch(name: str, size: int) -> None:
  """Raises ValueError where a global batch does not split evenly over all processes' devices."""
  devices = jax.device_count()
  if size < 1 or size % devices:
    raise ValueError(
      f'{name}={size} does not split over {devices} devices; use a multiple of {devices}.')


def is_first_process() -> bool:
  """Whether this process writes what a run leaves; of several, one does."""
  return jax.process_index() == 0


def check_agreement(**values: Any) -> None:
  """Raises ValueError in every process where a named value is not the same in all of them.

  Values are compared by what repr() makes of them.
  """
  if jax.process_count() == 1:
    return
  digests = [hashlib.sha256(repr(value).encode()).digest() for value in values.values()]
  everywhere = multihost_utils.process_allgather(
    np.frombuffer(b''.join(digests), np.uint8).reshape(len(values), -1))
  differs = (everywhere != everywhere[:1]).any(-1)  # [processes, values]
  if differs.any():
    process = int(differs.any(1).argmax())
    names = ', '.join(name for name, d in zip(values, differs[process], strict=True) if d)
    raise ValueError(
      f'process {process} differs from process 0 in: {names.replace("_", " ")}. Start all '
      'processes with one command, one version of the code and of the data, and one --workdir on '
      'storage that they share.')


def sum_over_processes(tree: Tree) -> Tree:
  """Adds int64 arrays [...] of all processes; each gets the sum."""
  if jax.process_count() == 1:
    return tree
  # As bytes: jax would cut int64 to 32 bits, too few for the pixels of a large validation set.
  def add(x: np.ndarray) -> np.ndarray:
    gathered = multihost_utils.process_allgather(np.atleast_1d(x).view(np.uint8))
    return np.ascontiguousarray(gathered).view(np.int64).sum(0).reshape(np.shape(x))

  return jax.tree.map(add, tree)


def place_locally(batch: Tree) -> Tree:
  """Cuts the rows of a batch over this process's devices, which must divide them."""
  if jax.local_device_count() == 1:
    return jax.device_put(batch)  # Once, however many networks see it.
  return jax.device_put(batch, split(make_mesh(jax.local_devices())))


def first_rows(array: jax.Array, rows: int) -> np.ndarray:
  """The first rows of an array on this process's devices; of the others nothing is copied."""
  parts = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
  needed = [parts[start].data for start in sorted(parts) if start < rows]
  for part in needed:
    part.copy_to_host_async()
  return np.concatenate([np.asarray(part) for part in needed])[:rows]


def round_up_to_devices(rows: int) -> int:
  """The least number of rows, `rows` or more, that this process's devices divide."""
  devices = jax.local_device_count()
  return -(-rows // devices) * devices
