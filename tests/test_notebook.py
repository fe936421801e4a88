"""The notebook runs from top to bottom, here with few images and a network of two layers."""

import json
import sys
from pathlib import Path

import jax
import pytest
from PIL import Image

from gta_jax.training import setup
from tests.tiny import conv_network

NOTEBOOK = Path(__file__).parents[1] / 'notebooks' / 'first_run.ipynb'
CLASSES = 7


def cells():
  return json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']


def test_every_code_cell_is_introduced_and_nothing_that_it_printed_is_stored():
  kinds = [cell['cell_type'] for cell in cells()]
  assert kinds[0] == 'markdown' and ('code', 'code') not in zip(kinds, kinds[1:], strict=False)
  code = [cell for cell in cells() if cell['cell_type'] == 'code']
  assert not any(cell['outputs'] or cell['execution_count'] for cell in code)


def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
  network = conv_network(CLASSES)  # compiled in seconds, and the cells cannot tell
  monkeypatch.setattr(setup, 'make_network', lambda *_, **__: network)
  monkeypatch.chdir(NOTEBOOK.parent)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  small = {'data.split': '4', 'data.unlabelled': 8, 'data.validation': 4, 'data.crop': 32,
           'train.labelled_batch': 4, 'train.unlabelled_batch': 4, 'train.epochs': 4,
           'method.warmup_epochs': 2.0, 'train.evaluate_epochs': 2, 'train.log_steps': 2}
  names = {}
  for number, cell in enumerate(cells()):
    if cell['cell_type'] == 'code':
      exec(compile(''.join(cell['source']), f'cell {number}', 'exec'), names)
    if 'parameters' in cell['metadata'].get('tags', ()):
      assert {'WORKDIR', 'OVERRIDES'} <= names.keys()
      names |= {'WORKDIR': tmp_path, 'OVERRIDES': small}

  assert Path.cwd() == NOTEBOOK.parents[1]
  printed = capsys.readouterr().out
  assert ('No GPU is used' in printed) == (jax.default_backend() == 'cpu')
  assert '4 labelled, 8 unlabelled and 4 validation images of 7 classes; 8 steps' in printed
  assert names['results']['last']['step'] == 8
  with Image.open(tmp_path / 'curves.png') as curves:
    assert curves.width > 1000
  # A fifth is dropped by the run's method, half by the changed one; CutMix moves that a little.
  kept = (names['labels'] != 255).mean()
  assert 0.7 < kept < 0.9 and 0.35 < names['metrics']['kept_share'] < 0.65
  assert names['weights'].sum() == pytest.approx((names['labels'] != 255).sum(), rel=1e-4)
  assert names['state'].step == 1
  assert len(names['rows']) == 3
