"""The step of any config as XLA compiles it for a GPU, examined on a machine without one.

    python benchmarks/gpu_program.py --config configs/voc.py:183 --gpu h100
    python benchmarks/gpu_program.py --config configs/voc.py:183,method=u2pl --gpu rtx4090 \
      --set model.remat=True train.labelled_batch=4 --devices 4 --out FILE.json --hlo FILE.txt
    python benchmarks/gpu_program.py --table FILE.json ...    # of programs examined before

Needs requirements.txt, no driver, no data and no weights; one to seven minutes for a ResNet-101.
Memory, kernels, windows, buffers and collectives are facts about the compiled program. The
milliseconds are an estimate, a bound from below: every kernel takes the time of its operations at
the GPU's published peak or of its bytes at its published bandwidth, whichever is longer. Caches,
launches, waiting and the workspace that cuDNN asks for on a real GPU are not in it.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

# Before jax: its plugin for CUDA is loaded without a driver, its own arrays stay on the CPU, and
# what is compiled cannot be kept.
os.environ |= {'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1', 'CUDA_VISIBLE_DEVICES': '-1',
               'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_COMPILATION_CACHE': 'false'}

import gpu_target
import jax
from cases import read_whole_config
from program_report import SUMMARY, report, summary, total_memory


def print_report(found: dict[str, Any], gpu: gpu_target.Gpu, *, most: int = 12) -> None:
  """The tables of a program."""
  memory = found['memory']
  print(f'\n{found["stage"]} on {found["devices"]} x {gpu.name}: '
        f'{total_memory(memory) / 1e9:.2f} GB of {gpu.memory / 1e9:.1f} GB each, '
        f'{found["tflop"]:.2f} TFLOP and at least {found["estimated_ms"]:.1f} ms (an estimate); '
        f'compiled in {found["compile_s"]:.0f} s')
  _table('memory', ('GB',), [(kind, f'{size / 1e9:.3f}') for kind, size in memory.items()])
  _table('buffers when most is in use', ('number', 'MB', 'where'), [
    (row['shape'], row['count'], f'{row["megabytes"]:.0f}', row['where'])
    for row in found['peak'][:most]])
  head = 'kernels', 'GFLOP', 'GB', 'estimated ms'
  for title, name in (('part', 'parts'), ('kernels by class', 'classes')):
    _table(title, head, [(
      key, f'{row["kernels"]:.0f}', f'{row["gflop"]:.1f}', f'{row["gigabytes"]:.2f}',
      f'{row["estimated_ms"]:.2f}') for key, row in found[name].items()])
  print(f'\nconvolutions with a window larger than 7 x 7: {len(found["wide_windows"])}')
  for row in found['wide_windows']:
    print('  ' + ' | '.join(map(str, row.values())))
  for title, name in (('float32 arrays above 100 MB that are written', 'large_float32'),
                      ('activations laid out anew', 'transposes')):
    total = sum(row['megabytes'] for row in found[name])
    number = sum(row['count'] for row in found[name])
    print(f'\n{title}: {number}, {total:.0f} MB')
    for row in found[name][:most]:
      print(f'  {row["count"]} x {row["shape"]}, {row["megabytes"]:.0f} MB, {row["where"]}')
  _table('the same program at the figures of', ('estimated ms', 'fits'), [
    (name, f'{ms:.0f}', 'yes' if total_memory(memory) <= 0.75 * gpu_target.read_gpu(name).memory
     else 'no') for name, ms in found['on_cards'].items()])
  _table('collectives', ('number', 'MB'), [
    (kind, f'{row["number"]:.0f}', f'{row["megabytes"]:.2f}')
    for kind, row in found['collectives'].items()])
  _table('collectives beside kernels', ('number', 'beside kernels', 'their estimated ms'), [
    (kind, row['number'], row['beside_kernels'], f'{row["beside_ms"]:.2f}')
    for kind, row in found['overlaps'].items()])


def _table(title: str, head: tuple[str, ...], rows: list[tuple]) -> None:
  if rows:
    print(f'\n| {title} | {" | ".join(head)} |\n|{"---|" * (len(head) + 1)}')
    for cells in rows:
      print(f'| {" | ".join(map(str, cells))} |')


def main() -> None:
  """Compiles, reads, prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='configs/voc.py:183', metavar='FILE.py:CHOICE',
                      help='as for launch.py, method and recipe included')
  parser.add_argument('--gpu', default='h100', choices=gpu_target.names())
  parser.add_argument('--devices', type=int, default=1)
  parser.add_argument('--stage', help="of the method; 'main', or else its last one")
  parser.add_argument('--set', nargs='*', default=[], metavar='FIELD=VALUE',
                      help='config fields, as in model.remat=True')
  parser.add_argument('--out', type=Path, help='JSON file')
  parser.add_argument('--hlo', type=Path, help="file for the compiled program's text")
  parser.add_argument('--table', type=Path, nargs='+', metavar='FILE.json',
                      help='print a line of each of these and compile nothing')
  flags = parser.parse_args()
  if flags.table:
    _table('step', SUMMARY, [summary(json.loads(file.read_text())) for file in flags.table])
    return
  config, gpu = read_whole_config(flags.config, flags.set), gpu_target.read_gpu(flags.gpu)
  started = time.perf_counter()
  try:
    program = gpu_target.compile_step(config, gpu, stage=flags.stage, devices=flags.devices)
  except ValueError as error:
    parser.error(str(error))
  found = {
    'config': flags.config, 'set': flags.set, 'gpu': flags.gpu, 'devices': flags.devices,
    'jax': jax.__version__, 'stage': program.stage, 'compile_s': time.perf_counter() - started,
    'memory': program.memory, 'on_cards': gpu_target.on_cards(program.text),
    **report(program.text, program.live_ranges, tflops=gpu.tflops, bandwidth=gpu.bandwidth)}
  print_report(found, gpu)
  if flags.out:
    flags.out.write_text(json.dumps(found, indent=1) + '\n')
  if flags.hlo:
    flags.hlo.write_text(program.text)


if __name__ == '__main__':
  main()
