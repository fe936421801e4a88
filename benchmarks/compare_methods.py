"""Trains methods with several seeds under one config and writes a table of their scores.

    python benchmarks/compare_methods.py --config shapes --budget compute --out runs/compare
    python benchmarks/compare_methods.py --config folder:46 --config.data.dir=DIR \
      --out runs/camvid --results docs/results/compare_camvid_steps.jsonl

Without --methods all systems of the registry run: every name that is no row of an ablation table
and no variant of another name (see `systems`).

Settings. Rate, optimiser, batch, crop, augmentation and network are the config file's for every
method; a config that gives them otherwise by method, such as configs/voc.py, is refused. Everything
else is the method's own default, and one rule adapts it: each takes what the config file sets for
its recipe `scratch` where it has such an option. Of these the folder's transmission_decay is GTA's
alone and was chosen on CamVid frames held back; the rest follows from length and crop. Systems
that have no warm-up as published (FixMatch, UniMatch, CPS, CCT, GCT, PseudoSeg, PC2Seg) meet
unlabelled images from the first step. Nothing is chosen on the validation images: the table has the
scores of the last step, of the network that predicts.

Budget. `steps`: as many steps for each as the config says. `compute`: steps in inverse proportion
to the method's counted cost, so that all have as many forward-equivalents as `gta` has with the
config's epochs; every option in epochs, such as a warm-up, is scaled along, shares of a run stay.
The count is that of the longest stage, so that a warm-up, which is cheaper, is counted too high.
benchmarks/method_cost.py measures what a step really costs.

Sittings. Every run that has finished is a line of --results, which is small and made to be kept; a
run whose line is there with the same digest of its config is not repeated, and the table is made
from the lines. A run is one call of launch.py in OUT/METHOD-SEED-DIGEST, which goes on where it was
interrupted. So the same command goes on with a comparison, on another day or with more seeds;
--minutes begins no run later than that. A run that fails is named and the others go on.
"""

import argparse
import concurrent.futures
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import ROOT
from comparison import MARKS, SUPERVISED, Task, check_equal_terms, make_task, systems

from gta_jax.methods.registry import METHODS, make_method


def workdir_of(task: Task, out: Path) -> Path:
  """Where a run lies, absolute."""
  return (out / f'{task.method}-{task.seed}-{task.digest}').resolve()


def train(task: Task, out: Path, cores: set[int]) -> dict[str, Any]:
  """The results of one run on the given processor cores."""
  workdir = workdir_of(task, out)
  path = workdir / 'results.json'
  if not path.exists():
    workdir.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, cores)  # of this thread, and of the program that it starts
    with (workdir / 'log.txt').open('a') as log:
      subprocess.run(
        [sys.executable, str(ROOT / 'launch.py'), '--workdir', str(workdir), *task.flags],
        check=True, stdout=log, stderr=log, cwd=ROOT)
  return json.loads(path.read_text())


def line_of(task: Task, results: dict[str, Any], cores: int) -> dict[str, Any]:
  """What is kept of a run: mIoU in percent by network at the last and at the best step."""
  def scores(of_step: dict[str, Any]) -> dict[str, float]:
    return {name: round(100 * found['miou'], 3) for name, found in of_step.items()
            if isinstance(found, dict)}

  versions = dict.fromkeys(start['gta_jax'] for start in results.get('starts', ()))
  return {
    'method': task.method, 'seed': task.seed, 'steps': results['last']['step'],
    'last': scores(results['last']), 'best': scores(results['best']),
    'best_step': results['best']['step'],
    # Of its last start alone, so that those of a run that was stopped say little.
    'seconds': None if results.get('seconds_from_step') else results['seconds'], 'cores': cores,
    'config': task.digest, 'version': ', '.join(versions), 'date': time.strftime('%Y-%m-%d')}


def read_lines(path: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
  """The lines of finished runs by method, seed and digest; the last of equal ones."""
  lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
  return {(line['method'], line['seed'], line['config']): line for line in lines}


def table(lines: list[dict[str, Any]]) -> str:
  """Markdown, best first: mean and sample deviation of mIoU in percent, seeds, steps and cost."""
  rows, by_method = [], {}
  for line in lines:
    by_method.setdefault(line['method'], []).append(line)
  for name, runs in by_method.items():
    method = make_method(name)
    network = method.scored[0]
    scores = [run['last'][network] for run in runs]
    spread = f' ± {statistics.stdev(scores):.2f}' if len(scores) > 1 else ''
    seeds = ', '.join(str(run['seed']) for run in sorted(runs, key=lambda run: run['seed']))
    timed = [run['seconds'] for run in runs if run['seconds'] is not None]
    seconds = f'{statistics.median(timed):.0f}' if timed else '–'
    mean, cost = statistics.mean(scores), method.cost / make_method(SUPERVISED).cost
    rows.append((mean, f'| {name}{MARKS.get(name, "")} | {network} | {mean:.2f}{spread} | '
                       f'{seeds} | {runs[0]["steps"]} | {cost:.2f} | {seconds} |'))
  rows.sort(key=lambda row: -row[0])
  head = '| method | network | mIoU | seeds | steps | counted cost × supervised | seconds a run |'
  versions = sorted({line['version'] for line in lines if line.get('version')})
  said = [f'\nThe runs are of {len(versions)} versions: {", ".join(versions)}.'] * (
    len(versions) > 1)
  return '\n'.join([head, '|---|---|---|---|---|---|---|', *(row for _, row in rows), *said])


def run_all(
  tasks: list[Task], out: Path, results: Path, *, jobs: int, minutes: float | None = None
) -> list[str]:
  """Trains what has no line yet, `jobs` at a time, and appends a line for each.

  Returns: what failed, in words.
  """
  done, started, failed = read_lines(results), time.time(), []
  cores, shares, writing = sorted(os.sched_getaffinity(0)), queue.SimpleQueue(), threading.Lock()
  for job in range(jobs):
    shares.put(set(cores[job::jobs]))

  def one(task: Task) -> None:
    share = shares.get()
    try:
      if minutes is not None and time.time() - started > 60 * minutes:
        return
      line = line_of(task, train(task, out, share), len(share))
      with writing, results.open('a') as file:
        file.write(json.dumps(line) + '\n')
    except subprocess.CalledProcessError as error:
      failed.append(f'{task.method} with seed {task.seed}: status {error.returncode}, see log.txt '
                    f'of {workdir_of(task, out)}')
    finally:
      shares.put(share)

  results.parent.mkdir(parents=True, exist_ok=True)
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    list(pool.map(one, [task for task in tasks if task[:3] not in done]))
  return failed


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
  """Flags, and fields of the config in launch.py's form; of the command line by default."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='shapes', help='shapes, folder:46: configs/NAME.py:SPLIT')
  parser.add_argument('--budget', default='steps', choices=['steps', 'compute'])
  parser.add_argument('--methods', nargs='+', default=systems(), choices=list(METHODS))
  parser.add_argument('--seeds', default='0,1,2', help='separated by commas')
  parser.add_argument('--out', type=Path, required=True, help='folder of the runs')
  parser.add_argument('--results', type=Path, help='docs/results/compare_CONFIG_BUDGET.jsonl')
  parser.add_argument('--jobs', type=int, default=1, help='runs at a time; cores are split')
  parser.add_argument('--minutes', type=float, help='after which no run begins')
  flags, fields = parser.parse_known_args(arguments)
  if strange := [field for field in fields if not field.startswith('--config.')]:
    parser.error(f'{" ".join(strange)}: only --config.FIELD=VALUE is passed on to launch.py')
  if flags.results is None:
    name = '_'.join(Path(flags.config.partition(':')[0]).stem.split())
    flags.results = ROOT / 'docs' / 'results' / f'compare_{name}_{flags.budget}.jsonl'
  return flags, fields


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs what is missing and prints the table."""
  flags, fields = parse(arguments)
  try:
    check_equal_terms(flags.config, flags.methods, fields)
  except ValueError as error:
    sys.exit(str(error))
  tasks = [make_task(flags.config, flags.budget, method, int(seed), fields)
           for seed in flags.seeds.split(',') for method in flags.methods]
  failed = run_all(tasks, flags.out, flags.results, jobs=flags.jobs, minutes=flags.minutes)
  done = read_lines(flags.results)
  print(table([done[task[:3]] for task in tasks if task[:3] in done]))
  if missing := [f'{task.method}-{task.seed}' for task in tasks if task[:3] not in done]:
    print(f'\nnot run yet: {", ".join(missing)}')
  if failed:
    sys.exit('\n'.join(failed))


if __name__ == '__main__':
  main()
