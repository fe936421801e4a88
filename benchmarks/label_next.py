"""Whether images that --mode label_next asks for teach more than as many drawn at random.

    python benchmarks/label_next.py --choices model=tiny,method=sup_only --out runs/label_next -- \
      --config.data.crop=64 --config.data.image_scale=1.0 --config.train.epochs=20
    python benchmarks/label_next.py --data DIR --out runs/camvid -- --config.data.crop=96

Each seed draws the first labelled images, trains, and then labels more in rounds, once as the
trained network asks and once at random; the true masks stand in for whoever labels. Every run
starts anew, from the config `folder` with the flags after --, which are the same for all. Scores
are of the last step, of the network that predicts, on validation images that choose nothing.

DIR is a data folder (docs/how_to/prepare_images.md) in which all training images have masks;
without --data shapes are drawn. A run that has finished is not repeated: the same command goes on.
"""

import argparse
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import comparison
from cases import ROOT

from gta_jax.data import shapes
from gta_jax.data.class_list import Classes, write_classes
from gta_jax.data.files import IMAGE_SUFFIXES
from gta_jax.data.listing import id_of, readings, visible_files
from gta_jax.data.masks import write_mask
from gta_jax.evaluation.pictures import write_image
from gta_jax.reporting.runs import read_record
from gta_jax.training.logs import markdown_table

ASKED, DRAWN = 'label_next', 'random'


def main() -> None:
  """Runs what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--data', type=Path)
  parser.add_argument('--choices', default='', help='of the config, such as model=tiny')
  parser.add_argument('--first', type=int, default=10, help='labelled images before any round')
  parser.add_argument('--count', type=int, default=10, help='images a round')
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--seeds', default='0,1,2', help='separated by commas')
  parser.add_argument('flags', nargs='*', help='of launch.py')
  options = parser.parse_args()
  try:
    comparison.check_settings(options.out / 'settings.json', {
      'data': str(options.data and options.data.resolve()), 'choices': options.choices,
      'first': options.first, 'count': options.count, 'flags': options.flags})
  except ValueError as error:
    parser.error(str(error))
  data = options.data or write_shapes(options.out / 'data')
  scores: dict[str, list[list[float]]] = {ASKED: [], DRAWN: []}
  for seed in map(int, options.seeds.split(',')):
    for arm, by_seed in scores.items():
      by_seed.append(one_arm(data, options, seed, arm))
      (options.out / 'label_next.md').write_text(table(scores, options.first, options.count))
  print(table(scores, options.first, options.count))


def write_shapes(folder: Path, *, training: int = 200, validation: int = 100) -> Path:
  """Drawn shapes of 96 pixels a side as a data folder, all with masks."""
  if (folder / 'classes.txt').is_file():
    return folder
  made = shapes.make_shapes(labelled=training, unlabelled=0, validation=validation, size=96)
  for id in (*made.labelled, *made.validation):
    for part in ('images', 'masks'):
      (folder / part / id).parent.mkdir(parents=True, exist_ok=True)
    write_image(folder / 'images' / f'{id}.png', made.reader.image(id))
    write_mask(folder / 'masks' / f'{id}.png', made.reader.mask(id), made.palette)
  comparison.write_list(folder / 'splits' / 'val.txt', made.validation)
  write_classes(folder / 'classes.txt', Classes(made.classes, made.palette))
  return folder


def one_arm(data: Path, options: argparse.Namespace, seed: int, arm: str) -> list[float]:
  """mIoU in percent before the first round and after each."""
  pool = sorted(id_of(path, data / 'images') for path in visible_files(data / 'images')
                if path.suffix.lower() in IMAGE_SUFFIXES)
  held_back = {id for name in ('val', 'test') if (data / 'splits' / f'{name}.txt').is_file()
               for id in read_list(data / 'splits' / f'{name}.txt', pool)}
  order = [id for id in pool if id not in held_back]
  random.Random(seed).shuffle(order)
  labelled, scores = order[:options.first], []
  for number in range(options.rounds + 1):
    # Before the first round both arms are one run.
    folder = options.out / f'{seed}-{arm if number else "start"}-{len(labelled)}'
    lists = folder / 'lists'
    comparison.write_list(lists / str(len(labelled)) / 'labeled.txt', labelled)
    for name in ('val', 'test'):
      if (data / 'splits' / f'{name}.txt').is_file():
        shutil.copy(data / 'splits' / f'{name}.txt', lists / f'{name}.txt')
    if not (folder / 'run' / 'results.json').is_file():
      choices = ','.join(filter(None, (str(len(labelled)), options.choices)))
      launch('--config', f'folder:{choices}', '--workdir', folder / 'run',
             '--config.data.dir', data, '--config.data.split_lists', lists,
             '--config.seed', seed, *options.flags)
    record = read_record(folder / 'run')
    scores.append(100 * record.results['last'][record.networks[0]]['miou'])
    if number < options.rounds and arm == ASKED:
      asked = folder / 'asked'
      if not (asked / 'label_next.csv').is_file():
        hidden = hide_masks(data, folder / 'hidden', {*labelled, *held_back})
        launch('--mode', 'label_next', '--workdir', folder / 'run', '--count', options.count,
               '--out', asked, '--overwrite', '--config', f'folder:{len(labelled)}',
               '--config.data.dir', hidden, '--config.data.split_lists', lists)
      labelled = read_list(
        asked / 'splits' / str(len(labelled) + options.count) / 'labeled.txt', pool)
    elif number < options.rounds:
      labelled = labelled + [id for id in order if id not in set(labelled)][:options.count]
  return scores


def hide_masks(data: Path, out: Path, kept: set[str]) -> Path:
  """The folder in links, with these masks alone: images that have one are not asked for."""
  for source in sorted((data / 'masks').rglob('*')):
    inside = source.relative_to(data)
    if inside.relative_to('masks').with_suffix('').as_posix() in kept:
      (out / inside).parent.mkdir(parents=True, exist_ok=True)
      (out / inside).unlink(missing_ok=True)
      (out / inside).symlink_to(source.resolve())
  for name in ('images', 'classes.txt'):
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to((data / name).resolve())
  return out


def table(scores: dict[str, list[list[float]]], first: int, count: int) -> str:
  """Mean ± sample deviation over seeds by number of labelled images, and paired differences."""
  rounds = range(len(scores[ASKED][0]))
  rows = [['labelled images', *(str(first + count * number) for number in rounds)]]
  for arm, by_seed in scores.items():
    if by_seed:
      rows.append([f'{arm}, {len(by_seed)} seeds', *(
        spread([seed[number] for seed in by_seed]) for number in rounds)])
  pairs = list(zip(scores[ASKED], scores[DRAWN], strict=False))
  if pairs:
    rows.append(['difference of a seed', *(
      spread([asked[number] - drawn[number] for asked, drawn in pairs], '+') for number in rounds)])
  return f'mIoU in percent, mean ± sample deviation.\n\n{markdown_table(rows)}'


def spread(values: list[float], sign: str = '') -> str:
  """Mean ± sample deviation; sign: '+' for differences."""
  deviation = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
  return f'{statistics.mean(values):{sign}.1f}{deviation}'


def read_list(path: Path, images: list[str]) -> list[str]:
  """The ids of a list, one a line, as a data folder reads it. images: all ids there are."""
  known = {*images}
  return [next(id for id in readings(line, IMAGE_SUFFIXES) if id in known)
          for line in path.read_text(encoding='utf-8-sig').splitlines() if line.strip()]


def launch(*flags: object) -> None:
  """One call of launch.py; CalledProcessError where it fails."""
  subprocess.run([sys.executable, str(ROOT / 'launch.py'), *map(str, flags)], check=True)


if __name__ == '__main__':
  main()
