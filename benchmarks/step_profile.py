"""Where a training step's time goes: a table of its parts, floor against measurement.

    taskset -c 0 python benchmarks/step_profile.py --config configs/shapes.py
    python benchmarks/step_profile.py --config configs/voc.py:183     # on a GPU

Traces some steps and adds up the time of the compiled program's instructions by the function of
ours that they come from, backward passes with their forward ones. A fusion counts where its last
operation belongs. Operations are those of convolutions and matrix products, padding included (of
the program before it is optimised where the compiled one hides them in library calls, as on GPUs);
bytes are what the compiled instructions read and write. The floor of a part is the larger of
operations / peak and bytes / bandwidth, both measured in the same run: a large matrix product in
the config's dtype, and a large copy.
"""

import argparse
import collections
import glob
import json
import math
import re
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cases import STEPS, Case, make_case, read_config
from step_time import matmul_peak

# A part of the table: what appears in an instruction's stack of functions, or in its path through
# the network. The first that fits counts.
PARTS = {
  'losses': r'cross_entropy|SupervisedLoss|pseudo_loss',
  'resizing': r'resize_bilinear',
  'threshold': r'threshold_below_rank|confidence_threshold|_drop',
  're-weighting': r'confidence_weights|_weigh',
  'labels, confidence': r'pseudo_labels\b|softmax',
  'mixing': r'mixing\.py|photometric\.py',
  'EMA': r'transmission\.py',
  'optimiser': r'optim\.py|/optax/',
  'BatchNorm': r'BatchNorm\.',
  'normalising images': r'Network\.normalize',
  'backbone': r'/backbone/',
  'decoder': r'/decoder/',
  'classifier': r'/classifier/|/auxiliary/',
}
BYTES = {'f64': 8, 's64': 8, 'u64': 8, 'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2}
_CONTAINERS = ('while', 'conditional', 'call', 'tuple', 'get-tuple-element', 'parameter',
               'constant', 'bitcast')


class Instruction(NamedTuple):
  """A line of HLO text."""

  name: str
  opcode: str
  shapes: list[tuple[str, tuple[int, ...]]]  # of the results
  operands: list[str]
  part: str
  text: str


def parse(hlo: str) -> dict[str, Instruction]:
  """The instructions of a module by name, of all its computations."""
  tables = {name: dict(re.findall(r'^(\d+) (.*)$', body, re.M)) for name, body in re.findall(
    r'^(FileNames|FunctionNames|FileLocations|StackFrames)\n((?:\d+ .*\n)+)', hlo, re.M)}

  def field(line: str, name: str) -> str:
    return re.search(rf'{name}=(\d+)', line)[1]

  def stack(frame: str) -> str:
    found = []
    while frame != '0' and frame in tables.get('StackFrames', {}):
      line = tables['StackFrames'][frame]
      location = tables['FileLocations'][field(line, 'file_location_id')]
      found.append(tables['FileNames'][field(location, 'file_name_id')] + ':' +
                   tables['FunctionNames'][field(location, 'function_name_id')])
      frame = str(int(field(line, 'parent_frame_id')) - 1)
    return ' '.join(found)

  part_of_frame: dict[tuple, str] = {}
  instructions = {}
  for line in hlo.splitlines():
    match = re.match(r'\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)', line)
    if not match:
      continue
    name, result, opcode, rest = match.groups()
    frame = re.search(r'stack_frame_id=(\d+)', rest)
    path = re.search(r'op_name="([^"]*)"', rest)
    key = (frame and frame[1], path and path[1])
    if key == (None, None):  # XLA forgets where what it rewrote came from.
      part_of_frame[key, opcode] = (
        'convolutions without origin' if opcode == 'convolution' else 'copies, transposes')
      key = (key, opcode)
    elif key not in part_of_frame:
      where = f'{stack(key[0] or "0")} {key[1] or ""}'
      part_of_frame[key] = next((p for p, r in PARTS.items() if re.search(r, where)), 'other')
    operands = re.findall(r'%?([\w.-]+)(?:,|$)', re.sub(r'\).*', '', rest).replace(' ', ''))
    shapes = [(kind, tuple(map(int, filter(None, sides.split(',')))))
              for kind, sides in re.findall(r'(\w+)\[([\d,]*)\]', result)]
    instructions[name] = Instruction(name, opcode, shapes, operands, part_of_frame[key], rest)
  return instructions


def operations(instruction: Instruction, of_name: dict[str, Instruction]) -> float:
  """Floating-point operations of a convolution or a matrix product, else 0."""
  if instruction.opcode not in ('convolution', 'dot'):
    return 0.0
  size = math.prod(instruction.shapes[0][1])
  if instruction.opcode == 'convolution':
    kernel = of_name[instruction.operands[1]].shapes[0][1]
    labels = re.search(r'dim_labels=\w+_(\w+)->', instruction.text)[1]
    return 2.0 * size * math.prod(kernel) / kernel[labels.index('o')]
  left = of_name[instruction.operands[0]].shapes[0][1]
  axes = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.text)[1]
  return 2.0 * size * math.prod(left[int(axis)] for axis in filter(None, axes.split(',')))


def traffic(instruction: Instruction, of_name: dict[str, Instruction]) -> float:
  """Bytes that an instruction reads and writes if nothing stays in a cache."""
  arrays = [*instruction.shapes, *(s for o in instruction.operands if o in of_name
                                   for s in of_name[o].shapes)]
  return sum(BYTES.get(kind, 1) * math.prod(shape) for kind, shape in arrays)


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
  lowered = case.step.lower(case.state, case.batches)
  compiled = lowered.compile()
  case.step = compiled
  counted = parse(compiled.as_text())
  if not any(i.opcode == 'convolution' for i in counted.values()):
    counted = parse(lowered.as_text(dialect='hlo', debug_info=True))
  done = {name: i for name, i in parse(compiled.as_text()).items() if i.opcode not in _CONTAINERS}
  seconds = traced_seconds(case, flags.repeats, done)
  started = time.perf_counter()
  for _ in range(flags.repeats):
    case.run()
  wall = (time.perf_counter() - started) / flags.repeats
  on_cpu = jax.devices()[0].platform == 'cpu'
  peak = matmul_peak(config.model.dtype, side=2048 if on_cpu else 8192)
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
