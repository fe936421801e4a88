"""Whether unlabelled images help once supervised training is flat, on a folder with few masks.

    python benchmarks/second_phase.py --data DIR --masks 23 8 --seeds 0,1,2 --out runs/second
    python benchmarks/second_phase.py --data DIR --masks 23 --arms gta gta-scratch --out runs/second

For each number of masks and seed, with what configs/folder.py finds in the data:

    sup_only-first   --steps of supervised training, from ImageNet features
    METHOD           as many steps from the networks of that run (train.init_from), half its rate
    METHOD-scratch   twice as many steps from ImageNet features, the first half on labels alone

so that each arm has seen as many batches in the end. Scores are of the last step, of the network
that predicts; differences are to `sup_only` with the same masks and seed. DIR/splits holds lists of
so many masks or more; fewer are an even choice from the shortest list that has enough of them,
and the others' masks are not looked at. A run that has finished is a line of --results and is not
repeated: the same command goes on, --minutes begins no run later than that.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import compare_methods
import comparison
from cases import ROOT

from gta_jax.training import datasets

METHODS = ('sup_only', 'mean_teacher', 'cutmix', 'gta')
FIRST, SCRATCH = 'sup_only-first', '-scratch'


class Arm(NamedTuple):
  """A run of the comparison. name: as above."""

  masks: int
  name: str
  seed: int


def make_task(arm: Arm, data: Path, out: Path, steps: int) -> comparison.Task:
  """The run of an arm; that of a second phase reads the networks of the first one."""
  method = arm.name.removesuffix(SCRATCH).removesuffix('-first')
  config = f'folder:{arm.masks}'
  fields = [f'--config.data.dir={comparison.make_folder(data, out, arm.masks)}']
  plain = comparison.resolved(config, method, fields)
  epoch = max(1, len(datasets.make_dataset(plain).unlabelled) // plain.train.unlabelled_batch)
  total = 2 * steps if arm.name.endswith(SCRATCH) else steps
  fields += [f'--config.train.epochs={total / epoch:.6f}',
             f'--config.train.evaluate_epochs={total / epoch / 4:.6f}']
  second = arm.name in METHODS
  if second:
    fields += [f'--config.optim.rate={plain.optim.rate / 2}', '--config.method.warmup_epochs=0']
  else:
    fields += [f'--config.method.warmup_epochs={total / epoch / 2:.6f}']
  task = comparison.make_task(config, 'steps', method, arm.seed, fields)
  if not second:
    return task
  first = make_task(arm._replace(name=FIRST), data, out, steps)
  start = f'--config.train.init_from={compare_methods.workdir_of(first, out)}'
  # The first run is known by its digest, wherever it lies.
  return task._replace(digest=f'{task.digest}-{first.digest}', flags=(*task.flags, start))


def table(lines: dict[Arm, dict[str, Any]]) -> str:
  """Markdown: mean and sample deviation over seeds, and of the difference to `sup_only`."""
  scores = {arm: next(iter(line['last'].values())) for arm, line in lines.items()}
  rows = ['| masks | arm | mIoU | seeds | to sup_only |', '|---|---|---|---|---|']
  for masks, name in dict.fromkeys(arm[:2] for arm in scores):
    by_seed = {arm.seed: value for arm, value in scores.items() if arm[:2] == (masks, name)}
    gains = [value - scores[Arm(masks, 'sup_only', seed)] for seed, value in by_seed.items()
             if Arm(masks, 'sup_only', seed) in scores]
    rows.append(f'| {masks} | {name} | {_spread(list(by_seed.values()))} | {len(by_seed)} | '
                f'{_spread(gains, sign="+") if gains else "–"} |')
  return '\n'.join(rows)


def _spread(values: list[float], sign: str = '') -> str:
  spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
  return f'{statistics.mean(values):{sign}.2f}{spread}'


def main() -> None:
  """Runs what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', type=Path, required=True)
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--masks', type=int, nargs='+', default=[23, 8])
  parser.add_argument('--arms', nargs='+', default=METHODS,
                      choices=[*METHODS, *(name + SCRATCH for name in METHODS)])
  parser.add_argument('--seeds', default='0,1,2,3,4', help='separated by commas')
  parser.add_argument('--steps', type=int, default=2400, help='of each phase')
  parser.add_argument('--minutes', type=float, help='after which no run begins')
  parser.add_argument('--results', type=Path, help='docs/results/second_phase_DATA.jsonl')
  flags = parser.parse_args()
  flags.results = flags.results or (
    ROOT / 'docs' / 'results' / f'second_phase_{flags.data.resolve().name.lower()}.jsonl')
  arms = [Arm(masks, name, int(seed)) for seed in flags.seeds.split(',') for masks in flags.masks
          for name in (FIRST, *flags.arms)]
  tasks = {arm: make_task(arm, flags.data, flags.out, flags.steps) for arm in arms}
  # One at a time, as a second phase reads what the first has left.
  failed = compare_methods.run_all(
    list(tasks.values()), flags.out, flags.results, jobs=1, minutes=flags.minutes)
  done = compare_methods.read_lines(flags.results)
  print(table({arm: done[task[:3]] for arm, task in tasks.items() if task[:3] in done}))
  if failed:
    sys.exit('\n'.join(failed))


if __name__ == '__main__':
  main()
