"""Where a training step's time goes: a table of its parts, floor against measurement.

    taskset -c 0 python benchmarks/step_profile.py --config configs/shapes.py
    python benchmarks/step_profile.py --config configs/voc.py:183     # on a GPU

Traces some steps and adds up the time of the compiled program's instructions by the function of
ours that they come from, backward passes with their forward ones. A fusion counts where its last
operation belongs. Operations are those of convolutions and matrix products, padding included;
bytes are what the compiled instructions read and write. The floor of a part is the larger of
operations / peak and bytes / bandwidth, both measured in the same run: a large matrix product in
the config's dtype, and a large copy.
"""

import argparse
import collections
import glob
import json
import math
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from cases import STEPS, Case, make_case, read_config
from hlo import CONTAINERS, Instruction, operations, parse, traffic
from step_time import matmul_peak


def traced_seconds(case: Case, steps: int, known: dict[str, Instruction]) -> dict[str, float]:
  """Seconds a step by instruction, from a profiler's trace."""
  case.run(), case.run()
  seconds: collections.Counter[str] = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(steps):
        case.run()
    for path in glob.glob(f'{folder}/**/*.xplane.pb', recursive=True):
      for plane in jax.profiler.ProfileData.from_file(path).planes:
        for line in plane.lines:
          for event in line.events:
            if event.name in known:
              seconds[event.name] += event.duration_ns / 1e9 / steps
  return seconds


def copy_bandwidth(megabytes: int = 256) -> float:
  """Bytes a second of a copy: read and written."""
  x = jnp.zeros(megabytes * 2**18, jnp.float32)
  add = jax.jit(lambda x: x + 1)
  add(x).block_until_ready()
  best = math.inf
  for _ in range(5):
    started = time.perf_counter()
    add(x).block_until_ready()
    best = min(best, time.perf_counter() - started)
  return 2 * x.nbytes / best


def main() -> None:
  """Compiles, traces, adds up, prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='configs/shapes.py')
  parser.add_argument('--step', default='gta', choices=list(STEPS))
  parser.add_argument('--repeats', type=int, default=10)
  parser.add_argument('--out', type=Path, help='JSON file')
  parser.add_argument('--set', nargs='*', default=[], metavar='FIELD=JSON')
  flags = parser.parse_args()
  config = read_config(flags.config, flags.step, flags.set)
  case = make_case(config)
  case.step = case.step.lower(case.state, case.batches).compile()
  counted = parse(case.step.as_text())
  done = {name: i for name, i in counted.items() if i.opcode not in CONTAINERS}
  seconds = traced_seconds(case, flags.repeats, done)
  started = time.perf_counter()
  for _ in range(flags.repeats):
    case.run()
  wall = (time.perf_counter() - started) / flags.repeats
  peak = matmul_peak(config.model.dtype)
  bandwidth = copy_bandwidth()

  parts: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(3))
  for instruction in counted.values():
    parts[instruction.part][0] += operations(instruction, counted)
  for name, of_one in seconds.items():
    parts[done[name].part] += (0, traffic(done[name], done), of_one)
  print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}, {flags.config} '
        f'{" ".join(flags.set)} {flags.step}: {1000 * wall:.1f} ms a step, of which '
        f'{1000 * sum(seconds.values()):.1f} ms are instructions; peak {peak / 1e9:.0f} GFLOP/s '
        f'in {config.model.dtype}, copy {bandwidth / 1e9:.1f} GB/s')
  print('| part | GFLOP | MB | floor ms | measured ms | ratio | share |\n|' + '---|' * 7)
  rows = {}
  for part, (flop, moved, of_part) in sorted(parts.items(), key=lambda item: -item[1][2]):
    floor = max(flop / peak, moved / bandwidth)
    rows[part] = {'gflop': flop / 1e9, 'megabytes': moved / 1e6, 'floor_ms': 1000 * floor,
                  'ms': 1000 * of_part, 'ratio': of_part / floor if floor else math.nan,
                  'share': of_part / sum(seconds.values())}
    print('| {part} | {gflop:.3f} | {megabytes:.1f} | {floor_ms:.2f} | {ms:.2f} | {ratio:.1f} | '
          '{share:.0%} |'.format(part=part, **rows[part]))
  if flags.out:
    flags.out.write_text(json.dumps({'wall_ms': 1000 * wall, 'parts': rows}, indent=2) + '\n')


if __name__ == '__main__':
  main()
