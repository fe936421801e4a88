"""Runs that are interrupted, started again, or started again otherwise."""

import dataclasses
import errno
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from safetensors.numpy import save_file

import launch
from gta_jax.inference import evaluations
from gta_jax.training import logs, loop, same_run, setup
from gta_jax.training.signals import Interrupted
from gta_jax.training.workdir_files import has_checkpoint, read_ids, write_lists
from tests.runs import final_state, lines, tiny_config
from tests.torch_names import torch_state


@pytest.mark.slow
def test_an_interrupted_run_goes_on_as_if_it_had_never_stopped(finished, tmp_path, monkeypatch):
  """In the warm-up between two lines of the log (3), at the hand-over where networks are to be
  scored (4), while they are scored (8), and in the middle of an epoch of the second phase (9)."""
  workdir, results = finished
  run = setup.make_run(tiny_config(**{'train.checkpoint_steps': 5}))  # traced and compiled once

  def interrupted(patched, name, at, number):
    original, calls = getattr(patched, name), []

    def send(*args, **kwargs):
      calls.append(1)
      if len(calls) == at:
        os.kill(os.getpid(), number)
      return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=number.name):
      patch.setattr(patched, name, send)
      loop.train(run, tmp_path)
    with loop.Checkpoints(tmp_path / 'checkpoints') as checkpoints:
      return checkpoints.last_step

  advance, score = (logs.Progress, 'advance'), (loop, 'evaluate')
  assert interrupted(*advance, 3, signal.SIGTERM) == 3
  assert interrupted(*advance, 1, signal.SIGINT) == 4
  assert interrupted(*score, 2, signal.SIGTERM) == 8
  assert interrupted(*advance, 1, signal.SIGTERM) == 9
  resumed = loop.train(run, tmp_path)
  assert resumed['seconds_from_step'] == 9
  assert {k: resumed[k] for k in ('last', 'best')} == {k: results[k] for k in ('last', 'best')}
  states = [final_state(w, tiny_config()) for w in (workdir, tmp_path)]
  for a, b in zip(*(jax.tree.leaves(s.replace(key=None)) for s in states), strict=True):
    np.testing.assert_array_equal(a, b)
  assert lines(workdir) == lines(tmp_path)


def test_another_config_in_the_same_folder_is_refused_and_shown(finished):
  workdir, _ = finished
  with pytest.raises(ValueError, match=r'(?s)optim.rate: .* -> 0.5.*--allow_config_change'):
    loop.train(setup.make_run(tiny_config(**{'optim.rate': 0.5})), workdir)


def test_other_data_in_the_same_folder_are_refused_and_shown(finished, tmp_path):
  workdir = shutil.copytree(finished[0], tmp_path / 'run')
  run, kept = setup.make_run(tiny_config()), (workdir / 'dataset.json').read_bytes()

  def go_on(**changes):
    changed = dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, **changes))
    loop.train(changed, workdir)

  labelled, unlabelled = run.dataset.labelled, run.dataset.unlabelled
  for changes, message in [
    ({'classes': run.dataset.classes[::-1]}, 'with the classes .*; the data have .* now'),
    ({'labelled': labelled[::-1]}, f"4/labeled.txt .* 4 images, .* number 1, '{labelled[0]}' ->"),
    ({'unlabelled': unlabelled[1:]}, '4/unlabeled.txt started .* 8 images, the data have 7 now'),
    ({'validation': (*run.dataset.validation, 'more')}, "number 4, nothing -> 'more'"),
  ]:
    with pytest.raises(ValueError, match=rf'(?s){message}.*--allow_config_change'):
      go_on(**changes)
  assert (workdir / 'dataset.json').read_bytes() == kept
  go_on(test=('more',))


def test_lists_come_back_whatever_names_hold(tmp_path):
  ids = ('a b', 'é', 'line\u2028separator', 'next\x85line', 'return\rcarriage')
  dataset = dataclasses.replace(setup.make_run(tiny_config()).dataset, labelled=ids)
  write_lists(dataset, tmp_path, split='5')
  assert read_ids(tmp_path / '5' / 'labeled.txt') == ids
  assert read_ids(tmp_path / 'none.txt') == ()


def test_a_run_that_cannot_go_on_keeps_its_files(finished, tmp_path):
  workdir = shutil.copytree(finished[0], tmp_path / 'run')
  kept = {name: (workdir / name).read_bytes() for name in ('config.json', 'dataset.json')}
  wider = setup.make_run(tiny_config(**{'model.width': 0.25}))
  with pytest.raises(ValueError, match='was saved with another network'):
    loop.train(wider, workdir, allow_config_change=True)
  assert {name: (workdir / name).read_bytes() for name in kept} == kept


def test_a_config_without_the_newest_fields_is_completed_and_goes_on(tmp_path):
  config = tiny_config()
  del config.data.skip_limit, config.train.non_finite, config.train.per_device_batch
  del config.train.checkpoint_steps
  (tmp_path / 'config.json').write_text(setup.to_json(config))
  made = setup.make_run(config)
  assert made.config.to_dict() == tiny_config().to_dict()
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'checkpoints' / '4.json').touch()
  same_run.check_same(made, tmp_path, allow_config_change=False)


def test_before_the_first_checkpoint_a_run_may_begin_otherwise(tmp_path):
  (tmp_path / 'config.json').write_text(setup.to_json(tiny_config()))
  other = setup.make_run(tiny_config(seed=1))
  same_run.check_same(other, tmp_path, allow_config_change=False)
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'checkpoints' / '4.json').touch()
  with pytest.raises(ValueError, match='started this run with another config:\n  seed: 0 -> 1'):
    same_run.check_same(other, tmp_path, allow_config_change=False)


def test_fewer_epochs_than_trained_are_refused_and_the_config_stays(finished):
  workdir, _ = finished
  before = (workdir / 'config.json').read_bytes()
  shorter = setup.make_run(tiny_config(**{'train.epochs': 2}))
  with pytest.raises(ValueError, match=r'for 12 steps, but train.epochs=2.0 makes 8; raise'):
    same_run.check_same(shorter, workdir, allow_config_change=True)
  assert (workdir / 'config.json').read_bytes() == before


def test_processes_agree_on_what_they_meet_at(tmp_path, monkeypatch):
  """Between two starts these may change; between two processes they would wait for ever."""
  found = {}
  monkeypatch.setattr(same_run.sharding, 'check_agreement', lambda **values: found.update(values))
  same_run.check_same(setup.make_run(tiny_config()), tmp_path, allow_config_change=False)
  config = found['config']
  assert {'train.log_steps', 'train.checkpoint_steps', 'model.remat', 'seed'} <= config.keys()
  assert not {'data.store', 'data.threads', 'evaluate.batch'} & config.keys()


def test_a_last_step_without_scores_is_named():
  checkpoints = SimpleNamespace(
    last_step=12, best_step=None, scores=lambda step: None, folder='full')
  with pytest.raises(OSError, match='step 12, the last one, or its scores .* in full; make room'):
    loop._results(SimpleNamespace(total_steps=12), checkpoints, 0, 1.0)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
  finished, tmp_path, capsys, monkeypatch
):
  """By evaluation, by prediction, and by the run itself, whose last save then fails."""
  workdir = shutil.copytree(finished[0], tmp_path / 'run')
  damaged = workdir / 'checkpoints' / '12'
  max(damaged.glob('teacher/d/*')).write_bytes(b'damaged')
  images = tmp_path / 'in'
  images.mkdir()
  Image.fromarray(np.zeros((33, 40, 3), np.uint8)).save(images / 'a.png')
  for mode in (('evaluate', '--protocols', 'whole'),
               ('predict', '--images', str(images), '--out', str(tmp_path / 'out'))):
    assert launch.main(['launch.py', '--workdir', str(workdir), '--mode', *mode]) == 0
    assert f'{damaged} is not whole and not used: teacher/d/' in capsys.readouterr().err
  assert evaluations.read(workdir)[-1]['step'] == 8
  assert (tmp_path / 'out' / 'a.png').exists()

  def full(*_, **__):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(ocp.AsyncCheckpointer, 'save', full)
  with pytest.raises(OSError, match='step 12, the last one, .*could not be saved .* make room'):
    loop.train(setup.make_run(tiny_config()), workdir)
  assert 'step 12 could not be saved' in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_goes_on_without_the_weights_that_it_started_from(tmp_path):
  start = setup.make_run(tiny_config()).drawn_state().networks['student']
  path = tmp_path / 'weights.safetensors'
  backbone = {kind: {'backbone': tree['backbone']} for kind, tree in start.items()}
  save_file(torch_state(backbone, prefixes={'backbone': ''}), path)
  changes = {'model.weights': str(path), 'method.warmup_epochs': 3.0, 'data.validation': 1}
  config = tiny_config(**changes, **{'train.epochs': 1})
  results = loop.train(setup.make_run(config), tmp_path / 'run')
  path.unlink()
  assert has_checkpoint(tmp_path / 'run')
  again = loop.train(setup.make_run(config, workdir=tmp_path / 'run'), tmp_path / 'run')
  assert again['last'] == results['last'] and again['seconds_from_step'] == 4
  with pytest.raises(ValueError, match='weights.safetensors does not exist'):
    setup.make_run(config)


@pytest.mark.parametrize('epochs', [3, 4])
def test_a_finished_run_that_goes_on_is_no_longer_finished(finished, tmp_path, monkeypatch, epochs):
  def stop(*_):
    raise Interrupted

  workdir = shutil.copytree(finished[0], tmp_path / 'run')
  monkeypatch.setattr(loop, '_train_to_the_end', stop)
  with pytest.raises(Interrupted):
    loop.train(setup.make_run(tiny_config(**{'train.epochs': epochs})), workdir,
               allow_config_change=True)
  assert (workdir / 'results.json').exists() == (epochs == 3)
