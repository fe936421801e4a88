"""What a step sends between devices, and what that will cost on many.

    python benchmarks/scaling.py                                 # 1, 2, 4, 8 devices in one CPU
    python benchmarks/scaling.py --paper configs/voc.py:183      # on paper, to 64 GPUs

The first form cuts the processor into devices, compiles the step for 1, 2, 4 and 8 of them, and
counts the collective operations of the compiled program: kernels' gradients are arrays of rank 4,
BatchNorm's statistics and the gradients of vectors of rank 1, losses, weights and thresholds
scalars; an operation on several arrays counts for the kind with the most bytes. CutMix sends the
images at the borders of the devices' parts. The times tell only that
nothing breaks down: the devices share the cores.

The second form counts, from the shapes of a config's network, what an all-reduce has to move in a
step, and compares it with the time to compute under the assumptions that its flags state.
"""

import argparse
import collections
import json
import math
import os
import statistics
import time
from pathlib import Path

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8')

import jax
from cases import STEPS, make_case, num_classes, read_config
from hlo import BYTES, Instruction, parse

KINDS = {1: 'vectors', 4: 'kernels'}  # by rank


def collectives(instructions: dict[str, Instruction]) -> dict[str, tuple[int, float]]:
  """Number of operations and bytes by kind; those inside a loop count once."""
  found: dict[str, list] = collections.defaultdict(lambda: [0, 0.0])
  for instruction in instructions.values():
    if instruction.opcode not in ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute'):
      continue
    kinds = collections.Counter()
    for dtype, shape in instruction.shapes:
      kind = instruction.opcode
      if kind == 'all-reduce':
        kind = 'scalars' if math.prod(shape) == 1 else KINDS.get(len(shape), 'other sums')
      kinds[kind] += BYTES.get(dtype, 1) * math.prod(shape)
    found[max(kinds, key=kinds.get)][0] += 1
    for kind, size in kinds.items():
      found[kind][1] += size
  return {kind: tuple(of_kind) for kind, of_kind in found.items()}


def measure(flags: argparse.Namespace) -> list[dict]:
  """A row for each number of devices."""
  config, rows = read_config(flags.config, flags.step, flags.set), []
  for devices in flags.devices:
    case = make_case(config, devices)
    case.step = case.step.lower(case.state, case.batches).compile()
    found = collectives(parse(case.step.as_text()))
    case.run()
    times = []
    for _ in range(flags.repeats):
      started = time.perf_counter()
      case.run()
      times.append(1000 * (time.perf_counter() - started))
    rows.append({'devices': devices, 'ms': statistics.median(times), 'collectives': found})
  return rows


def on_paper(flags: argparse.Namespace) -> dict[str, float]:
  """Megabytes that one all-reduce of each kind takes in a step of GTA, from shapes alone."""
  from gta_jax.training import setup  # noqa: PLC0415

  config = read_config(flags.paper, 'gta', ['model.weights=""', *flags.set])
  network = setup.make_network(config, num_classes(config))
  shapes = jax.eval_shape(
    lambda key: network.init(key, (config.data.crop,) * 2), jax.random.key(0))

  # XLA adds up kernels' gradients before it makes them float32.
  kernel = jax.numpy.dtype(config.model.dtype).itemsize

  def size(tree: dict) -> int:
    return sum((kernel if leaf.ndim == 4 else 4) * math.prod(leaf.shape)
               for leaf in jax.tree.leaves(tree))

  # Assistant and student each send their gradients. Each pass in train mode sends mean and
  # variance together, and two sums of their size on its way back.
  return {
    'gradients': 2 * size(shapes['params']) / 1e6,
    'BatchNorm': 2 * 2 * size(shapes['batch_stats']) / 1e6,
    'threshold, weights, losses': 4 * (2 * 31 + 10) / 1e6,
    'layers': len(jax.tree.leaves(shapes['batch_stats'])) // 2,
  }


def print_paper(flags: argparse.Namespace) -> None:
  """The table of the second form."""
  sent = on_paper(flags)
  layers = sent.pop('layers')
  print(f'{flags.paper}: ' + ', '.join(f'{k} {v:.3g} MB' for k, v in sent.items()) +
        f' a step, {layers} BatchNorm layers')
  print('| GPUs | batch of each kind | compute ms | gradients ms | BatchNorm ms | '
        'latency ms | share of communication |\n|' + '---|' * 7)
  compute = 1000 * flags.images * flags.tflop_an_image / flags.tflops
  for devices in flags.gpus:
    ring = 2 * (devices - 1) / devices
    gradients, norms = (ring * sent[k] / flags.gigabytes for k in ('gradients', 'BatchNorm'))
    # Per layer: an all-reduce forward, one back, for two passes; thresholds one after another.
    waits = (2 * 2 * layers + 31 + 10) * flags.latency / 1000 if devices > 1 else 0
    share = (gradients + norms + waits) / (compute + gradients + norms + waits)
    print(f'| {devices} | {devices * flags.images} | {compute:.1f} | {gradients:.1f} | {norms:.2f} '
          f'| {waits:.1f} | {share:.0%} |')


def main() -> None:
  """Prints one of the two tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='configs/shapes.py')
  parser.add_argument('--step', default='gta', choices=list(STEPS))
  parser.add_argument('--devices', type=int, nargs='+', default=[1, 2, 4, 8])
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--out', type=Path, help='JSON file of the first form')
  parser.add_argument('--set', nargs='*', default=[], metavar='FIELD=JSON')
  parser.add_argument('--paper', metavar='CONFIG', help='count this config on paper instead')
  parser.add_argument('--gpus', type=int, nargs='+', default=[1, 2, 4, 8, 16, 32, 64])
  parser.add_argument('--images', type=int, default=3, help='of a kind on each GPU')
  parser.add_argument('--tflop_an_image', type=float, default=44.2 / 12,
                      help='of a step, by image of a kind, as step_time.py counts it')
  parser.add_argument('--tflops', type=float, default=280, help='TFLOP/s of a GPU in use: assumed')
  parser.add_argument('--gigabytes', type=float, default=200, help='GB/s of a link: assumed')
  parser.add_argument('--latency', type=float, default=20, help='µs of a small sum: assumed')
  flags = parser.parse_args()
  if flags.paper:
    print_paper(flags)
    return
  rows = measure(flags)
  kinds = sorted({kind for row in rows for kind in row['collectives']})
  print(f'{flags.config} {" ".join(flags.set)} {flags.step}; collectives: number, MB')
  print('| devices | ms a step | ' + ' | '.join(kinds) + ' |\n|---|---|' + '---|' * len(kinds))
  for row in rows:
    cells = [row['collectives'].get(kind, (0, 0.0)) for kind in kinds]
    print(f'| {row["devices"]} | {row["ms"]:.0f} | ' +
          ' | '.join(f'{count}, {size / 1e6:.2f}' for count, size in cells) + ' |')
  if flags.out:
    flags.out.write_text(json.dumps({'config': flags.config, 'rows': rows}, indent=2) + '\n')


if __name__ == '__main__':
  main()
