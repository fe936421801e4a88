"""Trains methods with several seeds under one config and writes a table of their scores.

    python benchmarks/compare_methods.py --config shapes --budget compute --out runs/compare-shapes
    python benchmarks/compare_methods.py --config folder:46 --config.data.dir=DIR --out runs/mine

Without --methods all systems of the registry run: every name that is no row of an ablation table
and no variant of another name (see `systems`).

Settings. Rate, optimiser, batch, crop, augmentation and network are the config file's for every
method; everything else is the method's own default. One rule adapts them: networks start from
random weights here, for which no method was published, so each that has a warm-up on labelled
images takes the length of it that the config file sets for its recipe `scratch`. Nothing is
chosen on the validation images: scores are those of the last step, of the network that predicts.

Budget. `steps`: as many steps for each as the config says. `compute`: steps in inverse proportion
to the method's counted cost, so that all have as many forward-equivalents as `gta` has with the
config's epochs; every option in epochs is scaled along. The count is that of the longest stage, so
that a warm-up, which is cheaper, is counted too high. The table has the measured time of that
stage's step beside it, as a ratio to the supervised step's.

Every run is one call of launch.py in DIR/METHOD-SEED. A run that has its results.json is not
repeated and one that was interrupted goes on, so the same command goes on with the comparison.
"""

import argparse
import concurrent.futures
import json
import os
import queue
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_collections
from cases import ROOT, make_case, read_method_config

from gta_jax.methods.registry import METHODS, make_method

REFERENCE, SUPERVISED = 'gta', 'sup_only'


def systems() -> list[str]:
  """The names of the registry that are systems of their own.

  Left out are rows of ablation tables, names that continue another name of the same class, as
  gta_confidence does, and what follows one code base where it differs from its paper.
  """
  def varies(name: str) -> bool:
    return name.endswith(('_released', '_torchsemiseg')) or any(
      name.startswith(f'{other}_') and METHODS[other].kind is METHODS[name].kind
      for other in METHODS)

  return [name for name, named in METHODS.items()
          if not named.note.startswith('Table') and not varies(name)]


def budget_fields(config: ml_collections.ConfigDict, budget: str) -> dict[str, float]:
  """The fields of a method's config that its budget changes."""
  if budget == 'steps':
    return {}
  factor = make_method(REFERENCE).cost / make_method(
    config.method.name, **{k: v for k, v in config.method.items() if k not in ('name', 'recipe')}
  ).cost
  fields = {'train.epochs': config.train.epochs, 'train.evaluate_epochs':
            config.train.evaluate_epochs}
  fields |= {f'method.{k}': v for k, v in config.method.items() if k.endswith('_epochs')}
  return {field: round(factor * value, 6) for field, value in fields.items()}


def train(command: list[str], workdir: Path, cores: set[int]) -> dict[str, Any]:
  """The results of one run on the given processor cores."""
  path = workdir / 'results.json'
  if not path.exists():
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / 'log.txt').open('a') as log:
      subprocess.run(
        [sys.executable, str(ROOT / 'launch.py'), '--workdir', str(workdir.resolve()), *command],
        check=True, stdout=log, stderr=log, cwd=ROOT,
        preexec_fn=lambda: os.sched_setaffinity(0, cores))
  return json.loads(path.read_text())


def keep_plan(out: Path, plan: dict[str, Any]) -> None:
  """Writes what the folder's runs have in common, or refuses a folder with another plan."""
  path = out / 'plan.json'
  if path.exists() and (found := json.loads(path.read_text())) != plan:
    raise SystemExit(f'{out} holds a comparison with {found}, but now {plan} is asked for; give '
                     'another --out.')
  out.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(plan, indent=2) + '\n')


def step_times(
  configs: dict[str, ml_collections.ConfigDict], path: Path, repeats: int
) -> dict[str, float]:
  """Median over pairs of each method's step time by the supervised step's, taken in turn."""
  times = json.loads(path.read_text()) if path.exists() else {}
  for name, config in configs.items():
    if name not in times:  # Two programs at a time in memory, not all.
      from step_time import time_cases  # noqa: PLC0415

      pair = time_cases({'supervised': make_case(configs[SUPERVISED]), name: make_case(config)},
                        repeats)
      times[name] = statistics.median(
        a / b for a, b in zip(pair[name], pair['supervised'], strict=True))
      path.write_text(json.dumps(times, indent=2) + '\n')
  return times


def table(results: dict[str, list[dict]], times: dict[str, float]) -> str:
  """Markdown, best first: mean and sample deviation of mIoU in percent, steps and cost."""
  rows = []
  for name, runs in results.items():
    method = make_method(name)
    network = method.scored[0]
    scores = [100 * run['last'][network]['miou'] for run in runs]
    spread = f' ± {statistics.stdev(scores):.2f}' if len(scores) > 1 else ''
    measured = f'{times[name]:.2f}' if name in times else '–'
    mean = statistics.mean(scores)
    rows.append((mean, f'| {name} | {network} | {mean:.2f}{spread} | {runs[0]["last"]["step"]} | '
                       f'{method.cost / make_method(SUPERVISED).cost:.2f} | {measured} |'))
  rows.sort(key=lambda row: -row[0])
  return '\n'.join(['| method | network | mIoU | steps | counted cost × supervised | measured |',
                    '|---|---|---|---|---|---|', *(row for _, row in rows)])


def parse() -> tuple[argparse.Namespace, list[str]]:
  """Flags, and fields of the config in launch.py's form."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='shapes', help='shapes, folder:46: configs/NAME.py:SPLIT')
  parser.add_argument('--budget', default='steps', choices=['steps', 'compute'])
  parser.add_argument('--methods', nargs='+', default=systems(), choices=list(METHODS))
  parser.add_argument('--seeds', default='0,1,2', help='separated by commas')
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--jobs', type=int, default=1, help='runs at a time; cores are split')
  parser.add_argument('--repeats', type=int, default=10, help='steps timed; 0: none')
  flags, fields = parser.parse_known_args()
  if strange := [field for field in fields if not field.startswith('--config.')]:
    parser.error(f'{" ".join(strange)}: only --config.FIELD=VALUE is passed on to launch.py')
  return flags, fields


def main() -> None:
  """Runs what is missing, `jobs` at a time, and prints the table."""
  flags, fields = parse()
  seeds = [int(seed) for seed in flags.seeds.split(',')]
  keep_plan(flags.out, {'config': flags.config, 'budget': flags.budget, 'fields': fields})
  name, _, split = flags.config.partition(':')
  file = name if name.endswith('.py') else f'configs/{name}.py'
  configs = {m: read_method_config(f'{file}:{split}', m, 'scratch', fields)
             for m in dict.fromkeys([SUPERVISED, *flags.methods])}
  cores, started = sorted(os.sched_getaffinity(0)), time.time()
  shares: queue.SimpleQueue = queue.SimpleQueue()
  for job in range(flags.jobs):
    shares.put(set(cores[job::flags.jobs]))

  def one(task: tuple[int, str]) -> dict[str, Any]:
    seed, method = task
    changed = budget_fields(configs[method], flags.budget)
    argument = ','.join(filter(None, [split, f'method={method}', 'recipe=scratch']))
    command = [f'--config={file}:{argument}', f'--config.seed={seed}', *fields,
               *(f'--config.{field}={value}' for field, value in changed.items())]
    share = shares.get()
    try:
      return train(command, flags.out / f'{method}-{seed}', share)
    finally:
      shares.put(share)

  tasks = [(seed, method) for seed in seeds for method in flags.methods]
  with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
    found = dict(zip(tasks, pool.map(one, tasks), strict=True))
  results = {method: [found[seed, method] for seed in seeds] for method in flags.methods}
  times = step_times({m: configs[m] for m in [SUPERVISED, *flags.methods]},
                     flags.out / 'step_times.json', flags.repeats) if flags.repeats else {}
  text = table(results, times)
  summary = {'command': ' '.join(['python', *sys.argv]), 'cores': len(cores), 'jobs': flags.jobs,
             'date': time.strftime('%Y-%m-%d'), 'seconds': round(time.time() - started),
             'step_times': times, 'results': results}
  (flags.out / 'comparison.json').write_text(json.dumps(summary, indent=2) + '\n')
  (flags.out / 'comparison.md').write_text(f'{text}\n')
  print(text)


if __name__ == '__main__':
  main()
