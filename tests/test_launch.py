"""The command line and the config files: what is understood and what is refused, and how."""

import dataclasses
import errno
import hashlib
import inspect
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import gta_jax
from configs import cityscapes, folder, shapes, voc
from gta_jax import command, command_flags, config_base
from gta_jax.data.pipeline import WorkerError
from gta_jax.methods.registry import METHODS, RECIPES, has_recipe
from gta_jax.models import weights
from gta_jax.training.not_finite import NotFiniteError
from gta_jax.training.signals import Interrupted, Terminated

ROOT = Path(__file__).parents[1]


def launch(*arguments: str) -> subprocess.CompletedProcess:
  """As in a shell outside any job of several processes."""
  environment = {name: value for name, value in os.environ.items()
                 if not name.startswith(('SLURM_', 'OMPI_', 'KUBERNETES_'))}
  return subprocess.run(
    [sys.executable, 'launch.py', *arguments], cwd=ROOT, env=environment, capture_output=True,
    text=True, check=False)


@pytest.mark.parametrize('config', [folder, shapes, voc, cityscapes])
def test_every_method_and_recipe_can_be_asked_for(config):
  for recipe in RECIPES:
    for method in (name for name in METHODS if has_recipe(name, recipe)):
      found = config.get_config(f'46,method={method},recipe={recipe}')
      assert (found.method.name, found.data.split) == (method, '46')
      assert (found.data.padding_label == 0) == (recipe == 'released')
      if not method.startswith(('u2pl', 'ael')):  # of which it is the published one anyway
        assert (len(found.data.scale) == 3) == (recipe == 'released')


def test_the_part_after_the_colon():
  found = config_base.parse('46,method=gta', split='', method='x')
  assert found == {'split': '46', 'method': 'gta'}
  assert config_base.parse(None, split='7') == {'split': '7'}
  with pytest.raises(ValueError, match="'metod=gta'.*split=..., method=..."):
    config_base.parse('46,metod=gta', split='', method='x')


@pytest.mark.parametrize('arguments, message', [
  ((), '--mode train needs --config and --workdir'),
  (('--mode', 'predict', '--workdir', 'w'), 'needs --images and --out'),
  (('--mode', 'report'), '--mode report needs either --workdir or --workdirs; see'),
  (('--mode', 'report', '--workdir', 'w', '--serve', '--port', '70000'), 'port'),
  (('--mode', 'label_next', '--workdir', 'w', '--count', '0'), 'count'),
  (('--mode', 'label_next', '--workdir', 'w'), 'w does not exist; give the --workdir of a run'),
  (('--mode', 'report', '--workdirs', 'w,x'), '--mode report needs --out; see'),
  (('--config', 'configs/none.py', '--workdir', 'w'), "'configs/none.py' is neither"),
  (('--config', 'shape', '--workdir', 'w'), 'use one of cityscapes, folder, shapes, voc, or'),
  (('--config', 'README.md', '--workdir', 'w'), 'the config cannot be used: '),
  (('--config', 'configs/shapes.py:24,method=gtaa', '--workdir', 'w'), 'Use one of: gta, sup_only'),
  (('--config', 'configs/shapes.py', '--config.optim.rat=1', '--workdir', 'w'),
   'error: unknown field optim.rat, did you mean optim.rate?\n'),
  (('--config', 'shapes', '--noconfig.daat.flip', '--workdir', 'w'), 'did you mean data.flip?'),
  (('--config', 'shapes', '--config.seed.x', '3'), 'unknown field seed.x, '),
  (('--config', 'shapes', '--config.method=cutmix', '--workdir', 'w'),
   'error: method is chosen with the config, after its colon: NAME:method=..., or '),
  (('--config', 'shapes', '--config.evaluate=5', '--workdir', 'w'),
   'error: evaluate has fields of its own; set one of evaluate.batch, evaluate.pictures, '),
  (('--config', 'shapes', '--config.method.name=cutmix', '--workdir', 'w'),
   'error: method.name is chosen with the config, after its colon: NAME:method=..., or '),
  (('--config', 'shapes', '--config.method.recipe', 'paper'), 'NAME:recipe=..., or NAME:46,'),
  (('--config', 'shapes', '--config.zzz', '3'), 'unknown field zzz, the config has data.cache, '),
  (('--config', 'shapes', '--workdir', 'w', 'train'), "unexpected 'train'; flags start with --"),
  (('--config', 'configs/shapes.py', '--config.optim.rate=fast', '--workdir', 'w'), 'fast'),
  (('--config', 'configs/folder.py:46', '--workdir', 'w'), '--config.data.dir'),
  (('--config', 'configs/folder.py:46', '--config.data.dir=nowhere', '--workdir', 'w'), 'nowhere'),
])
def test_bad_command_lines_are_refused_in_one_sentence(
  arguments, message, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(ROOT)
  arguments = [str(tmp_path / 'w') if one == 'w' else one for one in arguments]
  assert command.main(['launch.py', *arguments]) == 2
  assert message in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('error, status', [
  (OSError('step 12 could not be saved'), 2), (NotFiniteError('step 3'), 3),
  (WorkerError('died'), 4), (Interrupted('SIGTERM'), 75), (Terminated('2 of 3'), 143),
  (KeyboardInterrupt('1 of 3'), 130), (RuntimeError('RESOURCE_EXHAUSTED: Out of memory'), 2)])
def test_exit_statuses_tell_what_ended_a_run(error, status, monkeypatch, capsys):
  def fail(*_):
    raise error

  monkeypatch.setattr(command, '_evaluate', fail)
  assert command.main(['gta-jax', '--mode', 'evaluate', '--workdir', 'w']) == status
  assert str(error) in capsys.readouterr().err


@pytest.mark.parametrize('number, remedy', [
  (errno.ENOSPC, 'make room'), (errno.EACCES, 'correct the path'), (errno.ESTALE, 'give the same')])
def test_a_file_that_cannot_be_used_has_a_remedy(number, remedy, monkeypatch, capsys):
  def fail(*_):
    raise OSError(number, os.strerror(number), 'a/file')

  monkeypatch.setattr(command, '_evaluate', fail)
  assert command.main(['gta-jax', '--mode', 'evaluate', '--workdir', 'w']) == 2
  assert f'a/file cannot be used ({os.strerror(number)}); {remedy}' in capsys.readouterr().err


@pytest.mark.parametrize('mode, status', [('train', 75), ('predict', 143)])
@pytest.mark.parametrize('joined', [False, True])
def test_sigterm_before_the_work_begins_is_heard(mode, status, joined):
  """Also where jax, which takes SIGTERM for itself when processes join, has done so."""
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
  script = f'''
import os, signal, sys
from gta_jax import command
from gta_jax.devices import runtime
from gta_jax.inference import finished
from gta_jax.training import setup

def work(*_, **__):
  os.kill(os.getpid(), signal.SIGTERM)
  print('goes on')

setup.make_run = finished.predict_images = work
if {joined}:
  command._join_processes = lambda _: runtime.join_processes('127.0.0.1:{port}', 1, 0)
sys.exit(command.main(['gta-jax', '--mode', '{mode}', '--workdir', 'w', *(
  ['--config', 'shapes'] if '{mode}' == 'train' else ['--images', '.', '--out', 'o'])]))
'''
  done = subprocess.run(
    [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == status and 'goes on' not in done.stdout, done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('arguments', [
  ('--mode', 'evaluate'), ('--mode', 'predict', '--images', '.', '--out', 'o')])
def test_a_missing_workdir_is_called_missing(arguments, tmp_path, capsys):
  for workdir, message in ((tmp_path / 'w', 'w does not exist; give the --workdir of a run.\n'),
                           (tmp_path, 'holds no run: config.json is missing;')):
    assert command.main(['gta-jax', *arguments, '--workdir', str(workdir)]) == 2
    assert message in capsys.readouterr().err
  report = ['gta-jax', '--mode', 'report', '--workdirs', str(tmp_path / 'w'), '--out', 'o']
  assert command.main(report) == 2
  assert 'w does not exist;' in capsys.readouterr().err


def test_a_config_by_name_is_the_one_by_path_with_its_choice_and_fields():
  by_name, by_path = (
    command_flags.parse(['', f'--config={config}:24', '--config.data.crop', '32', '--workdir=w'])
    for config in ('shapes', 'configs/shapes.py'))
  assert by_name.config == by_path.config
  assert by_name.config.data.split == '24' and by_name.config.data.crop == 32
  from_python = gta_jax.load_config('shapes:24', {'data.crop': 32})
  assert from_python.to_dict() == by_name.config.to_dict()


@pytest.mark.parametrize('arguments, message', [
  (('nope',), "'nope' is neither a known config nor a file; use one of cityscapes, folder"),
  (('shapes:method=gtaa',), 'Use one of: gta, sup_only'),
  (('shapes', {'optim.rat': 1.0}), 'unknown field optim.rat, did you mean optim.rate?')])
def test_python_is_refused_a_config_in_the_same_words(arguments, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    gta_jax.load_config(*arguments)


def test_a_file_of_flags_sets_fields_and_an_unknown_one_is_named(tmp_path):
  file = tmp_path / 'flags'
  file.write_text('--config=shapes\n--config.data.crop=32\n--workdir=w\n')
  assert command_flags.parse(['', f'--flagfile={file}']).config.data.crop == 32
  file.write_text('--config=shapes\n--config.data.crp=32\n')
  with pytest.raises(command_flags.UsageError, match='did you mean data.crop?'):
    command_flags.parse(['', f'--flagfile={file}'])


def test_help_explains_every_flag_and_mode(capsys):
  assert command.main(['gta-jax', '--help']) == 0
  printed = capsys.readouterr().out
  for flag in set(command_flags.parse(['', '-h'])) - {'h'}:
    assert f'\n  --{flag} ' in printed
  for mode in command_flags.MODES:
    assert f'\n  {mode} ' in printed
  assert max(map(len, printed.splitlines())) <= 110


def test_every_flag_is_read_by_the_modes_in_its_heading_alone(capsys):
  assert command.main(['gta-jax', '--help']) == 0
  groups = re.findall(r'^(\S.*)\n((?:  .*\n)+)', capsys.readouterr().out, re.MULTILINE)
  modes = {name: heading.split(', ') for heading, lines in groups
           for name in re.findall('^  --([a-z_]+)', lines, re.MULTILINE)}
  for name in ('mode', 'help', 'version', *command_flags._PROCESSES):
    del modes[name]
  for mode in command_flags.MODES:
    source = inspect.getsource(getattr(command, f'_{mode}'))
    reads = {name for name in modes if re.search(rf'values\.{name}\b', source)}
    reads |= set() if 'del config' in source else {'config'}
    assert {name for name in modes if mode in modes[name]} == reads


@pytest.mark.parametrize('arguments, message', [
  ('evaluate --workdir w --network nonsense', '--network=nonsense has no effect in --mode evaluate'
   ', only in predict, export, label_next; leave it out.'),
  ('evaluate --workdir w --overwrite', '--overwrite has no effect in --mode evaluate, only in '),
  ('train --config shapes --workdir w --protocols a,b', '--protocols=a,b has no effect in '),
  ('export --workdir w --format onnx --out o --config shapes', '--config=shapes has no effect in '),
  ('report --workdir w --port 80', '--port=80 has no effect without --serve'),
  ('report --workdir w --serve --out o', '--out=o has no effect with --serve'),
  ('predict --workdir w --images i --out o --count 10', '--count=10 has no effect in '),
  ('predict --workdir w --images i --out=', '--out is empty; give a path'),
  ('report --workdirs w,', '--workdirs is empty; give a path'),
])
def test_a_flag_that_the_mode_does_not_read_or_an_empty_path_is_refused(arguments, message):
  with pytest.raises(command_flags.UsageError, match=re.escape(message)):
    command_flags.parse(['', '--mode', *arguments.split()])


def test_a_home_behind_an_equals_sign_is_found(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  values = command_flags.parse([
    '', '--config=folder:4', '--config.data.dir=~/data', '--config.model.weights=~/w.pth',
    '--workdir=~/run'])
  assert (values.workdir, values.config.data.dir) == ('/home/me/run', '/home/me/data')
  assert values.config.model.weights == '/home/me/w.pth'
  assert command_flags.parse(['', '--mode=report', '--workdirs=~/a,b', '--out=~/c']).workdirs == [
    '/home/me/a', 'b']
  assert gta_jax.load_config('folder:4', {'data.dir': '~/data'}).data.dir == '/home/me/data'


def test_prepare_fetches_what_a_machine_without_a_network_lacks(tmp_path, monkeypatch, capsys):
  asked = []
  monkeypatch.setattr(weights, '_download', lambda name: asked.append(name) or tmp_path / 'w')
  (tmp_path / 'w').write_bytes(b'')
  known = dataclasses.replace(
    weights.KNOWN['timm/resnet50.tv_in1k'], sha256=hashlib.sha256(b'').hexdigest())
  monkeypatch.setitem(weights.KNOWN, 'timm/resnet50.tv_in1k', known)
  arguments = ['gta-jax', '--mode', 'prepare', '--config', 'shapes', '--config.model.depth=50',
               '--config.model.width=1.0', '--config.model.stem=torchvision',
               '--config.model.weights=timm/resnet50.tv_in1k']
  assert command.main(arguments) == 0
  assert asked and f'timm/resnet50.tv_in1k are in {tmp_path / "w"}.' in capsys.readouterr().out
