"""The notebooks run from top to bottom in an empty folder, with few images and a tiny network."""

import functools
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import gta_jax
from gta_jax import command
from gta_jax.training import setup
from tests.tiny import conv_network

NOTEBOOKS = sorted((Path(__file__).parents[1] / 'notebooks').glob('*.ipynb'))
SHAPES = {'data.split': '4', 'data.unlabelled': 8, 'data.validation': 4, 'data.crop': 32,
          'train.labelled_batch': 4, 'train.unlabelled_batch': 4, 'train.epochs': 4,
          'method.warmup_epochs': 2.0, 'train.evaluate_epochs': 2, 'train.log_steps': 2}


def cells(notebook: Path) -> list[dict[str, Any]]:
  return json.loads(notebook.read_text(encoding='utf-8'))['cells']


@pytest.fixture
def run_notebook(tmp_path, monkeypatch):
  """(name, variables set after the cell of parameters) -> all variables at the end."""
  make_network = functools.cache(conv_network)  # compiled in seconds, and the cells cannot tell
  monkeypatch.setattr(setup, 'make_network', lambda config, classes: make_network(classes))
  monkeypatch.chdir(tmp_path)

  def run(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    names: dict[str, Any] = {'_shell': shell, '_write': write}
    for number, cell in enumerate(cells(NOTEBOOKS[0].with_name(f'{name}.ipynb'))):
      if cell['cell_type'] == 'code':
        exec(compile(as_python(''.join(cell['source'])), f'{name}, cell {number}', 'exec'), names)
      if 'parameters' in cell['metadata'].get('tags', ()):
        assert parameters.keys() <= names.keys()
        names |= parameters
    return names

  return run


def as_python(source: str) -> str:
  """A cell without IPython: its commands run, the package is there already."""
  if source.startswith('%%writefile '):
    head, _, text = source.partition('\n')
    return f'_write(f{head.split()[1]!r}, {text!r})'
  source = re.sub('^!(.*)$', lambda line: f'_shell(f{line[1]!r})', source, flags=re.MULTILINE)
  return re.sub('^%pip .*$', '', source, flags=re.MULTILINE)


def write(path: str, text: str) -> None:
  Path(path).write_text(text, encoding='utf-8')


def shell(line: str) -> None:
  """The command in this process, with its small network; any other program in its own."""
  program, *arguments = shlex.split(line)
  if program == 'gta-jax':
    assert command.main([program, *arguments]) == 0, line
  else:
    assert program == 'python'
    subprocess.run([sys.executable, *arguments], check=True)


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda path: path.stem)
def test_every_code_cell_is_introduced_and_nothing_that_it_printed_is_stored(notebook):
  kinds = [cell['cell_type'] for cell in cells(notebook)]
  assert kinds[0] == 'markdown' and ('code', 'code') not in zip(kinds, kinds[1:], strict=False)
  code = [cell for cell in cells(notebook) if cell['cell_type'] == 'code']
  assert not any(cell['outputs'] or cell['execution_count'] for cell in code)
  install = cells(NOTEBOOKS[0])[2]['source']
  assert code[0]['source'] == install and install[-1].startswith('%pip install')


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda path: path.stem)
def test_what_trains_in_the_notebook_turns_the_faulty_fusion_off_first(notebook):
  text = ''.join(''.join(cell['source']) for cell in cells(notebook))
  trains = text.find('setup.make_run(')
  assert trains < 0 or 0 < text.find('runtime.disable_faulty_cpu_fusion()') < trains


def test_the_configs_that_a_first_run_offers_have_what_its_cells_take_apart():
  text = ''.join(''.join(cell['source'])
                 for cell in cells(NOTEBOOKS[0].with_name('first_run.ipynb')))
  names = re.findall(r"load_config\('([^']+)'", text)
  assert {'shapes:48', 'voc:183'} < set(names) and any(name.startswith('folder') for name in names)
  assert all('drop_fraction' in gta_jax.load_config(name).method for name in names)


@pytest.mark.slow
def test_a_first_run(run_notebook, capsys):
  names = run_notebook('first_run', {'OVERRIDES': SHAPES})
  printed = capsys.readouterr().out
  assert ('No GPU is used' in printed) == (jax.default_backend() == 'cpu')
  assert '4 labelled, 8 unlabelled and 4 validation images of 7 classes; 8 steps' in printed
  assert names['results']['last']['step'] == 8
  assert names['config'] is names['made'].config  # a folder's has crop and batches only there
  with Image.open('runs/first_run/curves.png') as curves:
    assert curves.width > 1000
  # A fifth is dropped by the run's method, half by the changed one; CutMix moves that a little.
  kept = (names['labels'] != 255).mean()
  assert 0.7 < kept < 0.9 and 0.35 < names['metrics']['kept_share'] < 0.65
  assert names['weights'].sum() == pytest.approx((names['labels'] != 255).sum(), rel=1e-4)
  assert names['state'].step == 1
  assert len(names['rows']) == 3


@pytest.mark.slow
def test_a_folder_from_convert_to_label_next(run_notebook, capsys):
  training = ('--config.train.epochs=2 --config.train.evaluate_epochs=2 '
              '--config.method.warmup_epochs=1 --config.model.weights= '
              '--config.model.frozen_stages=0 --config.data.crop=32 '
              '--config.train.labelled_batch=4 --config.train.unlabelled_batch=4')
  names = run_notebook('your_own_folder', {
    'IMAGES': 20, 'MASKS': 12, 'SPLIT': 6, 'TRAINING': training})
  printed = capsys.readouterr().out
  assert '20 images, 12 masks, 7 classes' in printed and 'Proposed' in printed
  scored = json.loads((names['WORKDIR'] / 'evaluation.json').read_text())
  evaluation, = scored['evaluations']
  assert (evaluation['split'], evaluation['images']) == ('test', 3)
  assert names['mask'].shape == (96, 96) and names['probabilities'].shape == (96, 96, 7)
  assert len(list(names['PREDICTED'].glob('*.png'))) == 20
  assert len(names['chosen']) == 3
  assert '9 labelled, 5 unlabelled, 3 validation images' in printed


@pytest.mark.slow  # many small programs to compile
def test_the_method_by_hand_is_its_step_and_changes_are_seen(run_notebook, capsys):
  changes = {'as published': {}, 'nothing dropped': {'drop_fraction': 0.0}}
  names = run_notebook('the_method', {'OVERRIDES': SHAPES, 'STEPS': 2, 'CHANGES': changes})
  assert names['largest'] < 1e-5
  printed = capsys.readouterr().out
  kept = {name: float(share) for name, share in re.findall(
    r'^(as published|nothing dropped) +([\d.]+)% ', printed, re.MULTILINE)}
  assert kept['as published'] + 10 < kept['nothing dropped'] <= 100
  by_hand, = re.findall(r'^norm ([\d.]+) with weights', printed, re.MULTILINE)
  in_step, = re.findall(r'^assistant_gradient_norm +([\d.]+)', printed, re.MULTILINE)
  assert float(by_hand) == pytest.approx(float(in_step), rel=1e-3)
  smallest = dict(re.findall(r'^ +(\d+\.0) +([\d.]+) ', printed, re.MULTILINE))
  assert float(smallest['0.0']) < float(smallest['1.0']) < float(smallest['10.0']) < 1


@pytest.mark.slow  # two runs and what compares them
def test_methods_compared(run_notebook, capsys):
  small = {name: value for name, value in SHAPES.items()
           if not name.startswith(('train.e', 'method'))}
  names = run_notebook(
    'methods_compared', {'METHODS': ('sup_only', 'gta'), 'EPOCHS': 4, 'OVERRIDES': small})
  assert [row[2] for row in names['rows']] == ['method', 'sup_only', 'gta']
  assert 'points, 95 % interval' in capsys.readouterr().out
  for name in ('curves.png', 'report.html', 'gta-0/results.json'):
    assert (names['OUT'] / name).is_file()


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['stablehlo', 'onnx'])
def test_a_deployed_model_says_what_the_run_says(layout, run_notebook, monkeypatch, capsys):
  find = importlib.util.find_spec
  if layout == 'onnx' and not (find('jax2onnx') and find('onnxruntime')):
    pytest.skip('ONNX needs jax2onnx and onnxruntime (docs/export.md)')
  hidden = 'jax2onnx' if layout == 'stablehlo' else ''
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name, *of: None if name == hidden else find(name, *of))
  names = run_notebook('deploy_onnx', {'OVERRIDES': SHAPES, 'SIZE': (64, 80)})
  assert ('StableHLO is written instead' in capsys.readouterr().out) == (layout == 'stablehlo')
  assert (names['OUT'] / f'model.{layout}').is_file()
  assert names['deployed'].shape == (64, 80)
  assert np.mean(names['deployed'] == names['own']) > 0.999
