import io
import json

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from gta_jax.training import logs
from gta_jax.training.logs import MetricWriter, Progress, final_table


def lines(folder):
  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(folder):
  """Events of all files, in TensorBoard's order of reading."""
  found = []
  for path in sorted(folder.glob('events.out.tfevents.*')):
    data = path.read_bytes()
    while data:
      length = int.from_bytes(data[:8], 'little')
      found.append(Event.FromString(data[12 : 12 + length]))
      data = data[12 + length + 4 :]
  return found


def points(folder):
  """(tag, step) that TensorBoard shows: a session's start hides what lies at or after its step."""
  shown = []
  for event in events(folder):
    if event.HasField('session_log'):
      shown = [point for point in shown if point[1] < event.step]
    shown += [(value.tag, event.step) for value in event.summary.value]
  return shown


def test_lines_are_json_whatever_the_numbers(tmp_path):
  with MetricWriter(tmp_path, tensorboard=False) as writer:
    writer.write(1, {'a': np.float32(0.5), 'b': float('nan')})
    writer.write(np.int64(2), {'a': float('inf')})
    assert lines(tmp_path) == [{'step': 1, 'a': 0.5, 'b': None}, {'step': 2, 'a': None}]
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_resumed_run_tells_one_history(tmp_path):
  for start, stop in ((0, 5), (3, 6), (3, 4)):
    with MetricWriter(tmp_path, start_step=start) as writer:
      for step in range(start + 1, stop + 1):
        writer.write(step, {'loss': step + start / 10})
  assert lines(tmp_path) == [
    {'step': 1, 'loss': 1.0}, {'step': 2, 'loss': 2.0}, {'step': 3, 'loss': 3.0},
    {'step': 4, 'loss': 4.3}]
  assert points(tmp_path) == [('loss', step) for step in (1, 2, 3, 4)]


def test_a_half_written_line_of_a_killed_run_is_dropped(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "a": 2.0}\n{"step": 2, "a"')
  with MetricWriter(tmp_path, start_step=2, tensorboard=False) as writer:
    writer.write(3, {'a': 1})
  assert lines(tmp_path) == [{'step': 1, 'a': 2.0}, {'step': 3, 'a': 1.0}]
  assert not (tmp_path / 'metrics.partial').exists()


def test_a_new_run_drops_what_an_earlier_one_left_without_a_checkpoint(tmp_path):
  for value in (1.0, 2.0):
    with MetricWriter(tmp_path) as writer:
      writer.write(1, {'a': value})
  assert lines(tmp_path) == [{'step': 1, 'a': 2.0}]
  assert points(tmp_path) == [('a', 1)]


class SmallDisk(io.BytesIO):
  """A file with room for so many bytes more."""

  room = 0

  def write(self, data):
    if not SmallDisk.room:
      raise OSError('no space left')
    taken = data[:SmallDisk.room]
    SmallDisk.room -= len(taken)
    return super().write(taken)

  def close(self):
    pass


def test_what_a_full_disk_refuses_is_said_once_and_written_later(tmp_path, monkeypatch, capsys):
  files, SmallDisk.room = {}, 5000
  with monkeypatch.context() as patch:
    patch.setattr(logs.Path, 'open', lambda path, *_, **__: files.setdefault(path, SmallDisk()))
    with MetricWriter(tmp_path) as writer:
      for step, room in ((1, 5000), (2, 9), (3, 0), (4, 5000)):
        SmallDisk.room = room
        writer.write(step, {'a': step})
        writer.note(step, 'x')
  for path, file in files.items():
    path.write_bytes(file.getvalue())
  assert lines(tmp_path) == [{'step': step, 'a': float(step)} for step in (1, 2, 3, 4)]
  assert len((tmp_path / 'notes.jsonl').read_text().splitlines()) == 4
  assert [step for tag, step in points(tmp_path) if tag == 'a'] == [1, 2, 3, 4]
  said = capsys.readouterr().err.splitlines()
  assert len(said) == 3 and all('cannot be written (no space left)' in line for line in said)


def test_what_was_refused_is_there_once_there_is_room_and_a_state_is_saved(tmp_path, monkeypatch):
  file, SmallDisk.room = SmallDisk(), 5000
  with monkeypatch.context() as patch:
    patch.setattr(logs.Path, 'open', lambda *_, **__: file)
    writer = MetricWriter(tmp_path, tensorboard=False)
    SmallDisk.room = 0
    writer.write(10, {'a': 1})
    assert file.getvalue() == b''
    SmallDisk.room = 5000
    writer.flush()
    assert file.getvalue() == b'{"step": 10, "a": 1.0}\n'


def test_progress_writes_plain_lines_where_there_is_no_terminal():
  stream = io.StringIO()
  with Progress(4, start_step=1, every_seconds=1000, stream=stream) as progress:
    progress.note('begins')
    for step in range(2, 5):
      progress.advance(8)
      progress.show({'loss': step / 2})
      progress.note_phase('evaluates')
  first, *steps = stream.getvalue().splitlines()
  assert first == 'begins'
  assert [line.split(',')[0] for line in steps] == ['step 2/4', 'step 4/4']
  assert 'loss 1,' in steps[0]
  assert 'images/s' in steps[0]
  assert ' left' not in steps[0] and '00:00 left' in steps[1]
  assert '\r' not in stream.getvalue()


def test_progress_counts_neither_compilation_nor_images_that_no_step_read(monkeypatch):
  now, stream = [0.0], io.StringIO()
  monkeypatch.setattr(logs.time, 'monotonic', lambda: now[0])
  with Progress(100, every_seconds=0, stream=stream) as progress:
    for seconds, images in ((1000.0, 4), (2.0, 4), (2.0, 8)):
      for _ in range(10):
        progress.advance(images)
      now[0] += seconds
      progress.show({})
    progress.advance()
    progress.show({}, seconds_left=7.0)
  lines = stream.getvalue().splitlines()
  assert lines == ['step 10/100, images/s 0.0', 'step 20/100, 00:16 left, images/s 20.0',
                   'step 30/100, 00:14 left, images/s 40.0', 'step 31/100, 00:07 left']


@pytest.mark.parametrize('phase', [True, False])
def test_progress_is_that_of_the_steps_that_are_done(monkeypatch, phase):
  now, stream = [0.0], io.StringIO()
  monkeypatch.setattr(logs.time, 'monotonic', lambda: now[0])
  with Progress(30, every_seconds=0, stream=stream) as progress:
    for begun in (10, 20, 30):  # A line is written when the steps of the next one have been begun.
      for _ in range(10):
        progress.advance(4)
      now[0] += 2.0
      if begun > 10:
        progress.show({'loss': begun - 10}, step=begun - 10)
    now[0] += 0.1
    if phase:
      progress.note_phase('saves')
    progress.show({'loss': 30}, step=30)
  assert stream.getvalue().splitlines() == [
    'step 10/30, loss 10, images/s 10.0', 'step 20/30, 00:02 left, loss 20, images/s 20.0',
    'step 30/30, 00:00 left, loss 30']


def test_progress_counts_no_compilation_of_a_later_stage(monkeypatch):
  now, stream = [0.0], io.StringIO()
  monkeypatch.setattr(logs.time, 'monotonic', lambda: now[0])
  with Progress(100, every_seconds=0, stream=stream) as progress:
    for stage in ('warmup', 'main'):
      progress.note_stage(stage)
      now[0] += 1000.0  # The first step returns when its program is compiled.
      for _ in range(2):
        for _ in range(10):
          progress.advance(4)
        now[0] += 2.0
        progress.show({})
  assert stream.getvalue().splitlines() == [
    'step 10/100, images/s 20.0', 'step 20/100, 00:16 left, images/s 20.0',
    'step 30/100, images/s 20.0', 'step 40/100, 00:12 left, images/s 20.0']


def test_progress_draws_a_bar_on_a_terminal():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  stream = Terminal()
  with Progress(3, stream=stream) as progress:
    for _ in range(3):
      progress.advance(2)
    progress.show({'loss': 0.25})
    progress.note_phase('evaluates')
  assert 'loss=0.25' in stream.getvalue()
  assert 'images/s' in stream.getvalue()
  assert 'evaluates' in stream.getvalue()
  assert '3/3' in stream.getvalue()


def test_final_table():
  def scores(miou, car):
    return {'miou': miou, 'pixel_accuracy': 0.9, 'iou': {'road': 0.75, 'car': car}}

  results = {'last': {'step': 20, 'teacher': scores(0.5, 0.25), 'student': scores(0.75, None)},
             'best': {'step': 10, 'teacher': scores(0.625, 0.5), 'student': scores(0.5, None)}}
  table = [line.split() for line in final_table(results).splitlines()]
  assert table[0][-2:] == ['teacher', 'student']
  assert ['road', '75.0', '75.0'] in table
  assert ['car', '25.0', '-'] in table
  assert ['mIoU', '50.0', '75.0'] in table
  assert ['mIoU,', 'best', 'step', '10', '62.5', '50.0'] in table
  assert len({len(line) for line in final_table(results).splitlines()}) == 1


def test_damaged_lines_are_dropped(tmp_path):
  (tmp_path / 'metrics.jsonl').write_bytes(
    b'{"step": 1}\n\xff\xfe\x00\n{"step": ' + b'9' * 5000 + b'}\n' + b'[' * 100_000 +
    b'\n{"step": "x"}\n[]\n[1]\n7\n{"step": 2}\n')
  with MetricWriter(tmp_path, start_step=2, tensorboard=False) as writer:
    writer.write(3, {})
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  steps = [json.loads(line)['step'] for line in lines]
  assert steps == [1, 2, 3]
