"""Runs of several stages: each goes on from anywhere to the bit, and labels no image twice."""

import dataclasses
import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from configs import shapes as shapes_config
from gta_jax.data.files import DataError
from gta_jax.training import logs, loop, setup, steps
from gta_jax.training.signals import Interrupted
from tests import tiny

NETWORK = tiny.conv_network(classes=7)  # one object, so that evaluation compiles once
METHODS = {
  'st': {'method.supervised_share': 0.3},
  'st_plus_plus': {'method.supervised_share': 0.3, 'method.reliable_share': 0.3},
  'dmt': {'method.rounds': 2, 'method.supervised_share': 0.3},
}


def make_run(method, **overrides):
  """Twelve steps of a network of two layers; scores after eight and twelve."""
  config = shapes_config.get_config(f'4,method={method}')
  config.update_from_flattened_dict({
    'data.unlabelled': 8, 'data.validation': 2, 'data.size': 40, 'data.crop': 16,
    'data.cache': 0.0, 'train.labelled_batch': 2, 'train.unlabelled_batch': 2, 'train.epochs': 3,
    'train.evaluate_epochs': 2, 'train.log_steps': 1, 'evaluate.batch': 2,
    'evaluate.pictures': 0, **METHODS[method], **overrides})
  if 'method.labelling' not in overrides and method != 'dmt':
    config.method.labelling = 'whole'
  run = setup.make_run(config)
  tools = run.tools._replace(network=NETWORK)
  return dataclasses.replace(run, tools=tools, stages=run.method.stages(tools))


def last_state(run, workdir):
  with loop.Checkpoints(workdir / 'checkpoints') as checkpoints:
    state = checkpoints.restore(checkpoints.last_step, run.abstract_state())
    return checkpoints.last_step, state.replace(key=None)


def stage_files(workdir):
  """Contents and times of all files below stages."""
  paths = [path for path in sorted((workdir / 'stages').rglob('*')) if path.is_file()]
  return {path.relative_to(workdir): path.read_bytes() for path in paths}


class Interrupting:
  """Lets a run be interrupted: after so many steps of it, or so many predicted images."""

  def __init__(self, monkeypatch):
    self.images, self.steps, self._at = 0, 0, None
    make_host, advance = loop._host, logs.Progress.advance

    def counting_host(*args):
      host = make_host(*args)

      def counting(*args, **options):
        for found in host.predict(*args, **options):
          yield found  # The signal comes when the file has been written.
          self.images += 1
          self._send('images')

      return host._replace(predict=counting)

    def stepping(progress, images):
      advance(progress, images)
      self.steps += 1
      self._send('steps')

    monkeypatch.setattr(loop, '_host', counting_host)
    monkeypatch.setattr(logs.Progress, 'advance', stepping)

  def _send(self, what):
    if self._at == (what, getattr(self, what)):
      self._at = None
      os.kill(os.getpid(), signal.SIGTERM)

  def until(self, what, number, run, workdir):
    """Starts the run and interrupts it after so many more of what is counted."""
    self._at = what, getattr(self, what) + number
    with pytest.raises(Interrupted, match='SIGTERM'):
      loop.train(run, workdir)
    return last_state(run, workdir)[0]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Runs that were never interrupted, made when they are asked for."""
  made = {}

  def of(method):
    if method not in made:
      workdir = tmp_path_factory.mktemp(method)
      with pytest.MonkeyPatch.context() as patch:
        counts = Interrupting(patch)
        results = loop.train(make_run(method), workdir)
      made[method] = workdir, results, counts.images
    return made[method]

  return of


# Steps and labelled images between two signals. ST: stages of 4 and 8 steps; ST++: 1, 1, 2, 3 and 5
# with 8 scored and 4 + 4 labelled images; DMT: 2 and 2, then two rounds of 2 and 2, 16 images each.
STOPS = {
  'st': [('steps', 2), ('images', 3), ('images', 2), ('steps', 5)],
  'st_plus_plus': [('steps', 2), ('images', 3), ('images', 7), ('steps', 2), ('images', 2),
                   ('steps', 1)],
  'dmt': [('steps', 3), ('images', 5), ('images', 9), ('steps', 3), ('images', 1)],
}


def test_nothing_is_prepared_before_the_state_that_it_is_made_with_is_kept(tmp_path, monkeypatch):
  done, finish = [], loop.Checkpoints._finish

  def slowly(checkpoints, record):
    time.sleep(0.5)
    finish(checkpoints, record)
    done.append('kept')

  def prepare(host, state):
    done.append('prepared')
    raise RuntimeError('enough')

  monkeypatch.setattr(loop.Checkpoints, '_finish', slowly)
  run = make_run('st')
  stages = run.stages[0], run.stages[1]._replace(prepare=prepare)
  with pytest.raises(RuntimeError, match='enough'):
    loop.train(dataclasses.replace(run, stages=stages), tmp_path)
  assert done == ['kept', 'prepared']


each_method = pytest.mark.parametrize('method', [
  pytest.param(name, marks=pytest.mark.slow) if name != 'st' else name for name in METHODS])


@pytest.mark.slow
@each_method
def test_a_run_goes_on_within_and_between_stages_as_if_it_had_never_stopped(
  whole, method, tmp_path, monkeypatch
):
  workdir, results, images = whole(method)
  run, counts = make_run(method), Interrupting(monkeypatch)
  reached = [counts.until(*stop, run, tmp_path) for stop in STOPS[method]]
  assert reached == sorted(reached)
  resumed = loop.train(run, tmp_path)
  assert {k: resumed[k] for k in ('last', 'best')} == {k: results[k] for k in ('last', 'best')}
  states = [last_state(run, w)[1] for w in (workdir, tmp_path)]
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_array_equal(a, b)
  assert stage_files(tmp_path) == stage_files(workdir)
  lines = [[json.loads(line) for line in (w / 'metrics.jsonl').read_text().splitlines()]
           for w in (workdir, tmp_path)]
  assert lines[0] == lines[1]
  # At most the batch that was under way is labelled once more.
  assert counts.images <= images + 2 * len(STOPS[method])


@each_method
def test_a_finished_run_started_again_labels_nothing(whole, method, tmp_path, monkeypatch):
  workdir, *_ = whole(method)
  before = {path: (workdir / path).stat().st_mtime_ns for path in stage_files(workdir)}
  make_host = loop._host
  monkeypatch.setattr(loop, '_host', lambda *args: make_host(*args)._replace(predict=None))
  loop.train(make_run(method), workdir)
  assert before == {path: (workdir / path).stat().st_mtime_ns for path in stage_files(workdir)}


def test_a_mask_that_was_lost_within_its_stage_is_named(whole, tmp_path, monkeypatch):
  run = make_run('st')
  Interrupting(monkeypatch).until('steps', 6, run, tmp_path)
  (tmp_path / 'stages/all/masks/train/000005.png').unlink()
  with pytest.raises(DataError, match=r'000005\.png. is missing.*restore the folder'):
    loop.train(run, tmp_path)


def test_masks_of_another_run_are_not_taken(whole, tmp_path):
  """As where somebody removed checkpoints and config, and began anew with another seed."""
  workdir, *_ = whole('st')
  (tmp_path / 'stages').symlink_to(workdir / 'stages')
  with pytest.raises(DataError, match='of other images or of another network'):
    loop.train(make_run('st', seed=1), tmp_path)


@pytest.mark.slow
def test_stages_with_one_step_share_its_program_and_all_read_what_they_ask_for(
  tmp_path, monkeypatch
):
  compiled, opened = [], []
  compile_step, stream = steps.sharding.compile_step, steps.training_stream
  monkeypatch.setattr(
    steps.sharding, 'compile_step',
    lambda *args, **options: compiled.append(1) or compile_step(*args, **options))
  monkeypatch.setattr(
    steps, 'training_stream', lambda dataset, **options: opened.append(
      (options['stream'], options['batch_size'], options['start_step'], len(dataset.unlabelled))
    ) or stream(dataset, **options))
  loop.train(make_run('st_plus_plus'), tmp_path)
  assert len(compiled) == 3  # not 5
  assert opened == [('labelled', 4, 0, 8), ('labelled', 2, 4, 4), ('unlabelled', 2, 4, 4),
                    ('labelled', 2, 7, 8), ('unlabelled', 2, 7, 8)]
