"""What the benchmarks read in the text of a program that XLA has compiled."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# A part of a step: what appears in an instruction's stack of functions, or in its path through the
# network. The first that fits counts.
PARTS = {
  'losses': r'cross_entropy|SupervisedLoss|pseudo_loss',
  'resizing': r'resize_bilinear',
  'threshold': r'threshold_below_rank|confidence_threshold|_drop',
  're-weighting': r'confidence_weights|_weigh',
  'labels, confidence': r'pseudo_labels\b|softmax',
  'mixing': r'mixing\.py|photometric\.py',
  'EMA': r'ema\.py',
  'optimiser': r'optim\.py|/optax/',
  'BatchNorm': r'BatchNorm\.',
  'normalising images': r'Network\.normalize',
  'backbone': r'/backbone/',
  'decoder': r'/decoder/',
  'classifier': r'/classifier/|/auxiliary/',
}
BYTES = {'f64': 8, 's64': 8, 'u64': 8, 'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 's16': 2,
         'u16': 2, 'token': 0}
CONTAINERS = ('while', 'conditional', 'call', 'tuple', 'get-tuple-element', 'parameter', 'constant',
              'bitcast')


class Instruction(NamedTuple):
  """A line of HLO text.

  shapes are those of the results; computation is '' of the program's entry; source is the innermost
  line of the package, FILE:LINE, or ''; path is XLA's op_name.
  """

  name: str
  opcode: str
  shapes: list[tuple[str, tuple[int, ...]]]
  operands: list[str]
  part: str
  text: str
  computation: str = ''
  source: str = ''
  path: str = ''

  @property
  def target(self) -> str:
    """Of a call into a library, else ''."""
    found = re.search(r'custom_call_target="([^"]*)"', self.text)
    return found[1] if found else ''

  @property
  def size(self) -> int:
    """Bytes of the results."""
    return sum(nbytes(shape) for shape in self.shapes)


def nbytes(shape: tuple[str, tuple[int, ...]]) -> int:
  """Of an array of this dtype and these sides."""
  return BYTES.get(shape[0], 1) * math.prod(shape[1])


class _Stacks:
  """The tables of functions and lines at the head of a module."""

  def __init__(self, hlo: str):
    names = 'FileNames|FunctionNames|FileLocations|StackFrames'
    self._tables = {
      name: dict(re.findall(r'^(\d+) (.*)$', body, re.M))
      for name, body in re.findall(rf'^({names})\n((?:\d+ .*\n)+)', hlo, re.M)}

  def frames(self, frame: str) -> list[tuple[str, str, str]]:
    """(file, function, line) from the innermost to the outermost."""
    found = []
    while frame != '0' and frame in self._tables.get('StackFrames', {}):
      line = self._tables['StackFrames'][frame]
      location = self._tables['FileLocations'][_field(line, 'file_location_id')]
      found.append((self._tables['FileNames'][_field(location, 'file_name_id')].strip('"'),
                    self._tables['FunctionNames'][_field(location, 'function_name_id')].strip('"'),
                    _field(location, 'line')))
      frame = str(int(_field(line, 'parent_frame_id')) - 1)
    return found


def _field(line: str, name: str) -> str:
  return re.search(rf'\b{name}=(\d+)', line)[1]


def _origin(stacks: _Stacks, frame: str, path: str) -> tuple[str, str]:
  """The part, and the innermost line of the package."""
  frames = stacks.frames(frame)
  where = ' '.join(f'{file}:{function}' for file, function, _ in frames) + f' {path}'
  part = next((p for p, r in PARTS.items() if re.search(r, where)), 'other')
  source = next((f'{file.rpartition("gta_jax/")[2]}:{line}' for file, _, line in frames
                 if 'gta_jax/' in file), '')
  return part, source


def parse(hlo: str) -> dict[str, Instruction]:
  """The instructions of a module by name, of all its computations."""
  stacks, origins = _Stacks(hlo), {}
  instructions, computation = {}, ''
  for line in hlo.splitlines():
    if head := re.match(r'(ENTRY )?%?([\w.-]+)(?: \(.*)? \{$', line):
      computation = '' if head[1] else head[2]
      continue
    match = re.match(r'\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)', line)
    if not match:
      continue
    name, result, opcode, rest = match.groups()
    frame = re.search(r'stack_frame_id=(\d+)', rest)
    path = re.search(r'op_name="([^"]*)"', rest)
    key = frame[1] if frame else '0', path[1] if path else ''
    if key == ('0', ''):  # XLA forgets where what it rewrote came from.
      part, source = (
        'convolutions without origin' if opcode == 'convolution' else 'copies, transposes'), ''
    else:
      if key not in origins:
        origins[key] = _origin(stacks, *key)
      part, source = origins[key]
    operands = re.findall(r'%?([\w.-]+)(?:,|$)', re.sub(r'\).*', '', rest).replace(' ', ''))
    shapes = [(kind, tuple(map(int, filter(None, sides.split(',')))))
              for kind, sides in re.findall(r'(\w+)\[([\d,]*)\]', result)]
    instructions[name] = Instruction(
      name, opcode, shapes, operands, part, rest, computation, source, key[1])
  return instructions


def executed(of_name: dict[str, Instruction]) -> Iterator[tuple[Instruction, int]]:
  """What the program runs one after the other, each with how often a step runs it.

  Loops, branches and calls are entered, fusions are one kernel each. A loop whose count XLA does
  not know counts once, and all branches count.
  """
  of_computation: dict[str, list[Instruction]] = {}
  for instruction in of_name.values():
    of_computation.setdefault(instruction.computation, []).append(instruction)

  def run(computation: str, times: int) -> Iterator[tuple[Instruction, int]]:
    for instruction in of_computation.get(computation, ()):
      if instruction.opcode in ('while', 'conditional', 'call', 'async-start'):
        count = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.text)
        for called in _called(instruction):
          yield from run(called, times * int(count[1]) if count else times)
      elif instruction.opcode not in CONTAINERS:
        yield instruction, times

  return run('', 1)


def _called(instruction: Instruction) -> list[str]:
  """The computations that an instruction enters."""
  names = re.findall(
    r'(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.-]+)',
    instruction.text)
  for branches in re.findall(r'branch_computations=\{([^}]*)\}', instruction.text):
    names += [name.strip().lstrip('%') for name in branches.split(',')]
  return names


def operations(instruction: Instruction, of_name: dict[str, Instruction]) -> float:
  """Floating-point operations of a convolution or a matrix product, also one of a library; else 0.

  Of a convolution all products count, also those with padding.
  """
  if instruction.target.startswith('__cudnn$conv'):
    return _of_cudnn(instruction, of_name)
  if instruction.opcode == 'convolution':
    kernel = of_name[instruction.operands[1]].shapes[0][1]
    labels = re.search(r'dim_labels=\w+_(\w+)->', instruction.text)[1]
    size = math.prod(instruction.shapes[0][1])
    return 2.0 * size * math.prod(kernel) / kernel[labels.index('o')]
  if instruction.opcode == 'dot':
    axes = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.text)[1].split(',')
  elif instruction.target.startswith('__cublas'):
    axes = re.findall(r'\d+', re.search(
      r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.text)[1])
  else:
    return 0.0
  left = of_name[instruction.operands[0]].shapes[0][1]
  size = math.prod(instruction.shapes[0][1])
  return 2.0 * size * math.prod(left[int(axis)] for axis in filter(None, axes))


def _of_cudnn(instruction: Instruction, of_name: dict[str, Instruction]) -> float:
  """A cuDNN call names the axes of the forward convolution, whichever pass it is."""
  left, right = (of_name[name].shapes[0][1] for name in instruction.operands[:2])
  result = instruction.shapes[0][1]
  output, kernel = {
    'Input': (left, right), 'Filter': (right, result)}.get(
      re.sub('.*Backward', '', instruction.target), (result, right))
  labels = re.search(r'dim_labels=\w+_\w+->(\w+)', instruction.text)[1]
  return 2.0 * math.prod(output) * math.prod(kernel) / output[labels.index('f')]


def fused_operations(instruction: Instruction, of_name: dict[str, Instruction]) -> float:
  """`operations`, and those of what a fusion holds."""
  if instruction.opcode != 'fusion':
    return operations(instruction, of_name)
  inside = _called(instruction)
  return sum(operations(i, of_name) for i in of_name.values() if i.computation in inside)


def traffic(instruction: Instruction, of_name: dict[str, Instruction]) -> float:
  """Bytes that an instruction reads and writes if nothing stays in a cache.

  Without the second result of a library's call, its workspace.
  """
  library = instruction.target.startswith(('__cublas', '__cudnn'))
  written = nbytes(instruction.shapes[0]) if library else instruction.size
  return written + sum(
    of_name[operand].size for operand in instruction.operands if operand in of_name)
