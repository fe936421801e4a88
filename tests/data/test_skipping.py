"""Unreadable examples: what is trained on instead, what is told, and where the limit is."""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import re
import signal

import numpy as np
import pytest

from gta_jax.data.pipeline import WorkerError, training_stream
from gta_jax.data.skipping import Skipped
from gta_jax.data.sources import DataError
from tests.data.test_pipeline import NumberReader, assert_same, numbers, order, take


def skipping(limit=10, **options):
  notes = []
  return Skipped(limit, note=notes.append, **options), notes


@pytest.mark.parametrize('threads', [0, 3])
def test_unreadable_examples_are_replaced_counted_and_named_once(threads):
  skipped, notes = skipping()
  whole = order(20, threads=threads)
  found = order(20, numbers(bad=('3', '5')), skipped=skipped, threads=threads)
  assert (found[~np.isin(whole, [3, 5])] == whole[~np.isin(whole, [3, 5])]).all()
  replaced = found[np.isin(whole, [3, 5])]
  assert not np.isin(replaced, [3, 5]).any() and len(set(replaced)) > 2
  assert skipped.reasons.keys() == {'3', '5'} and len(notes) == 2
  assert re.search(r"skips '[35]' \(2 of at most 10\): [35]\.jpg is truncated", notes[1])


def test_replacing_keeps_the_stream_a_function_of_the_step():
  bad = numbers(bad=('3', '5'))
  whole = take(9, bad, skipped=Skipped(10))
  assert_same(take(5, bad, skipped=Skipped(10), start_step=4), whole[4:])


def test_beyond_the_limit_all_names_are_told():
  skipped, notes = skipping(2)
  with pytest.raises(DataError, match=r'(?s)skip_limit=2 .*raise the limit:\n.*\n.*\n.*jpg is tr'):
    take(40, numbers(bad=('1', '2', '4', '6')), skipped=skipped)
  assert len(notes) <= 2 < len(skipped.reasons)


def test_where_nothing_can_be_read_the_stream_fails_at_once():
  with pytest.raises(DataError, match=r'10 examples in a row.*\.jpg is truncated.*folder'):
    take(1, numbers(bad=tuple('0123456')), skipped=Skipped(10**6))


def test_names_of_an_earlier_part_are_kept_but_do_not_count_for_the_limit(tmp_path):
  path = tmp_path / 'skipped.json'
  Skipped(1, path=path).add([('a', 'why')])
  later, notes = skipping(1, path=path)
  later.add([('b', 'why')])
  assert later.reasons == {'a': 'why', 'b': 'why'} and len(notes) == 1
  path.write_text('{"a"')
  assert Skipped(1, path=path).reasons == {}


def with_bad_mask(bad, id):
  class Turned(NumberReader):
    def mask(self, id_):
      if id_ == id and bad == 'file':
        raise DataError(f'{id}.png is damaged')
      mask = super().mask(id_) if id_ != id or bad == 'size' else np.full((12, 16), 254, np.uint8)
      return mask[1:] if id_ == id and bad == 'size' else mask

  return dataclasses.replace(numbers(), reader=Turned(), classes=tuple(map(str, range(200))))


@pytest.mark.parametrize('bad', ['size', 'ids', 'file'])
def test_masks_that_turn_bad_are_replaced_too(bad):
  skipped, _ = skipping()
  assert 3 not in order(8, with_bad_mask(bad, '3'), skipped=skipped)
  assert skipped.reasons.keys() == {'3'}


@pytest.mark.parametrize('bad', ['size', 'ids', 'file'])
def test_bad_masks_for_diagnostics_change_nothing_that_is_trained_on(bad):
  dataset, options = with_bad_mask(bad, '9'), {'stream': 'unlabelled', 'crop_size': 8}
  found = take(8, dataset, oracle=True, **options)
  labels = np.concatenate([batch.pop('label') for batch in found])
  assert_same(found, take(8, numbers(), **options))
  bad_ones = np.concatenate([batch['image'] for batch in found]).max((1, 2, 3)) == 9
  assert bad_ones.any() and (labels[bad_ones] == 255).all()
  assert (labels[~bad_ones].min((1, 2)) < 255).all()
  with pytest.raises(DataError, match='9'):  # Labels that are trained on are another matter.
    take(8, dataset, pseudo=True, **options)


def test_workers_carry_what_was_skipped_and_a_killed_one_is_named():
  """Each worker takes every second batch: both meet the bad files."""
  bad, (skipped, _) = numbers(bad=('3', '5')), skipping()
  with contextlib.closing(training_stream(
      bad, stream='labelled', batch_size=4, crop_size=1, seed=0, workers=2, skipped=skipped,
  )) as batches:
    assert_same(list(itertools.islice(batches, 6)), take(6, bad, skipped=Skipped(10)))
    assert skipped.reasons.keys() == {'3', '5'}
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r'exit code -9.*data\.workers.*last checkpoint'):
      list(itertools.islice(batches, 1000))
