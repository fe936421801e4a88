"""The command line and the config files: what is understood and what is refused, and how."""

import subprocess
import sys
from pathlib import Path

import pytest

import launch as main_program
from configs import cityscapes, common, folder, shapes, voc
from gta_jax.data.pipeline import WorkerError
from gta_jax.methods.registry import METHODS, RECIPES
from gta_jax.training.not_finite import NotFiniteError
from gta_jax.training.signals import Interrupted

ROOT = Path(__file__).parents[1]


def launch(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, 'launch.py', *arguments], cwd=ROOT, capture_output=True, text=True,
    check=False)


@pytest.mark.parametrize('config', [folder, shapes, voc, cityscapes])
def test_every_method_and_recipe_can_be_asked_for(config):
  for recipe in RECIPES:
    for method in METHODS:
      found = config.get_config(f'46,method={method},recipe={recipe}')
      assert (found.method.name, found.data.split) == (method, '46')
      assert (found.data.padding_label == 0) == (recipe == 'released')


def test_the_part_after_the_colon():
  assert common.parse('46,method=gta', split='', method='x') == {'split': '46', 'method': 'gta'}
  assert common.parse(None, split='7') == {'split': '7'}
  with pytest.raises(ValueError, match="'metod=gta'.*split=..., method=..."):
    common.parse('46,metod=gta', split='', method='x')


@pytest.mark.parametrize('arguments, message', [
  ((), '--mode train needs --config and --workdir'),
  (('--mode', 'predict', '--workdir', 'w'), 'needs --images and --out'),
  (('--config', 'configs/none.py', '--workdir', 'w'), 'none.py'),
  (('--config', 'README.md', '--workdir', 'w'), 'the config cannot be used: '),
  (('--config', 'configs/shapes.py:24,method=gtaa', '--workdir', 'w'), 'use one of: gta, sup_only'),
  (('--config', 'configs/shapes.py', '--config.optim.rat=1', '--workdir', 'w'), 'rate'),
  (('--config', 'configs/shapes.py', '--config.optim.rate=fast', '--workdir', 'w'), 'fast'),
  (('--config', 'configs/folder.py:46', '--workdir', 'w'), '--config.data.dir'),
  (('--config', 'configs/folder.py:46', '--config.data.dir=nowhere', '--workdir', 'w'), 'nowhere'),
])
def test_bad_command_lines_are_refused_in_one_sentence(arguments, message):
  done = launch(*arguments)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr and 'Traceback' not in done.stderr
  assert not (ROOT / 'w').exists()


@pytest.mark.parametrize('error, status', [
  (OSError('step 12 could not be saved'), 2), (NotFiniteError('step 3'), 3),
  (WorkerError('died'), 4), (Interrupted('SIGTERM'), 75)])
def test_exit_statuses_tell_what_ended_a_run(error, status, monkeypatch, capsys):
  def fail(_):
    raise error

  monkeypatch.setattr(main_program, '_evaluate', fail)
  assert main_program.main(['launch.py', '--mode', 'evaluate', '--workdir', 'w']) == status
  assert str(error) in capsys.readouterr().err
