"""The default run of a folder against a random forest, on drawn slices of an invented rock.

    python benchmarks/textures.py --out runs/textures [--methods sup_only gta] [--seeds 0,1,2]
    python benchmarks/textures.py --out runs/textures --masks 5
    python benchmarks/textures.py --out runs/levels --drawing levels

Writes OUT/slices once (gta_jax/data/textures.py: 30 slices with masks, 470 without, 64 to
validate on), fits the forest of `--mode baseline` and trains each method with what
configs/folder.py finds in the data. With --masks so many of the 30 keep their masks, an even
choice. Phases are told by texture, or with --drawing levels by grey level; each drawing needs an
OUT of its own. Other flags are those of compare_methods.py. A run that has been finished is not
repeated.
"""

import argparse
import json
from pathlib import Path

import compare_methods
import comparison
import cv2
import numpy as np
from cases import ROOT

from gta_jax.data import textures
from gta_jax.inference.baseline import run_baseline

METHODS = ('sup_only', 'gta', 'cutmix', 'fixmatch_ema')


def main() -> None:
  """Runs what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=Path, required=True, help='folder of slices and runs')
  parser.add_argument('--methods', nargs='+', default=METHODS)
  parser.add_argument('--masks', type=int, default=30, help='of the 30 that are drawn')
  parser.add_argument('--seeds', default='0,1,2', help='separated by commas')
  parser.add_argument('--drawing', choices=[*textures.DRAWINGS], default='textures')
  parser.add_argument('--results', type=Path,
                      help='default: docs/results/compare_DRAWING_steps.jsonl')
  flags, more = parser.parse_known_args()
  results = flags.results or ROOT / 'docs' / 'results' / f'compare_{flags.drawing}_steps.jsonl'
  slices = flags.out.resolve() / 'slices'
  if not (slices / 'classes.txt').exists():  # It is written last.
    textures.write_folder(slices, drawing=flags.drawing)
  elif not _is_of(slices, flags.drawing):
    parser.error(f'{slices} holds another drawing than --drawing {flags.drawing}; name another '
                 '--out.')
  if flags.masks != 30:
    slices = comparison.make_folder(slices, flags.out, flags.masks)
  split, fields = f'folder:{flags.masks}', [f'--config.data.dir={slices}']
  forest = flags.out / f'forest-{flags.masks}' / 'baseline.json'
  if not forest.exists():
    run_baseline(comparison.resolved(split, 'sup_only', fields), forest.parent)
  print(f'random forest: mIoU {100 * json.loads(forest.read_text())["scores"]["miou"]:.2f}')
  compare_methods.main(['--config', split, '--out', str(flags.out), '--results',
                        str(results), '--seeds', flags.seeds, '--methods', *flags.methods,
                        *fields, *more])


def _is_of(slices: Path, drawing: str) -> bool:
  """Whether the first slice of a folder is that of a drawing."""
  found = cv2.imread(str(slices / 'images' / '0000.png'), cv2.IMREAD_GRAYSCALE)
  return found is not None and np.array_equal(
    found, textures.draw(0, 0, len(found), drawing=drawing)[0])


if __name__ == '__main__':
  main()
