"""What stands in a program compiled for GPUs: its kernels, buffers, collectives and their cost."""

import collections
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from hlo import Instruction, executed, fused_operations, nbytes, parse, traffic

COLLECTIVES = ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter')
_LARGEST_WINDOW = 7
_LIBRARIES = {
  '__cudnn$convForward': 'cuDNN forward', '__cudnn$convBiasActivationForward': 'cuDNN forward',
  '__cudnn$convBackwardInput': 'cuDNN input gradient',
  '__cudnn$convBackwardFilter': 'cuDNN kernel gradient'}


class Cost(NamedTuple):
  """Of kernels: how many a step runs, their operations and bytes, and the least seconds."""

  kernels: int = 0
  operations: float = 0.0
  bytes: float = 0.0
  seconds: float = 0.0

  def __add__(self, other: 'Cost') -> 'Cost':
    return Cost(*(a + b for a, b in zip(self, other, strict=True)))


def kernel_class(instruction: Instruction) -> str:
  """What runs it: a library, or a kernel that XLA has written."""
  if collective(instruction):
    return 'collectives'
  if target := instruction.target:
    return _LIBRARIES.get(target, 'cuBLAS' if '__cublas' in target else f'library: {target}')
  if instruction.opcode == 'fusion':
    kind = re.search(r'kind=k(\w+)', instruction.text)
    return f'fusions, {kind[1].lower()}' if kind else 'fusions'
  return 'copies' if 'copy' in instruction.opcode else 'other kernels'


def collective(instruction: Instruction) -> str:
  """Its kind, or '' of everything else and of the waiting for one."""
  kind = instruction.opcode.removesuffix('-start')
  return kind if kind in COLLECTIVES else ''


def cost(
  instruction: Instruction, of_name: dict[str, Instruction], *, tflops: dict[str, float],
  bandwidth: float,
) -> Cost:
  """Of one run of a kernel. Its least time is that of its operations or of its bytes.

  Args:
    tflops: peak by dtype; products of float32 count as tf32 unless they ask for more.
    bandwidth: bytes a second.
  """
  count = fused_operations(instruction, of_name)
  moved = traffic(instruction, of_name)
  dtypes = {kind for name in instruction.operands if name in of_name
            for kind, _ in of_name[name].shapes}
  peak = tflops['bfloat16'] if dtypes & {'bf16', 'f16'} else tflops[
    'float32' if 'HIGHEST' in instruction.text or 'highest' in instruction.text else 'tf32']
  return Cost(1, count, moved, max(count / peak / 1e12, moved / bandwidth))


def costs(
  of_name: dict[str, Instruction], *, tflops: dict[str, float], bandwidth: float
) -> tuple[dict[str, Cost], dict[str, Cost]]:
  """The same of a whole step, by part and by class of kernel; collectives are not in the parts."""
  by_part: dict[str, Cost] = collections.defaultdict(Cost)
  by_class: dict[str, Cost] = collections.defaultdict(Cost)
  for instruction, times in executed(of_name):
    if instruction.opcode.endswith('-done'):
      continue
    one = cost(instruction, of_name, tflops=tflops, bandwidth=bandwidth)
    whole = Cost(*(times * value for value in one))
    by_class[kernel_class(instruction)] += whole
    if not collective(instruction):
      by_part[instruction.part] += whole
  return dict(by_part), dict(by_class)


def where(instruction: Instruction) -> str:
  """The line of the package, and the place in the network."""
  place = re.search(r'((?:backbone|decoder|classifier|auxiliary)/.*?)/[\w.()]*$', instruction.path)
  return f'{instruction.source} {place[1] if place else ""}'.strip() or '(unknown)'


def shape_text(instruction: Instruction) -> str:
  """dtype[sides] of the largest result."""
  kind, sides = max(instruction.shapes, key=nbytes)
  return f'{kind}[{",".join(map(str, sides))}]'


def wide_windows(of_name: dict[str, Instruction], most: int = _LARGEST_WINDOW) -> list[dict]:
  """Convolutions whose window has a side longer than `most` pixels."""
  found = []
  for instruction in of_name.values():
    window = re.search(r'window=\{size=([\dx]+)([^}]*)\}', instruction.text)
    convolves = instruction.opcode == 'convolution' or '__cudnn$conv' in instruction.target
    if window and convolves and max(map(int, window[1].split('x'))) > most:
      found.append({'window': window[1] + window[2], 'shape': shape_text(instruction),
                    'by': kernel_class(instruction), 'where': where(instruction)})
  return found


def large_float32(of_name: dict[str, Instruction], least: float = 100e6) -> list[dict]:
  """Every float32 array above so many bytes that a kernel writes to memory, with its count."""
  return _grouped(i for i, _ in executed(of_name) if not i.opcode.endswith('-done') and any(
    shape[0] == 'f32' and nbytes(shape) > least for shape in i.shapes))


def transposes(of_name: dict[str, Instruction], least: float = 1e6) -> list[dict]:
  """Kernels that do nothing but lay an activation out anew.

  An activation is an array of four or more axes and above so many bytes that has no parameter's
  sides, in whatever order.
  """
  def sides(shape: tuple[str, tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted(side for side in shape[1] if side > 1))

  parameters = {sides(shape) for i in of_name.values() if i.opcode == 'parameter'
                and not i.computation for shape in i.shapes}

  def is_one(instruction: Instruction) -> bool:
    lays_out = 'transpose' in instruction.name or instruction.opcode in ('transpose', 'copy')
    return lays_out and any(
      len(shape[1]) >= 4 and nbytes(shape) > least and sides(shape) not in parameters
      for shape in instruction.shapes)

  return _grouped(i for i, _ in executed(of_name) if is_one(i))


def _grouped(instructions: Iterable[Instruction]) -> list[dict]:
  """By shape and place, the most bytes first."""
  counts = collections.Counter((shape_text(i), where(i), i.size) for i in instructions)
  rows = [{'shape': shape, 'where': place, 'count': count, 'megabytes': size * count / 1e6}
          for (shape, place, size), count in counts.items()]
  return sorted(rows, key=lambda row: -row['megabytes'])


def collectives(of_name: dict[str, Instruction]) -> dict[str, dict[str, float]]:
  """Number and megabytes of the collective operations that a step runs, by kind."""
  found: dict[str, dict[str, float]] = {}
  for instruction, times in executed(of_name):
    kind = collective(instruction)
    if not kind:
      continue
    sent = sum(of_name[name].size for name in instruction.operands if name in of_name)
    if kind == 'all-reduce':
      arrays = [s for name in instruction.operands if name in of_name for s in of_name[name].shapes]
      largest = max(arrays, key=nbytes, default=('', ()))
      kind += ' of ' + {0: 'scalars', 1: 'vectors'}.get(len(largest[1]), 'kernels')
      kind = kind if math.prod(largest[1]) > 1 else 'all-reduce of scalars'
    row = found.setdefault(kind, {'number': 0, 'megabytes': 0.0})
    row['number'] += times
    row['megabytes'] += times * sent / 1e6
  return found


def overlaps(
  of_name: dict[str, Instruction], *, tflops: dict[str, float], bandwidth: float
) -> dict[str, dict[str, float]]:
  """Collectives beside which a device computes: how many, and with what, by kind.

  Between the start of one and the wait for it stand the kernels that run beside it, as XLA has
  scheduled them. number: instructions, those in a loop once; beside_kernels: those with such
  kernels; beside_ms: the least time of these, an estimate.
  """
  found: dict[str, dict[str, float]] = {}
  started: dict[str, tuple[str, float]] = {}
  clock = 0.0
  for instruction, times in executed(of_name):
    if kind := collective(instruction):
      started[instruction.name] = kind, clock
      row = found.setdefault(kind, {'number': 0, 'beside_kernels': 0, 'beside_ms': 0.0})
      row['number'] += 1
    elif instruction.opcode.endswith('-done'):
      for name in instruction.operands:
        kind, since = started.get(name, ('', clock))
        if clock > since:
          found[kind]['beside_kernels'] += 1
          found[kind]['beside_ms'] += 1000 * (clock - since)
    else:
      clock += times * cost(instruction, of_name, tflops=tflops, bandwidth=bandwidth).seconds
  return found


def at_the_peak(live_ranges: str, of_name: dict[str, Instruction]) -> list[dict]:
  """The buffers that live when most memory is in use, by shape and place, the largest first."""
  _, _, report = live_ranges.partition('(peak):\n')
  lines = re.findall(r'^    ([\w.-]+)\{([\d,]*)\}: (\d+) bytes', report, re.M)
  groups: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
  for name, index, size in lines:
    instruction = of_name.get(name)
    if instruction is None or int(size) == 0 or (not index and len(instruction.shapes) > 1):
      continue  # The last is a table of pointers to a call's results.
    number = int(index.split(',')[0]) if index else 0
    kind, sides = instruction.shapes[min(number, len(instruction.shapes) - 1)]
    shape = f'{kind}[{",".join(map(str, sides))}]'
    given = instruction.opcode == 'parameter' and not instruction.computation
    groups[shape, 'state and batches' if given else where(instruction)].append(int(size))
  rows = [{'shape': shape, 'where': place, 'count': len(sizes), 'megabytes': sum(sizes) / 1e6}
          for (shape, place), sizes in groups.items()]
  return sorted(rows, key=lambda row: -row['megabytes'])


def report(
  text: str, live_ranges: str, *, tflops: dict[str, float], bandwidth: float
) -> dict[str, Any]:
  """All of it, as JSON takes it."""
  of_name = parse(text)
  by_part, by_class = costs(of_name, tflops=tflops, bandwidth=bandwidth)

  def rows(table: dict[str, Cost]) -> dict[str, dict[str, float]]:
    ordered = sorted(table.items(), key=lambda item: -item[1].seconds)
    return {name: {'kernels': c.kernels, 'gflop': c.operations / 1e9, 'gigabytes': c.bytes / 1e9,
                   'estimated_ms': 1000 * c.seconds} for name, c in ordered}

  return {
    'estimated_ms': 1000 * sum(c.seconds for c in by_part.values()),
    'tflop': sum(c.operations for c in by_part.values()) / 1e12,
    'parts': rows(by_part), 'classes': rows(by_class), 'wide_windows': wide_windows(of_name),
    'peak': at_the_peak(live_ranges, of_name), 'large_float32': large_float32(of_name),
    'transposes': transposes(of_name), 'collectives': collectives(of_name),
    'overlaps': overlaps(of_name, tflops=tflops, bandwidth=bandwidth)}


def total_memory(memory: dict[str, int]) -> int:
  """Bytes that a step needs, of those by kind; what is updated in place counts once."""
  return sum(memory[kind] for kind in ('arguments', 'temporaries', 'code and constants'))


CARDS = 16, 24, 40, 80  # GB
SUMMARY = ('for', 'GPUs', 'GB each', 'of them state and batches', 'fits', 'TFLOP each',
           'estimated ms, at least', 'wide windows', 'kernels')


def summary(found: dict[str, Any]) -> tuple[Any, ...]:
  """A line of a table about programs: the config, and SUMMARY.

  A program fits the smallest card of whose memory it takes three quarters at most, as much as jax
  takes by default.

  Args:
    found: what gpu_program.py writes.
  """
  size = total_memory(found['memory'])
  fits = [f'{card} GB' for card in CARDS if size <= 0.75e9 * card]
  return (
    ' '.join([found['config'], *found['set']]), found['gpu'], found['devices'],
    f'{size / 1e9:.1f}', f'{found["memory"]["arguments"] / 1e9:.1f}',
    fits[0] if fits else 'none of them', f'{found["tflop"]:.1f}',
    f'{found["estimated_ms"]:.0f}', len(found['wide_windows']),
    sum(row['kernels'] for row in found['parts'].values()))
