"""Times one training step of several methods under a config, in alternation.

    python benchmarks/step_time.py --config configs/shapes.py
    python benchmarks/step_time.py --config configs/voc.py:183 --out step_time.json   # on a GPU

Prints for each step: milliseconds (median), the ratio to the first step pair by pair, images a
second, operations that the program asks for, the share of the machine's peak that they make up
(the peak is a large matrix product in the config's dtype, measured in the same run), memory of
the compiled program, and seconds to compile with an empty and with a filled persistent cache.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from cases import STEPS, Case, make_case, read_config


def matmul_peak(dtype: str, *, repeats: int = 5) -> float:
  """Operations a second of the fastest of some products of two large square matrices."""
  side = 2048 if jax.default_backend() == 'cpu' else 8192
  a = jnp.ones((side, side), dtype)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(a, a))
  seconds = []
  for _ in range(repeats):
    started = time.perf_counter()
    jax.block_until_ready(product(a, a))
    seconds.append(time.perf_counter() - started)
  return 2 * side**3 / min(seconds)


def compile_cases(cases: dict[str, Case]) -> dict[str, dict[str, float]]:
  """Compiles each case's step twice, as a first and as a second process would; see _compile."""
  own = {'jax_compilation_cache_dir': '', 'jax_persistent_cache_min_compile_time_secs': 0.0}
  before = {name: getattr(jax.config, name) for name in own}
  with tempfile.TemporaryDirectory() as cache:
    try:
      for name, value in (own | {'jax_compilation_cache_dir': cache}).items():
        jax.config.update(name, value)
      return {name: _compile(case) for name, case in cases.items()}
    finally:
      for name, value in before.items():
        jax.config.update(name, value)


def _compile(case: Case) -> dict[str, float]:
  """Seconds, operations, memory; from now on the case runs the compiled step."""
  seconds, programs = {}, {}
  for name in ('cold', 'warm'):
    jax.clear_caches()
    started = time.perf_counter()
    lowered = case.step.lower(case.state, case.batches)
    programs[name] = lowered.compile()
    seconds[name] = time.perf_counter() - started
  case.step = programs['cold']  # whose text is whole
  memory = case.step.memory_analysis()
  return {
    'compile_cold_s': seconds['cold'], 'compile_warm_s': seconds['warm'],
    'gflop': lowered.cost_analysis()['flops'] / 1e9,
    'temporary_mb': memory.temp_size_in_bytes / 1e6,
    'resident_mb': memory.argument_size_in_bytes / 1e6,
  }


def time_cases(cases: dict[str, Case], repeats: int) -> dict[str, list[float]]:
  """Milliseconds of each step, taken in turn, after two rounds that are thrown away."""
  times: dict[str, list[float]] = {name: [] for name in cases}
  for repeat in range(repeats + 2):
    for name, case in cases.items():
      started = time.perf_counter()
      case.run()
      if repeat >= 2:
        times[name].append(1000 * (time.perf_counter() - started))
  return times


def main() -> None:
  """Compiles all, then times them in turn."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='configs/shapes.py')
  parser.add_argument('--steps', nargs='+', default=list(STEPS), choices=list(STEPS))
  parser.add_argument('--repeats', type=int, default=20)
  parser.add_argument('--out', type=Path, help='JSON file')
  parser.add_argument('--set', nargs='*', default=[], metavar='FIELD=JSON',
                      help='config fields, as in data.crop=513 model.dtype=\'"bfloat16"\'')
  flags = parser.parse_args()
  device = jax.devices()[0]
  configs = {name: read_config(flags.config, name, flags.set) for name in flags.steps}
  dtype = configs[flags.steps[0]].model.dtype
  peak = matmul_peak(dtype)
  cases = {name: make_case(config) for name, config in configs.items()}
  rows = compile_cases(cases)
  times = time_cases(cases, flags.repeats)
  first = times[flags.steps[0]]
  for name, row in rows.items():
    ms = statistics.median(times[name])
    train = configs[name].train
    images = train.labelled_batch + (train.unlabelled_batch if name != 'supervised' else 0)
    row |= {
      'ms': ms,
      'ratio': statistics.median(a / b for a, b in zip(times[name], first, strict=True)),
      'images_per_s': 1000 * images / ms,
      'peak_percent': 100 * row['gflop'] * 1e9 / (ms / 1000) / peak,
    }
  print(f'{device.device_kind} x {jax.device_count()}, jax {jax.__version__}, {flags.config} '
        f'{" ".join(flags.set)}, peak {peak / 1e9:.0f} GFLOP/s in {dtype}')
  print('| step | ms | × first | images/s | GFLOP | % of peak | temporary MB | state, batch MB | '
        'compile s, cold | warm |\n|' + '---|' * 10)
  for name, row in rows.items():
    print('| {name} | {ms:.1f} | {ratio:.2f} | {images_per_s:.1f} | {gflop:.2f} | '
          '{peak_percent:.0f} | {temporary_mb:.0f} | {resident_mb:.0f} | {compile_cold_s:.1f} | '
          '{compile_warm_s:.1f} |'.format(name=name, **row))
  if flags.out:
    report = {'device': device.device_kind, 'devices': jax.device_count(), 'jax': jax.__version__,
              'config': flags.config, 'set': flags.set, 'peak_gflops': peak / 1e9, 'steps': rows}
    flags.out.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
  main()
