"""What a step takes on the GPU at hand, beside what was said of it without one.

    python benchmarks/gpu_check.py --out gpu_check.json

Times the steps supervised, gta and released of a config, each in a process of its own, and compares
milliseconds with the roofline of the program that has run, and the memory that was in use with what
that program and gpu_program.py, which needs no GPU, say of it. Then takes steps in turn with the
same ones in PyTorch, where torch with CUDA is installed. All on one GPU: the first, unless
CUDA_VISIBLE_DEVICES names another. Meant to end within ten minutes for configs/voc.py:183 (an
estimate). Exit status 2 where there is no GPU, or one that benchmarks/gpus does not describe.

The programs without a GPU are compiled beside the timing, on other cores of the host.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gpu_target
import jax
from cases import STEPS, make_case, read_config
from program_report import report, total_memory
from step_time import compile_cases, matmul_peak, time_cases
from torch_twin import contest, ratios

NAMES = ('supervised', 'gta', 'released')
TWINS = [('jax', 'gta'), *(('torch', name) for name in NAMES), ('torch tuned', 'supervised'),
         ('torch tuned', 'gta')]
COLUMNS = {  # head of the table: field of a row, format
  'ms': ('ms', '.1f'), 'roofline ms': ('estimated_ms', '.1f'), 'ratio': ('ratio', '.2f'),
  'roofline ms, without a GPU': ('deviceless_ms', '.1f'), '% of peak': ('peak_percent', '.0f'),
  'GB, peak in use': ('peak_gb', '.2f'), 'GB, program': ('program_gb', '.2f'),
  'GB, without a GPU': ('deviceless_gb', '.2f'), 'compile s, cold': ('compile_cold_s', '.0f'),
  'warm': ('compile_warm_s', '.0f')}


def described_gpu() -> str:
  """The name in benchmarks/gpus of this process's first device.

  Raises: ValueError where that is no GPU, or one that is not described.
  """
  device = jax.devices()[0]
  if device.platform != 'gpu':
    raise ValueError(
      f'there is no GPU that jax can use here (it sees {device.device_kind}): install '
      'requirements.txt on a machine with one. What a step needs there, benchmarks/gpu_program.py '
      'says without a GPU.')
  return gpu_target.name_of(device.device_kind)


def measure(
  config_file: str, step: str, fields: Sequence[str], gpu: gpu_target.Gpu, repeats: int
) -> dict[str, Any]:
  """A step on this process's devices: its time, memory and compilation, and its roofline.

  Args:
    config_file, step, fields: see cases.read_config.
    gpu: whose published figures the roofline is of.
    repeats: timed steps.
  """
  config = read_config(config_file, step, fields)
  fastest = matmul_peak(config.model.dtype)  # first: the step needs more memory
  cases = {step: make_case(config, 1)}
  compiled = compile_cases(cases)[step]
  found = report(cases[step].step.as_text(), '', tflops=gpu.tflops, bandwidth=gpu.bandwidth)
  times = time_cases(cases, repeats)[step]
  memory = jax.devices()[0].memory_stats() or {}
  peak = memory.get('peak_bytes_in_use')
  ms = statistics.median(times)
  return {
    **compiled, 'ms': ms, 'times_ms': times, 'estimated_ms': found['estimated_ms'],
    'ratio': ms / found['estimated_ms'], 'wide_windows': found['wide_windows'],
    'peak_gb': peak and peak / 1e9,
    'program_gb': (compiled['resident_mb'] + compiled['temporary_mb']) / 1e3,
    'peak_percent': 100 * compiled['gflop'] * 1e12 / ms / fastest}


def deviceless_command(
  config_file: str, step: str, fields: Sequence[str], gpu: str, out: Path
) -> list[str]:
  """gpu_program.py for the same step."""
  method, recipe = STEPS[step]
  colon = '' if ':' in config_file else ':'
  values = [(field, json.loads(value)) for field, _, value in (x.partition('=') for x in fields)]
  return [
    sys.executable, str(Path(__file__).parent / 'gpu_program.py'), '--config',
    f'{config_file}{colon},method={method},recipe={recipe}', '--gpu', gpu, '--out', str(out),
    '--set', *(f'{field}={value!r}' for field, value in values)]


def deviceless_fields(found: dict[str, Any]) -> dict[str, float]:
  """Of what gpu_program.py has written, what stands in a row."""
  return {'deviceless_ms': found['estimated_ms'],
          'deviceless_gb': total_memory(found['memory']) / 1e9}


def targets(steps: dict[str, dict], twins: dict[str, dict]) -> list[tuple[str, str, bool | None]]:
  """What docs/performance.md aims at: the target, what was found, whether it is met (None: open).

  Args:
    steps: rows by step, from `measure`.
    twins: rows by contestant, from torch_twin.ratios.
  """
  gta, rows = steps.get('gta', {}), []

  def add(text: str, value: float | None, met: Callable[[float], bool], unit: str) -> None:
    rows.append((text, 'not measured', None) if value is None else
                (text, f'{value:.2f} {unit}'.strip(), met(value)))

  def ratio(name: str) -> float | None:
    return twins[name]['ratio'] if name in twins else None

  add('3 times the published algorithm in PyTorch', ratio('torch, released'),
      lambda x: x >= 3, 'times')
  add('1.2 times the tuned twin', ratio('torch tuned, gta'), lambda x: x >= 1.2, 'times')
  add('35 % of the measured peak', gta.get('peak_percent'), lambda x: x >= 35, '%')
  add('a step in 80 GB', gta.get('peak_gb'), lambda x: x <= 80, 'GB')
  add('compiled within 90 s', gta.get('compile_cold_s'), lambda x: x <= 90, 's')
  add('within 15 s with the cache', gta.get('compile_warm_s'), lambda x: x <= 15, 's')
  add('no wide window', len(gta['wide_windows']) if gta else None, lambda x: not x, '')
  return rows


def print_tables(found: dict[str, Any]) -> None:
  """Steps, twins and targets."""
  print(f'{found["device"]}, jax {found["jax"]}, {found["config"]} {" ".join(found["set"])}')
  print(f'| step | {" | ".join(COLUMNS)} |\n|{"---|" * (len(COLUMNS) + 1)}')
  for name, row in found['steps'].items():
    cells = ['–' if row.get(field) is None else format(row[field], kind)
             for field, kind in COLUMNS.values()]
    print(f'| {name} | {" | ".join(cells)} |')
  if found['twins']:
    print('\n| contestant | ms a step | × jax, gta | middle half |\n|---|---|---|---|')
    for name, row in found['twins'].items():
      print('| {name} | {ms:.0f} | {ratio:.2f} | {low:.2f} – {high:.2f} |'.format(
        name=name, **row))
  print('\n| target | found | met |\n|---|---|---|')
  for text, value, met in found['targets']:
    print(f'| {text} | {value} | {"open" if met is None else "yes" if met else "no"} |')
  for name, reason in found['failures'].items():
    print(f'\n{name}: {reason}')


def alone(function: Callable, *args: Any) -> Any:
  """The function's result, from a process that then ends: with the GPU's memory to itself."""
  context = multiprocessing.get_context('spawn')
  with ProcessPoolExecutor(1, mp_context=context) as pool:
    return pool.submit(function, *args).result()


def torch_sees_a_gpu() -> bool:
  """Whether torch is installed and finds CUDA."""
  if importlib.util.find_spec('torch') is None:
    return False
  import torch  # noqa: PLC0415

  return torch.cuda.is_available()


def check(flags: argparse.Namespace, gpu: str, folder: Path) -> dict[str, Any]:
  """All of it, as JSON takes it; what fails is named and the rest goes on."""
  found: dict[str, Any] = {'device': gpu, 'jax': jax.__version__, 'config': flags.config,
                           'set': flags.set, 'steps': {}, 'twins': {}, 'failures': {}}
  programs = {}
  for name in NAMES:
    with (folder / f'{name}.txt').open('w') as log:
      programs[name] = subprocess.Popen(
        deviceless_command(flags.config, name, flags.set, gpu, folder / f'{name}.json'),
        stdout=log, stderr=subprocess.STDOUT)
  for name in NAMES:
    try:
      found['steps'][name] = alone(
        measure, flags.config, name, flags.set, gpu_target.read_gpu(gpu), flags.repeats)
    except Exception as error:  # Out of memory, above all: the others may fit.
      found['failures'][name] = f'{type(error).__name__}: {error}'[:300]
  for name, process in programs.items():
    if process.wait():
      lines = (folder / f'{name}.txt').read_text().splitlines()
      found['failures'][f'{name}, without a GPU'] = lines[-1] if lines else 'no word'
    elif name in found['steps']:
      found['steps'][name] |= deviceless_fields(
        json.loads((folder / f'{name}.json').read_text()))
  if alone(torch_sees_a_gpu):
    times, failures = contest(TWINS, flags)
    found['twins'] = ratios(times)
    found['failures'] |= {', '.join(key): reason for key, reason in failures.items()}
  else:
    found['failures']['PyTorch'] = ('torch with CUDA is not installed beside jax; pip install '
                                    'torch==2.13.0 adds the comparison')
  found['targets'] = targets(found['steps'], found['twins'])
  return found


def main() -> None:
  """Measures, prints, writes."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='configs/voc.py:183')
  parser.add_argument('--set', nargs='*', default=['model.weights=""'], metavar='FIELD=JSON')
  parser.add_argument('--repeats', type=int, default=10)
  parser.add_argument('--steps-per-turn', type=int, default=1)
  parser.add_argument('--out', type=Path, help='JSON file')
  flags = parser.parse_args()
  os.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')
  try:
    gpu = alone(described_gpu)
  except (ValueError, RuntimeError) as error:  # RuntimeError: jax was told to use one.
    parser.error(str(error))
  with tempfile.TemporaryDirectory() as folder:
    found = check(flags, gpu, Path(folder))
  print_tables(found)
  if flags.out:
    flags.out.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()
