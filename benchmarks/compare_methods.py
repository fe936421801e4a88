"""Trains methods with several seeds under one config and writes a table of their scores.

    python benchmarks/compare_methods.py --config configs/shapes.py --out runs/compare-shapes

Every run is one call of launch.py; a run that has its results.json is not repeated, so the
comparison can be interrupted. Scores are those of the last step: nothing is selected on the
validation images.
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

ROOT = Path(__file__).parents[1]
NETWORKS = ('teacher', 'student', 'assistant')


def train(config: str, method: str, seed: int, workdir: Path, overrides: list[str],
          cores: set[int]) -> dict:
  """The results of one run on the given processor cores."""
  path = workdir / 'results.json'
  if not path.exists():
    separator = ',' if ':' in config else ':'
    command = [sys.executable, str(ROOT / 'launch.py'), '--workdir', str(workdir),
               f'--config={config}{separator}method={method}', f'--config.seed={seed}', *overrides]
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / 'log.txt').open('w') as log:
      subprocess.run(
        command, check=True, stdout=log, stderr=log, cwd=ROOT,
        preexec_fn=lambda: os.sched_setaffinity(0, cores))
  return json.loads(path.read_text())


def table(results: dict[str, list[dict]]) -> str:
  """Markdown: mean and sample deviation of mIoU in percent, a row a method."""
  lines = ['| method | teacher | student | assistant | seconds a run |', '|---|---|---|---|---|']
  for method, runs in results.items():
    cells = []
    for network in NETWORKS:
      scores = [100 * r['last'][network]['miou'] for r in runs if network in r['last']]
      spread = f' ± {statistics.stdev(scores):.2f}' if len(scores) > 1 else ''
      cells.append(f'{statistics.mean(scores):.2f}{spread}' if scores else '–')
    seconds = statistics.mean(r['seconds'] for r in runs)
    lines.append(f'| {method} | {" | ".join(cells)} | {seconds:.0f} |')
  return '\n'.join(lines)


def main() -> None:
  """Runs what is missing, `jobs` at a time, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', required=True, help='as for launch.py, without method=')
  parser.add_argument('--methods', nargs='+', default=['sup_only', 'mean_teacher', 'cutmix', 'gta'])
  parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--jobs', type=int, default=1, help='runs at a time; cores are split')
  flags, overrides = parser.parse_known_args()
  cores, started = sorted(os.sched_getaffinity(0)), time.time()
  shares: queue.SimpleQueue = queue.SimpleQueue()
  for job in range(flags.jobs):
    shares.put(set(cores[job::flags.jobs]))

  def one(task: tuple[int, str]) -> dict:
    seed, method = task
    share = shares.get()
    try:
      return train(
        flags.config, method, seed, flags.out / f'{method}-{seed}', overrides, share)
    finally:
      shares.put(share)

  tasks = [(seed, method) for seed in flags.seeds for method in flags.methods]
  with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
    found = dict(zip(tasks, pool.map(one, tasks), strict=True))
  results = {m: [found[seed, m] for seed in flags.seeds] for m in flags.methods}
  text = table(results)
  command = ' '.join(['python', *sys.argv])
  summary = {'command': command, 'cores': len(cores), 'jobs': flags.jobs,
             'date': time.strftime('%Y-%m-%d'), 'seconds': round(time.time() - started),
             'results': results}
  (flags.out / 'comparison.json').write_text(json.dumps(summary, indent=2) + '\n')
  (flags.out / 'comparison.md').write_text(f'{text}\n')
  print(text)


if __name__ == '__main__':
  main()
