"""Which runs the comparison on drawn slices makes; no training."""

import json
import sys

import compare_methods
import pytest
import textures as benchmark

from gta_jax.data import textures


@pytest.fixture
def asked(monkeypatch):
  """What the comparison and the forest are asked for, on a few small slices."""
  seen = []
  draw = textures.write_folder
  monkeypatch.setattr(benchmark.textures, 'write_folder', lambda folder, **kw: draw(
    folder, labelled=30, unlabelled=4, validation=2, size=32, **kw))
  monkeypatch.setattr(compare_methods, 'main', seen.extend)

  def fit(config, out):
    out.mkdir()
    (out / 'baseline.json').write_text(json.dumps({'scores': {'miou': 0.5}}))
    seen.append((config.data.split, out.name))

  monkeypatch.setattr(benchmark, 'run_baseline', fit)
  return seen


def test_fewer_masks_are_another_split_of_the_same_slices(tmp_path, monkeypatch, capsys, asked):
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


def test_each_drawing_has_a_folder_and_results_of_its_own(tmp_path, monkeypatch, capsys, asked):
  argv = ['textures.py', '--out', str(tmp_path), '--drawing', 'levels']
  monkeypatch.setattr(sys, 'argv', argv)
  benchmark.main()
  assert asked[asked.index('--results') + 1].endswith('compare_levels_steps.jsonl')
  monkeypatch.setattr(sys, 'argv', argv[:-2])
  with pytest.raises(SystemExit):
    benchmark.main()
  assert 'holds another drawing than --drawing textures' in capsys.readouterr().err
