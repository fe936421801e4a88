"""The host loop on drawn shapes: what a run leaves, resume, determinism, and what is refused."""

import dataclasses
import errno
import json
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
from configs import shapes as shapes_config
from gta_jax.data import sources
from gta_jax.inference import evaluations
from gta_jax.inference import finished as inference
from gta_jax.training import loop, setup, steps
from gta_jax.training.not_finite import NotFiniteError
from gta_jax.training.signals import Interrupted
from tests.torch_names import torch_state


def tiny_config(arg='4', **overrides):
  config = shapes_config.get_config(arg)
  config.update_from_flattened_dict({
    'data.unlabelled': 8, 'data.validation': 3, 'data.size': 40, 'data.crop': 32,
    'model.width': 0.125, 'train.labelled_batch': 2, 'train.unlabelled_batch': 2,
    'train.epochs': 3, 'train.evaluate_epochs': 1, 'train.log_steps': 2,
    'method.warmup_epochs': 1.0, 'evaluate.batch': 2, 'evaluate.pictures': 2, **overrides})
  return config


def final_state(workdir, config):
  made = setup.make_run(config)
  with loop.Checkpoints(workdir / 'checkpoints') as checkpoints:
    return checkpoints.restore(checkpoints.last_step, made.initial_state())


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A whole run of three epochs of four steps; the first one is the warm-up."""
  workdir = tmp_path_factory.mktemp('whole')
  results = loop.train(setup.make_run(tiny_config()), workdir)
  return workdir, results


def test_a_run_leaves_what_was_promised(finished):
  workdir, results = finished
  for name in ('config.json', 'dataset.json', 'metrics.jsonl', 'results.json', 'picture.png'):
    assert (workdir / name).stat().st_size > 0
  assert list(workdir.glob('events.out.tfevents*'))
  assert json.loads((workdir / 'results.json').read_text()) == results
  assert results['last']['step'] == 12 and results['labelled'] == 4
  for network in ('teacher', 'student', 'assistant'):
    assert 0 <= results['last'][network]['miou'] <= 1
    assert len(results['last'][network]['iou']) == 7
  best = max(m['val/teacher_miou'] for m in lines(workdir) if 'val/teacher_miou' in m)
  assert results['best']['teacher']['miou'] == pytest.approx(best)
  with Image.open(workdir / 'picture.png') as picture:
    assert picture.size[0] > 500


def test_metrics_tell_of_both_phases(finished):
  workdir, _ = finished
  of_step = {m['step']: m for m in lines(workdir) if 'train/student_rate' in m}
  assert sorted(of_step) == [2, 4, 6, 8, 10, 12]
  assert 'train/threshold' not in of_step[4]
  semi = of_step[6]
  assert 0.7 < semi['train/kept_share'] < 0.81
  assert semi['train/mean_weight'] == pytest.approx(1, abs=1e-4)
  shares = [v for k, v in semi.items() if k.startswith('train/kept_share_by_class/')]
  assert len(shares) == 7 and sum(shares) == pytest.approx(1, abs=1e-5)


def test_the_same_seed_gives_the_same_numbers_to_the_last_bit(finished, tmp_path):
  workdir, results = finished
  again = loop.train(setup.make_run(tiny_config()), tmp_path)
  assert again['last'] == results['last']
  jax.tree.map(np.testing.assert_array_equal, *(
    jax.tree.leaves(final_state(w, tiny_config()).networks) for w in (workdir, tmp_path)))
  other = loop.train(setup.make_run(tiny_config(seed=1)), tmp_path / 'other')
  assert other['last'] != results['last']


def test_an_interrupted_run_goes_on_as_if_it_had_never_stopped(finished, tmp_path, monkeypatch):
  """In the warm-up between two lines of the log (3), at the hand-over where networks are to be
  scored (4), while they are scored (8), and in the middle of an epoch of the second phase (9)."""
  workdir, results = finished
  config = tiny_config(**{'train.checkpoint_steps': 5})

  def interrupted(patched, name, at, number):
    original, calls = getattr(patched, name), []

    def send(*args, **kwargs):
      calls.append(1)
      if len(calls) == at:
        os.kill(os.getpid(), number)
      return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=number.name):
      patch.setattr(patched, name, send)
      loop.train(setup.make_run(config), tmp_path)
    with loop.Checkpoints(tmp_path / 'checkpoints') as checkpoints:
      return checkpoints.last_step

  advance, score = (steps.Progress, 'advance'), (loop, 'evaluate')
  assert interrupted(*advance, 3, signal.SIGTERM) == 3
  assert interrupted(*advance, 1, signal.SIGINT) == 4
  assert interrupted(*score, 2, signal.SIGTERM) == 8
  assert interrupted(*advance, 1, signal.SIGTERM) == 9
  resumed = loop.train(setup.make_run(config), tmp_path)
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


def test_a_config_without_the_newest_fields_is_completed_and_goes_on(tmp_path):
  config = tiny_config()
  del config.data.skip_limit, config.train.non_finite, config.train.per_device_batch
  del config.train.checkpoint_steps
  (tmp_path / 'config.json').write_text(setup.to_json(config))
  made = setup.make_run(config)
  assert made.config.to_dict() == tiny_config().to_dict()
  loop._check_config(made, tmp_path, allow_config_change=False)


def test_fewer_epochs_than_trained_are_refused_and_the_config_stays(finished):
  workdir, _ = finished
  before = (workdir / 'config.json').read_bytes()
  shorter = setup.make_run(tiny_config(**{'train.epochs': 2}))
  with pytest.raises(ValueError, match=r'trained for 12 steps, but train.epochs=2 makes 8; raise'):
    loop._check_config(shorter, workdir, allow_config_change=True)
  assert (workdir / 'config.json').read_bytes() == before


def test_processes_agree_on_what_they_meet_at(tmp_path, monkeypatch):
  """Between two starts these may change; between two processes they would wait for ever."""
  found = {}
  monkeypatch.setattr(loop.sharding, 'check_agreement', lambda **values: found.update(values))
  loop._check_config(setup.make_run(tiny_config()), tmp_path, allow_config_change=False)
  config = found['config']
  assert {'train.log_steps', 'train.checkpoint_steps', 'model.remat', 'seed'} <= config.keys()
  assert not {'data.store', 'data.threads', 'evaluate.batch'} & config.keys()


def test_a_last_step_without_scores_is_named():
  checkpoints = SimpleNamespace(
    last_step=12, best_step=None, scores=lambda step: None, folder='full')
  with pytest.raises(OSError, match='step 12, the last one, or its scores .* in full; make room'):
    loop._results(SimpleNamespace(total_steps=12), checkpoints, 0, 1.0)


def test_infinite_loss_stops_with_step_and_checkpoint(tmp_path, capsys):
  config = tiny_config(**{'optim.rate': 1e12, 'method.warmup_epochs': 3.0})
  with pytest.raises(NotFiniteError, match=r'not finite at step \d+.*last good checkpoint is none'):
    loop.train(setup.make_run(config), tmp_path)
  assert not list((tmp_path / 'checkpoints').iterdir())
  assert 'the warm-up lasts to the end' in capsys.readouterr().err


def test_a_state_that_overflowed_is_not_saved_though_its_losses_were_finite(
  finished, tmp_path, monkeypatch
):
  workdir = shutil.copytree(finished[0], tmp_path / 'run')
  (workdir / 'checkpoints' / '12.json').unlink()
  take = steps.Steps.advance

  def overflow(self, state, *arguments):
    state = take(self, state, *arguments)
    teacher = jax.tree.map(lambda x: x * np.inf, state.networks['teacher'])
    return state.with_networks(teacher=teacher)

  monkeypatch.setattr(steps.Steps, 'advance', overflow)
  with pytest.raises(NotFiniteError, match=r'state after step 12 is not .*last good .* step 8\.'):
    loop.train(setup.make_run(tiny_config()), workdir)
  with loop.Checkpoints(workdir / 'checkpoints') as checkpoints:
    assert checkpoints.last_step == 8


class Faulty(sources.CachedReader):
  """One image of the training set is no longer readable."""

  def image(self, id):
    if id == 'train/000002':
      raise sources.DataError('train/000002 is truncated')
    return super().image(id)


def test_supervised_run_has_no_assistant_and_skips_what_it_cannot_read(tmp_path, capsys):
  config = tiny_config('4,method=sup_only', **{'train.epochs': 2, 'method.warmup_epochs': 1.0})
  made = setup.make_run(config)
  faulty = dataclasses.replace(made.dataset, reader=Faulty(made.dataset.reader, 10))
  results = loop.train(dataclasses.replace(made, dataset=faulty), tmp_path)
  assert set(results['last']) == {'step', 'teacher', 'student'}
  skipped = {'train/000002': 'train/000002 is truncated'}
  assert results['skipped'] == skipped == json.loads((tmp_path / 'skipped.json').read_text())
  assert max(m.get('train/skipped_images', 0) for m in lines(tmp_path)) == 1
  assert capsys.readouterr().err.count("skips 'train/000002' (1 of at most 10)") == 1


def test_evaluation_of_a_workdir_gives_the_scores_of_training(finished):
  workdir, results = finished
  arguments = ['launch.py', '--mode', 'evaluate', '--workdir', str(workdir)]
  assert launch.main([*arguments, '--protocols', 'whole,crop_padding0,sliding+flip']) == 0
  found, = json.loads((workdir / 'evaluation.json').read_text())['evaluations']
  assert found['dataset'] == json.loads((workdir / 'dataset.json').read_text())['name']
  assert found['validation_sha256'] == results['validation_sha256']
  found = found['protocols']
  assert list(found) == ['whole', 'crop_padding0', 'sliding+flip']
  for name in ('teacher', 'student', 'assistant'):
    expected = results['last'][name]
    assert found['whole'][name]['miou'] == pytest.approx(expected['miou'], abs=1e-9)
  assert found['sliding+flip']['student'] != found['whole']['student']
  sheet = (workdir / 'evaluation.md').read_text()
  accuracy = found['crop_padding0']['student']['pixel_accuracy']
  assert '| student | crop_padding0 | ' in sheet and f' | {100 * accuracy:.2f} |' in sheet
  assert sheet.count('\n| ') == 3 * 3 + 2 + 7 + 2
  assert (workdir / 'splits' / 'val.txt').read_text().splitlines() == [
    f'val/{i:06}' for i in range(3)]
  assert len((workdir / 'splits' / '4' / 'labeled.txt').read_text().splitlines()) == 4
  best = inference.evaluate_run(workdir, None, which='best')
  assert best['step'] == results['best']['step']
  kept = evaluations.read(workdir)
  assert [one['checkpoint'] for one in kept] == ['last', 'best']
  assert kept[0]['protocols'].keys() == found.keys()
  with pytest.raises(ValueError, match=r'names no test images; list them in splits/test\.txt'):
    inference.evaluate_run(workdir, None, split='test')


def test_prediction_of_a_folder(finished, tmp_path):
  workdir, _ = finished
  images = tmp_path / 'in'
  images.mkdir()
  rng = np.random.default_rng(0)
  for name, size in (('a.jpg', (50, 40)), ('b.png', (33, 61))):
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(images / name)
  status = launch.main(['launch.py', '--mode', 'predict', '--workdir', str(workdir),
                        '--images', str(images), '--out', str(tmp_path / 'out')])
  assert status == 0
  with Image.open(tmp_path / 'out' / 'b.png') as mask:
    assert mask.mode == 'P' and mask.size == (61, 33) and np.asarray(mask).max() < 7


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


@pytest.mark.parametrize('overrides, message', [
  ({'train.labelled_batch': 0}, 'train.labelled_batch=0 is not possible; use a whole number from'),
  ({'train.epochs': 0}, 'train.epochs=0 is not possible; use a number from'),
  ({'train.checkpoint_steps': -1}, 'checkpoint_steps=-1 is not possible; use a whole number'),
  ({'train.non_finite': 'ignore'}, "'ignore' is not possible; use one of: stop, skip"),
  ({'data.source': 'coco'}, "'coco' is unknown; use one of: folder, shapes"),
  ({'data.source': 'folder'}, '--config.data.dir'),
  ({'model.depth': 99}, 'depth'),
  ({'loss.class_weights': (1.0,)}, '1 values for 7'),
  ({'method.mixing': 'mixup'}, 'none, cutmix'),
  ({'train.per_device_batch': 3}, 'per_device_batch=3 on . devices does not divide a batch of 2'),
  ({'data.padding_label': 200}, 'padding_label=200 is none of the 7 classes; use 0 to 6, or 255'),
  ({'train.per_device_batch': 1, 'loss.ohem_threshold': 0.7}, 'use model.remat=True'),
  ({'train.per_device_batch': 1, 'train.labelled_batch': 4, 'method.batch_norm': 'joint'},
   'into 4 and 2 parts'),
])
def test_bad_configs_are_refused_before_work_starts(overrides, message):
  with pytest.raises(ValueError, match=message):
    setup.make_run(tiny_config(**overrides))


def test_weights_of_a_file_are_loaded_and_never_silently_random(tmp_path):
  """Only the backbone is taken; the decoder stays as it was drawn."""
  made = setup.make_run(tiny_config())
  start = made.initial_state().networks['student']
  backbone = {kind: {'backbone': tree['backbone']} for kind, tree in start.items()}
  state = torch_state(backbone, prefixes={'backbone': ''})
  path = tmp_path / 'weights.safetensors'
  save_file(state, path)
  config = tiny_config(**{'model.weights': str(path)})
  loaded = setup.make_run(config).initial_state().networks['student']
  np.testing.assert_array_equal(
    loaded['params']['backbone']['layer4_0']['bn2']['bias'], state['layer4.0.bn2.bias'])
  jax.tree.map(np.testing.assert_array_equal, loaded['params']['decoder'],
               start['params']['decoder'])
  assert made.network.mean == (0.485, 0.456, 0.406)
  assert setup.make_network(tiny_config(**{'model.mean': (0.5, 0.5, 0.5)}), 7).mean == (0.5,) * 3
  with pytest.raises(ValueError, match='nowhere.safetensors does not exist'):
    setup.make_run(tiny_config(**{'model.weights': 'nowhere.safetensors'}))


def test_a_workdir_without_a_run_is_refused(tmp_path):
  with pytest.raises(ValueError, match='config.json is missing'):
    inference.evaluate_run(tmp_path, None)


def test_a_line_of_the_log_is_written_a_line_later_and_the_device_never_waits(
  tmp_path, monkeypatch
):
  taken, written = [], {}
  advance, write = loop.Progress.advance, loop.MetricWriter.write
  monkeypatch.setattr(
    loop.Progress, 'advance', lambda self: taken.append(1) or advance(self))
  monkeypatch.setattr(
    loop.MetricWriter, 'write',
    lambda self, step, scalars: written.setdefault(step, len(taken)) and write(self, step, scalars))
  loop.train(setup.make_run(tiny_config('4', **{'train.evaluate_epochs': 3})), tmp_path)
  # All but the last line, which the evaluation waits for.
  assert written == {2: 4, 4: 6, 6: 8, 8: 10, 10: 12, 12: 12}


def test_a_run_goes_on_without_the_weights_that_it_started_from(tmp_path):
  start = setup.make_run(tiny_config()).initial_state().networks['student']
  path = tmp_path / 'weights.safetensors'
  backbone = {kind: {'backbone': tree['backbone']} for kind, tree in start.items()}
  save_file(torch_state(backbone, prefixes={'backbone': ''}), path)
  changes = {'model.weights': str(path), 'method.warmup_epochs': 3.0, 'data.validation': 1}
  config = tiny_config(**changes, **{'train.epochs': 1})
  results = loop.train(setup.make_run(config), tmp_path / 'run')
  path.unlink()
  assert loop.has_checkpoint(tmp_path / 'run')
  again = loop.train(setup.make_run(config, resumed=True), tmp_path / 'run')
  assert again['last'] == results['last'] and again['seconds_from_step'] == 4
  with pytest.raises(ValueError, match='weights.safetensors does not exist'):
    setup.make_run(config)


def test_a_transfer_that_nobody_asked_for_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(steps.sharding, 'global_batch', lambda batch, mesh: batch)
  with pytest.raises(Exception, match='[Dd]isallowed host-to-device transfer'):
    loop.train(setup.make_run(tiny_config()), tmp_path)
