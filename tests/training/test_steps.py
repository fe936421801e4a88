"""What a line of the log holds of its steps."""

import dataclasses
from unittest import mock

import numpy as np
import pytest

from gta_jax.data.skipping import Skipped
from gta_jax.data.transforms import resize_image
from gta_jax.devices import sharding
from gta_jax.evaluation.batches import make_batches
from gta_jax.evaluation.protocols import WHOLE
from gta_jax.ops.network import Network
from gta_jax.training import setup, steps
from gta_jax.training.steps import _mean
from tests.runs import tiny_config
from tests.tiny import linear_network


@pytest.mark.filterwarnings('error')
def test_a_class_is_averaged_over_the_steps_in_which_it_occurs():
  values = [np.float32([0.5, np.nan, np.nan]), np.float32([1.0, 0.25, np.nan])]
  np.testing.assert_array_equal(_mean('oracle_accuracy_by_class', values), [0.75, 0.25, np.nan])
  one = _mean('oracle_accuracy_by_class', values[1:])
  np.testing.assert_array_equal(one, [1.0, 0.25, np.nan])
  np.testing.assert_array_equal(_mean('kept_share_by_class', values), [0.75, np.nan, np.nan])


def test_padding_is_almost_the_published_codes_zero():
  """Of 255, 124, 116, 104 is the nearest to the mean; docs/method.md states the difference."""
  network = linear_network()
  network = dataclasses.replace(network, mean=Network.mean, std=Network.std)
  fill = np.array([[[steps.fill_colour(network)]]], np.uint8)
  assert steps.fill_colour(network) == (124, 116, 104)
  assert 0.008 < float(abs(network.normalize(fill)).max()) < 0.009


def labelled_batch(**fields):
  run = setup.make_run(tiny_config(**fields))
  stream = steps._stream(run, run.dataset, 'labelled', {'labelled': 8}, 0, Skipped(0))
  found = next(stream)
  stream.close()
  return found


@pytest.mark.parametrize('field, value', [
  ('data.jitter', 0.4), ('data.flip', False), ('data.scale', (1.0, 1.0)),
  ('data.scale', (0.5, 1.0, 2.0)), ('data.image_scale', 0.5),
  ('data.padding_label', 0)])
def test_what_the_config_says_of_crops_reaches_the_labelled_ones(field, value):
  one, other = labelled_batch(), labelled_batch(**{field: value})
  assert any((one[name] != other[name]).any() for name in ('image', 'label'))


def test_crops_and_scores_are_of_averages_where_images_shrink_to_an_eighth(monkeypatch):
  averaged = labelled_batch(**{'data.image_scale': 0.125})
  with monkeypatch.context() as patch:
    patch.setattr(steps, 'block_side', lambda image_scale: 1)
    plain = labelled_batch(**{'data.image_scale': 0.125})
  np.testing.assert_array_equal(averaged['label'], plain['label'])
  assert (averaged['image'] != plain['image']).any()

  data = setup.make_run(tiny_config()).dataset
  batch = next(make_batches(
    (0.5,) * 3, data.reader, data.validation[:1], (WHOLE,), batch_size=1, image_scale=0.125,
    crop=5, multiple=1, threads=1))
  image, (seen,) = data.reader.image(data.validation[0]), batch.arrays.images[WHOLE.views[0]].image
  np.testing.assert_array_equal(seen, resize_image(image, (5, 5), block=2))
  assert (seen != resize_image(image, (5, 5))).any()


def test_a_stage_that_begins_is_told_before_its_first_step_is_compiled():
  run, telling = setup.make_run(tiny_config()), mock.Mock()
  with steps.Steps(run, sharding.make_mesh(), mock.Mock(), telling, Skipped(0)) as taken:
    state = run.drawn_state()
    for _ in range(2):
      state = taken.enter_stage(state)
  telling.progress.note_stage.assert_called_once_with('warmup')


@pytest.mark.parametrize('asked', [True, False])
def test_deterministic_kernels_are_the_configs_to_ask_for(monkeypatch, asked):
  given = []
  monkeypatch.setattr(
    steps.sharding, 'compile_step', lambda *_, deterministic: given.append(deterministic))
  run = setup.make_run(tiny_config(**{'train.deterministic': asked}))
  with steps.Steps(run, sharding.make_mesh(), mock.Mock(), mock.Mock(), Skipped(0)) as taken:
    taken.enter_stage(run.drawn_state())
  assert given == [asked]


@pytest.mark.parametrize('method', ['gta', 'cps'])
def test_a_method_that_compares_no_labels_says_so_once(method):
  run = setup.make_run(tiny_config(f'4,method={method}', **{'data.oracle': True}))
  notes, telling = [], mock.Mock()
  telling.note = lambda step, text: notes.append((step, text))
  taken = steps.Steps(run, mock.Mock(), mock.Mock(), telling, Skipped(0))
  taken._of_stage = {'unlabelled': None}
  of_step = {'student_loss': np.float32(1)} | (
    {'oracle_accuracy': np.float32(1)} if method == 'gta' else {})
  for step in (1, 2):
    taken._waiting = [(step, of_step)]
    taken.log(mock.Mock())
  assert notes == ([] if method == 'gta' else [
    (1, 'data.oracle=True has no effect here, as cps does not compare its pseudo-labels')])


@pytest.mark.parametrize('ready', [True, False])
def test_time_for_images_counts_where_the_device_has_nothing_to_do(monkeypatch, ready):
  now = [0.0]
  monkeypatch.setattr(steps.time, 'monotonic', lambda: now[0])

  def stream():
    while True:
      now[0] += 2.0
      yield {'image': np.zeros((4, 1))}

  telling = mock.Mock()
  taken = steps.Steps(setup.make_run(tiny_config()), mock.Mock(), mock.Mock(), telling, Skipped(0))
  taken._of_stage = {'labelled': stream()}
  metrics = {
    'student_loss': mock.Mock(is_ready=lambda: ready), 'n': mock.Mock(is_ready=lambda: True)}
  taken._compiled = lambda state, batches: (state, metrics)
  taken.advance(mock.Mock(step=0), 3, mock.Mock(agreed=lambda: False))
  # Of the first step nothing is under way; a pace that has not begun leaves it out.
  assert telling.pace.waited.call_args_list == [mock.call(2.0)] * (3 if ready else 1)
  # Not more than two steps wait on the device: of three the first one has been waited for.
  assert metrics['student_loss'].block_until_ready.call_count == 1


def test_what_compiles_at_a_line_of_the_log_comes_before_the_pace_is_measured(monkeypatch):
  calls, telling = [], mock.Mock()
  monkeypatch.setattr(steps, 'distances', lambda *_: calls.append('distances') or {})
  telling.done = calls.append
  taken = steps.Steps(setup.make_run(tiny_config()), mock.Mock(), mock.Mock(), telling, Skipped(0))
  taken._streams = dict.fromkeys(('labelled', 'unlabelled'), mock.Mock())
  for step in (1, 2):
    taken._waiting = [(step, {'student_loss': np.float32(1)})]
    taken._end_line(mock.Mock())
  assert calls == ['distances', 'distances', 1]
