"""What a run says: before its first step, how long it takes, report.json and TensorBoard."""

import dataclasses
import json
import re

import numpy as np
import pytest

from gta_jax.data.sources import spread
from gta_jax.evaluation.metrics import Scores
from gta_jax.evaluation.scores import Evaluation
from gta_jax.methods.contract import Stage
from gta_jax.training import pace, setup, snapshot, telling
from gta_jax.training.summary import parameter_counts, summary
from gta_jax.training.telling import Page
from tests.runs import tiny_config
from tests.training.test_logs import events


def stage(name, steps):
  return Stage(name, steps, lambda state, batches: (state, {}))


@pytest.fixture
def clock(monkeypatch):
  """The time, as a list of one number that tests set."""
  now = [100.0]
  monkeypatch.setattr(pace.time, 'monotonic', lambda: now[0])
  return now


def test_compilation_and_evaluations_count_for_no_step(clock):
  found = pace.Pace([stage('warmup', 20), stage('main', 100)])
  found.enter('warmup')
  clock[0] = 200.0  # compiled, and the first line
  found.observe(10)
  assert found.estimate(10, 2) == ''
  assert found.seconds_left(10, 2) is None
  clock[0] = 205.0
  found.observe(20)
  assert found.estimate(20, 2) == (
    '0.5 s a step of warmup, measured on 10 of them: about 0 s left; not known yet and not '
    'counted: main (100 steps), 2 evaluations')
  assert found.seconds_left(10, 2) == 55.0
  found.enter('main')
  clock[0] = 300.0
  found.observe(30)
  found.pause()  # an evaluation
  found.evaluation, clock[0] = 6.0, 400.0
  found.observe(40)
  clock[0] = 420.0
  found.observe(50)
  assert found.estimate(50, 1) == (
    '2 s a step of main, measured on 10 of them: about 2 minutes left, with 1 evaluation of 6.0 s '
    'as the last one took')
  assert found.estimate(60, 1) == ''  # said already
  assert found.seconds_left(60, 1) == 126.0
  assert found.summary()['step_seconds'] == {'warmup': 0.5, 'main': 2.0}
  assert found.summary()['peak_bytes']['host'] > 1e7


def test_waiting_for_images_is_told_where_it_is_much(clock):
  found = pace.Pace([stage('main', 100)])
  found.enter('main')
  found.waited(50.0)  # while it compiles
  found.observe(10)
  found.waited(1.5)
  clock[0] = 105.0
  found.observe(20)
  assert found.waiting_share('main') == 0.3
  assert found.estimate(20, 0).endswith(
    'left; up to 30% of a step the device waits for images, which more data.threads or '
    'data.workers may shorten')
  assert found.summary()['waiting_share'] == {'main': 0.3}
  clock[0] = 115.0
  found.observe(30)
  assert found.waiting_share('main') == 0.1 and found.waiting_share('warmup') == 0


def test_a_network_of_another_size_is_told_with_its_own(tmp_path):
  run = setup.make_run(tiny_config('4,method=gct'))
  text = summary(run, tmp_path, first_step=0, evaluations=1)
  assert re.search(r'assistant, detector \(0\.\d+ million\); 0\.\d+ million parameters each', text)


def test_the_start_says_what_is_about_to_be_done(tmp_path):
  config = tiny_config()
  run = setup.make_run(config)
  text = summary(run, tmp_path, first_step=4, evaluations=2)
  assert [line.split()[0] for line in text.splitlines()] == [
    'device', 'images', 'networks', 'steps', 'results']
  assert '4 labelled, 8 unlabelled, 3 validation of shapes; 7 classes' in text
  assert 'teacher, student, assistant' in text and 'teacher predicts' in text
  assert '12 (' in text and 'evaluations to come: 2, goes on from step 4' in text
  assert str(tmp_path) in text
  everything, learning = parameter_counts(run)
  assert everything == learning > 1000
  backbone = run.abstract_state().networks['teacher']['params']['backbone']
  network = dataclasses.replace(run.network, frozen=tuple(backbone)[:1])
  frozen = dataclasses.replace(run, tools=run.tools._replace(network=network))
  assert 0 < parameter_counts(frozen)[1] < everything


def test_a_run_that_goes_on_warns_of_a_collapse_as_one_in_one_go(tmp_path):
  run = setup.make_run(tiny_config())
  classes = run.dataset.classes
  fades = [np.eye(len(classes))[0] * 0.5 + 0.05 * (step < 30) for step in range(100)]

  def told(workdir, *, start, stop):
    with telling.Telling(run, workdir, Page(), (), first_step=start, evaluated=True) as say:
      for step in range(start, stop):
        say.watch(step, fades[step])
        say.writer.write(step, {f'train/kept_share_by_class/{name}': share
                                for name, share in zip(classes, fades[step], strict=True)})
    notes = workdir / 'notes.jsonl'
    return notes.read_text().splitlines() if notes.exists() else []

  at_once = told(tmp_path / 'one', start=0, stop=100)
  assert len(at_once) == len(classes) - 1
  assert told(tmp_path / 'two', start=0, stop=80) == []
  assert told(tmp_path / 'two', start=80, stop=100) == at_once


def test_a_class_of_the_masks_that_is_never_kept_is_told_where_the_data_were_inspected(tmp_path):
  run = setup.make_run(tiny_config())
  classes = run.dataset.classes
  count = len(classes)

  def told(workdir, inspected):
    workdir.mkdir()
    (workdir / 'inspection.json').write_text(inspected)
    with telling.Telling(run, workdir, Page(), (), first_step=0, evaluated=True) as say:
      for step in range(40):
        say.watch(step, np.array([0.0] + [1 / (count - 1)] * (count - 1)))
    notes = workdir / 'notes.jsonl'
    return notes.read_text().splitlines() if notes.exists() else []

  pixels = {'labelled': [10] * count}
  # The file alone is asked, as a run that goes on inspects nothing.
  note, = told(tmp_path / 'own', json.dumps({'classes': classes, 'pixels': pixels}))
  assert f'hardly any {classes[0]} (0.0 % of their pixels' in note
  assert told(tmp_path / 'other', json.dumps({'classes': classes[:2], 'pixels': pixels})) == []
  assert told(tmp_path / 'damaged', '{"digest": 5}') == []


def test_a_run_keeps_its_newest_evaluation(finished):
  workdir, results = finished
  found = json.loads((workdir / snapshot.FILE).read_text())
  assert (found['step'], found['steps'], found['networks']) == (
    12, 12, ['teacher', 'student', 'assistant'])
  assert found['scores'] == {k: v for k, v in results['last'].items() if k != 'step'}
  assert np.array(found['confusion']['student']).shape == (7, 7)
  assert sum(stage['steps'] for stage in found['stages']) == 12
  assert found['timing']['evaluation_seconds'] > 0
  layers = {'image', 'truth', 'teacher', 'student', 'assistant', 'confidence', 'least confident'}
  assert len(found['shown']) == 3 and all(set(of['layers']) == layers for of in found['shown'])
  scores = [of['miou']['teacher'] for of in found['shown']]
  assert scores == sorted(scores)  # the worst first
  assert all(uri.startswith(('data:image/png;base64,', 'data:image/jpeg;base64,'))
             for of in found['shown'] for uri in of['layers'].values())


def test_tensorboard_has_pictures_and_the_config(finished):
  workdir, _ = finished
  values = [value for event in events(workdir) for value in event.summary.value]
  pictures = [value for value in values if value.tag == 'validation']
  assert len(pictures) == 3 and pictures[0].image.width > 500
  config, = (value for value in values if value.tag.startswith('config'))
  assert b'"labelled_batch"' in config.tensor.string_val[0]


def test_the_worst_come_first_and_others_are_spread():
  miou = {'a': {'teacher': 0.9}, 'b': {'teacher': None}, 'c': {'teacher': 0.1},
          'd': {'teacher': 0.5}}
  assert snapshot.worst_ids(miou, 'teacher', 2) == ['c', 'd']
  assert spread('abcdefgh', 2) == ['a', 'e']
  assert spread('ab', 4) == ['a', 'b']


def test_processes_that_do_not_speak_predict_as_long_as_the_one_that_does(tmp_path, monkeypatch):
  monkeypatch.setattr(telling.sharding, 'is_first_process', lambda: False)
  run, asked = setup.make_run(tiny_config(**{'evaluate.worst': 1, 'evaluate.pictures': 2})), []
  counts = np.zeros((3, 7, 7), np.int64)
  counts[:, 0, 0], counts[1, 0, 1] = 4, 4
  scores = {name: Scores.from_confusion(counts.sum(0)) for name in run.method.scored}
  found = Evaluation(scores, {}, dict.fromkeys(run.method.scored, counts))
  with telling.Telling(run, tmp_path, Page(), [4], first_step=0, evaluated=False) as silent:
    silent.show(4, found, lambda ids: asked.extend(ids) or iter(()))
  assert asked == ['val/000001', 'val/000000'] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(('evaluated', 'expected'), [(False, 2), (True, 1)])
def test_an_evaluation_that_was_interrupted_is_still_to_come(
  tmp_path, capsys, evaluated, expected
):
  run = setup.make_run(tiny_config())
  with telling.Telling(run, tmp_path, Page(), [4, 8], first_step=4, evaluated=evaluated) as said:
    said.begin()
  assert f'evaluations to come: {expected}, goes on from step 4' in capsys.readouterr().err


def test_a_full_disk_costs_the_page_and_not_the_scores(tmp_path, monkeypatch, capsys):
  def fail(*_, **__):
    raise OSError('no room')

  monkeypatch.setattr(telling, 'write_snapshot', fail)
  run = setup.make_run(tiny_config())
  scores = {'teacher': Scores.from_confusion(np.eye(7, dtype=np.int64))}
  with telling.Telling(run, tmp_path, Page(), [4], first_step=0, evaluated=False) as speaking:
    speaking.show(4, Evaluation(scores, {}, {}), lambda ids: iter(()))
  assert 'step 4 could not be written: no room' in capsys.readouterr().err
  assert 'val/teacher_miou' in (tmp_path / 'metrics.jsonl').read_text()


@pytest.mark.parametrize('error', [OSError('no room'), KeyError('no room')])
def test_a_page_that_cannot_be_written_ends_no_run(error, capsys):
  def fail():
    raise error

  Page(fail).write()
  said = capsys.readouterr().err
  assert 'the page about the run could not be written' in said and 'no room' in said
