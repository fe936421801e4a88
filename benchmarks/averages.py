"""How long an average of the network predicts best: several averages of one supervised run.

    python benchmarks/averages.py --data DIR --split 46 --seeds 100,101 --out runs/averages

Trains `sup_only` as configs/folder.py has it, on the masks of a split of DIR. As the average learns
nothing and teaches nobody, one run shows them all: besides its teacher (decay 0.99, a hundred
steps) the longer ones below, each from the end of the warm-up and equal over all steps so far until
its bound is reached. It is scored on images that are held back: every fourth of DIR's training
images outside the split, which then serve nothing else; their masks must be there. DIR's own
validation images are not looked at. A run that has finished is not repeated.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import comparison

from gta_jax.methods.contract import Metrics, Tools, TrainState
from gta_jax.methods.supervised import Supervised
from gta_jax.ops.ema import ema_decay, transmit
from gta_jax.reporting.runs import read_record
from gta_jax.training import loop, setup
from gta_jax.training.logs import markdown_table

# Of three hundred and of a thousand steps, and of all since the warm-up.
AVERAGES: Mapping[str, float] = {'of_333': 0.997, 'of_1000': 0.999, 'of_all': 1.0}


@dataclasses.dataclass(frozen=True)
class Averages(Supervised):
  """Supervised training with more averages than its teacher; networks of the state by name."""

  scored: ClassVar[tuple[str, ...]] = (*Supervised.scored, *AVERAGES)

  @property
  def followers(self) -> tuple[str, ...]:
    return (*super().followers, *AVERAGES)

  def follow(self, tools: Tools, state: TrainState) -> tuple[TrainState, Metrics]:
    """The teacher and each average moved towards the student."""
    state, metrics = super().follow(tools, state)
    since_warmup = state.step - self.phases(tools)[0]
    moved = {
      name: transmit(state.networks[name], state.networks['student'],
                     ema_decay(since_warmup, decay=bound, ramp=True),
                     keys=('params', 'batch_stats'))
      for name, bound in AVERAGES.items()}
    return state.with_networks(**moved), metrics


def make_folder(data: Path, out: Path, split: str) -> Path:
  """A data folder with that split of `data`, a fourth of its other training images to validate on.

  Raises: ValueError where an image to be held back has no mask; FileNotFoundError for a split
    without lists.
  """
  labelled, rest = (
    comparison.read_list(data / 'splits' / split / f'{name}.txt')
    for name in ('labeled', 'unlabeled'))
  held_back = sorted(rest)[::4]
  if missing := [id for id in held_back if not (data / 'masks' / f'{id}.png').exists()]:
    raise ValueError(
      f'{data}/masks has no {missing[0]}.png: images without a mask cannot be held back.')
  apart = set(held_back)
  return comparison.link_folder(data, out.resolve() / 'data' / split, {
    'val': held_back, f'{split}/labeled': labelled,
    f'{split}/unlabeled': [id for id in rest if id not in apart]})


def make_run(folder: Path, split: str, seed: int, fields: list[str]) -> setup.Run:
  """Supervised training of a folder's defaults with all averages."""
  config = comparison.resolved(
    f'folder:{split}', 'sup_only', [f'--config.data.dir={folder}', *fields])
  config.seed = seed
  made = setup.make_run(config)
  options = {field.name: getattr(made.method, field.name)
             for field in dataclasses.fields(Supervised)}
  method = Averages(**options)
  return dataclasses.replace(made, method=method, stages=method.stages(made.tools))


def scores(workdir: Path) -> dict[str, dict[int, float]]:
  """Network -> step -> mIoU in percent, of each evaluation of a run."""
  lines = read_record(workdir).metrics
  return {network: {int(line['step']): 100 * line[f'val/{network}_miou'] for line in lines
                    if f'val/{network}_miou' in line}
          for network in Averages.scored}


def table(runs: Mapping[int, dict[str, dict[int, float]]]) -> str:
  """Markdown: the mIoU of each network by seed and step."""
  steps = list(next(iter(runs.values()))['student'])
  return markdown_table([
    ['seed', 'network', *map(str, steps)],
    *([str(seed), network, *(f'{value:.1f}' for value in by_step.values())]
      for seed, found in runs.items() for network, by_step in found.items())])


def main() -> None:
  """Runs what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', type=Path, required=True)
  parser.add_argument('--split', default='46')
  parser.add_argument('--seeds', default='100,101', help='separated by commas')
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('fields', nargs='*', help='--config.FIELD=VALUE, after --')
  flags = parser.parse_args()
  try:
    comparison.check_settings(flags.out / f'settings-{flags.split}.json', {
      'data': str(flags.data.resolve()), 'fields': flags.fields})
  except ValueError as error:
    parser.error(str(error))
  folder = make_folder(flags.data, flags.out, flags.split)
  runs = {}
  for seed in map(int, flags.seeds.split(',')):
    workdir = flags.out / f'{flags.split}-{seed}'
    if not (workdir / 'results.json').exists():
      loop.train(make_run(folder, flags.split, seed, flags.fields), workdir)
    runs[seed] = scores(workdir)
  print(table(runs))


if __name__ == '__main__':
  main()
