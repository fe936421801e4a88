"""The host loop on drawn shapes: what a run leaves, what it logs, that it repeats."""

import dataclasses
import gc
import json
import shutil
import weakref

import jax
import numpy as np
import pytest
from PIL import Image

from gta_jax.data import sources
from gta_jax.training import logs, loop, setup, steps
from tests.runs import final_state, lines, tiny_config


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


def test_the_last_picture_marks_the_share_that_the_run_drops(finished, tmp_path, monkeypatch):
  workdir = shutil.copytree(finished[0], tmp_path / 'run')
  shares = []
  monkeypatch.setattr(
    loop, 'write_picture', lambda *_, drop_share=None, **__: shares.append(drop_share))
  run = setup.make_run(tiny_config(**{'method.drop_fraction': 0.35}))
  loop.train(run, workdir, allow_config_change=True)  # Nothing but the results is left to do.
  assert shares == [0.35]


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


@pytest.mark.slow  # a second whole run; resuming shows the same of every run
def test_the_same_seed_gives_the_same_numbers_to_the_last_bit(finished, tmp_path):
  workdir, results = finished
  again = loop.train(setup.make_run(tiny_config()), tmp_path)
  assert again['last'] == results['last']
  jax.tree.map(np.testing.assert_array_equal, *(
    jax.tree.leaves(final_state(w, tiny_config()).networks) for w in (workdir, tmp_path)))
  other = loop.train(setup.make_run(tiny_config(seed=1)), tmp_path / 'other')
  assert other['last'] != results['last']


class Faulty(sources.CachedReader):
  """One image of the training set is no longer readable, from the third time on that it is read."""

  reads = 0

  def image(self, id):
    self.reads += id == 'train/000002'
    if id == 'train/000002' and self.reads > 2:
      raise sources.DataError('train/000002 is truncated')
    return super().image(id)


@pytest.mark.slow
def test_supervised_run_has_no_assistant_and_skips_what_it_cannot_read(tmp_path, capsys):
  config = tiny_config('4,method=sup_only', **{
    'train.epochs': 2, 'train.evaluate_epochs': 2, 'method.warmup_epochs': 1.0})
  made = setup.make_run(config)
  faulty = dataclasses.replace(made.dataset, reader=Faulty(made.dataset.reader, 10))
  results = loop.train(dataclasses.replace(made, dataset=faulty), tmp_path)
  assert set(results['last']) == {'step', 'teacher', 'student'}
  skipped = {'train/000002': 'train/000002 is truncated'}
  assert results['skipped'] == skipped == json.loads((tmp_path / 'skipped.json').read_text())
  counts = {m['step']: m['train/skipped_images'] for m in lines(tmp_path)
            if 'train/skipped_images' in m}
  # In batch 6. A line counts what was read up to its last step, however late it is written.
  assert counts == {2: 0, 4: 0, 6: 1, 8: 1}
  assert capsys.readouterr().err.count("skips 'train/000002' (1 of at most 10)") == 1


@pytest.mark.slow
def test_a_line_of_the_log_is_written_a_line_later_and_the_device_never_waits(
  tmp_path, monkeypatch
):
  taken, written = [], {}
  advance, write = logs.Progress.advance, logs.MetricWriter.write
  monkeypatch.setattr(
    logs.Progress, 'advance', lambda self, images: taken.append(images) or advance(self, images))
  monkeypatch.setattr(
    logs.MetricWriter, 'write',
    lambda self, step, scalars: written.setdefault(step, len(taken)) and write(self, step, scalars))
  loop.train(setup.make_run(tiny_config('4', **{'train.evaluate_epochs': 3})), tmp_path)
  # All but the last line, which the evaluation waits for.
  assert written == {2: 4, 4: 6, 6: 8, 8: 10, 10: 12, 12: 12}
  assert taken == [2] * 4 + [2 + 2] * 8  # images; the warm-up reads no unlabelled ones


@pytest.mark.parametrize('epochs, expected', [
  (1, [4, 8, 12]), (0.75, [3, 6, 9, 12]), (1.25, [5, 10, 12]), (2, [8, 12]), (2.75, [12]),
  (0.25, [*range(1, 13)])])
def test_no_evaluation_comes_just_before_the_last(epochs, expected):
  run = setup.make_run(tiny_config('4', **{'train.evaluate_epochs': epochs}))
  assert run.total_steps == 12
  assert sorted(loop._evaluation_steps(run)) == expected


def test_a_transfer_that_nobody_asked_for_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(steps.sharding, 'global_batch', lambda batch, mesh: batch)
  with pytest.raises(Exception, match='[Dd]isallowed host-to-device transfer'):
    loop.train(setup.make_run(tiny_config()), tmp_path)


def test_nobody_holds_the_state_that_a_run_began_with(tmp_path, monkeypatch):
  held, first_state = [], loop.first_state

  def begin(run):
    state = first_state(run)
    held.append(weakref.ref(state))
    return state

  class LookedAt(Exception):
    """In the first step."""

  def advance(self, state, stop, signals):
    gc.collect()
    raise LookedAt(held[0]())

  monkeypatch.setattr(loop, 'first_state', begin)
  monkeypatch.setattr(steps.Steps, 'enter_stage', lambda self, state: state.replace(memory=()))
  monkeypatch.setattr(steps.Steps, 'advance', advance)
  with pytest.raises(LookedAt) as looked_at:
    loop.train(setup.make_run(tiny_config()), tmp_path)
  assert looked_at.value.args == (None,)
