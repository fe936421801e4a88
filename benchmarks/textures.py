"""The default run of a folder against a random forest, on drawn slices of an invented rock.

    python benchmarks/textures.py --out runs/textures [--methods sup_only gta] [--seeds 0,1,2]

Writes OUT/slices once (gta_jax/data/textures.py: 30 slices with masks, 470 without, 64 to
validate on), fits the forest of `--mode baseline` and trains each method with what
configs/folder.py finds in the data. A run that has been finished is not repeated.
"""

import argparse
import json
from pathlib import Path

import compare_methods
from cases import ROOT, read_method_config

from gta_jax.data import textures
from gta_jax.inference.baseline import run_baseline

METHODS = ('sup_only', 'gta', 'cutmix')


def main() -> None:
  """Runs what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=Path, required=True, help='folder of slices and runs')
  parser.add_argument('--methods', nargs='+', default=METHODS)
  parser.add_argument('--seeds', default='0,1,2', help='separated by commas')
  parser.add_argument('--results', type=Path,
                      default=ROOT / 'docs' / 'results' / 'compare_textures_steps.jsonl')
  flags = parser.parse_args()
  slices, forest = flags.out.resolve() / 'slices', flags.out / 'forest' / 'baseline.json'
  if not slices.exists():
    textures.write_folder(slices)
  fields = [f'--config.data.dir={slices}']
  if not forest.exists():
    config = read_method_config(str(ROOT / 'configs/folder.py:30'), 'sup_only', 'scratch', fields)
    run_baseline(config, forest.parent)
  print(f'random forest: mIoU {100 * json.loads(forest.read_text())["scores"]["miou"]:.2f}')
  compare_methods.main(['--config', 'folder:30', '--out', str(flags.out), '--results',
                        str(flags.results), '--seeds', flags.seeds, '--methods', *flags.methods,
                        *fields])


if __name__ == '__main__':
  main()
