"""Which runs the comparison on drawn slices makes; no training."""

import json
import sys

import compare_methods
import textures as benchmark

from gta_jax.data import textures


def test_fewer_masks_are_another_split_of_the_same_slices(tmp_path, monkeypatch, capsys):
  asked = []
  draw = textures.write_folder
  monkeypatch.setattr(benchmark.textures, 'write_folder', lambda folder: draw(
    folder, labelled=30, unlabelled=4, validation=2, size=32))
  monkeypatch.setattr(compare_methods, 'main', asked.extend)

  def fit(config, out):
    out.mkdir()
    (out / 'baseline.json').write_text(json.dumps({'scores': {'miou': 0.5}}))
    asked.append((config.data.split, out.name))

  monkeypatch.setattr(benchmark, 'run_baseline', fit)
  monkeypatch.setattr(sys, 'argv', ['textures.py', '--out', str(tmp_path), '--masks', '5',
                                    '--minutes', '7'])
  benchmark.main()
  assert asked[0] == ('5', 'forest-5') and 'mIoU 50.00' in capsys.readouterr().out
  assert asked[asked.index('--config') + 1] == 'folder:5'
  assert asked[-2:] == ['--minutes', '7']
  folder = tmp_path / 'data' / '5'
  assert f'--config.data.dir={folder}' in asked
  chosen = (folder / 'splits' / '5' / 'labeled.txt').read_text().split()
  assert chosen == ['0000', '0006', '0012', '0018', '0024']
