"""Times one training step of several methods under a config, in alternation.

    python benchmarks/step_time.py --config configs/shapes.py

Prints milliseconds a step (median), the ratio to the supervised step pair by pair, and what the
compiled program counts: floating-point operations and peak memory.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gta_jax import run, sharding  # noqa: E402
from gta_jax.step import make_train_step  # noqa: E402

import jax  # noqa: E402  isort: skip
import numpy as np  # noqa: E402  isort: skip

# name -> (method, recipe)
STEPS = {
  'supervised': ('sup_only', 'paper'),
  'cutmix': ('cutmix', 'paper'),
  'gta': ('gta', 'paper'),
  'released': ('gta', 'released'),
}


def make_case(config_file: str, method: str, recipe: str, overrides: dict) -> tuple:
  """The compiled step of a method, its first state and two random batches."""
  path, _, arg = config_file.partition(':')
  spec = importlib.util.spec_from_file_location('config', ROOT / path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(f'{arg},method={method},recipe={recipe}'.strip(','))
  config.data.source, config.data.split = 'shapes', '8'  # only its classes are used
  config.data.update({'unlabelled': 64, 'validation': 1, 'size': 64})
  config.update_from_flattened_dict(overrides)
  if config.train.unlabelled_batch % (config.method.threshold_images or 1):
    config.method.threshold_images = 0
  made = run.make_run(config)
  mesh = sharding.make_mesh()
  step = sharding.compile_step(
    make_train_step(made.network, made.method, made.optimizers, loss=made.loss), mesh)
  rng = np.random.default_rng(0)
  side, train = config.data.crop, config.train
  labelled, unlabelled = (
    {'image': rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)}
    for batch in (train.labelled_batch, train.unlabelled_batch))
  labelled['label'] = rng.integers(0, 7, labelled['image'].shape[:3], dtype=np.uint8)
  unlabelled['valid'] = np.ones(unlabelled['image'].shape[:3], bool)
  if not made.method.uses_unlabelled:
    unlabelled = {}
  batches = [sharding.global_batch(b, mesh) for b in (labelled, unlabelled)]
  state = made.initial_state()
  started = time.perf_counter()
  compiled = step.lower(state, *batches).compile()
  return compiled, state, batches, time.perf_counter() - started


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
  overrides = {k: json.loads(v) for k, _, v in (item.partition('=') for item in flags.set)}
  cases = {name: make_case(flags.config, *STEPS[name], overrides) for name in flags.steps}
  states = {name: case[1] for name, case in cases.items()}
  times: dict[str, list[float]] = {name: [] for name in cases}
  for repeat in range(flags.repeats + 2):
    for name, (compiled, _, batches, _) in cases.items():
      started = time.perf_counter()
      states[name], metrics = compiled(states[name], *batches)
      jax.block_until_ready((states[name], metrics))
      if repeat >= 2:
        times[name].append(1000 * (time.perf_counter() - started))
  rows = []
  for name, (compiled, _, _, compile_seconds) in cases.items():
    first = times[flags.steps[0]]
    ratio = statistics.median(a / b for a, b in zip(times[name], first, strict=True))
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    rows.append({
      'step': name, 'ms': statistics.median(times[name]), 'ratio': ratio,
      'gflop': cost.get('flops', float('nan')) / 1e9,
      'temporary_mb': memory.temp_size_in_bytes / 1e6, 'compile_s': compile_seconds})
  device = jax.devices()[0]
  print(f'{device.device_kind} x {jax.device_count()}, jax {jax.__version__}, {flags.config}')
  print('| step | ms | × first | GFLOP | temporary MB | compile s |\n|---|---|---|---|---|---|')
  for row in rows:
    print('| {step} | {ms:.1f} | {ratio:.2f} | {gflop:.2f} | {temporary_mb:.0f} | {compile_s:.1f} |'
          .format(**row))
  if flags.out:
    flags.out.write_text(json.dumps({'device': device.device_kind, 'rows': rows}, indent=2) + '\n')


if __name__ == '__main__':
  main()
