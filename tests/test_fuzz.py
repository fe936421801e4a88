"""A hundred cases of the fuzz test: every one succeeds or is refused in a sentence of ours."""

import itertools
import time

from benchmarks import fuzz


def test_bad_input_is_refused_in_our_words():
  counts, failed = fuzz.fuzz(range(100), seed=0)
  assert not failed
  assert {kind for kind, _ in counts} == {
    'images', 'masks', 'lists', 'classes', 'overrides', 'run_files', 'weights', 'checkpoints',
    'archives', 'convert', 'predict', 'load'}
  assert {result for _, result in counts} == {'success', 'refused'}


def test_kinds_can_be_chosen_and_keep_their_numbers():
  assert list(itertools.islice(fuzz.numbers_of(['convert', 'load']), 4)) == [22, 23, 25, 48]
  assert fuzz.kind_of(48) == 'convert'


def test_an_error_of_a_library_fails_a_case(monkeypatch):
  def careless(*_):
    {}['x']

  def foreign(*_):
    int('x', 10**6)

  def slow(*_):
    time.sleep(10)

  monkeypatch.setattr(fuzz, 'ORDER', [careless, foreign, slow])
  monkeypatch.setattr(fuzz, 'SECONDS', 1)
  _, failed = fuzz.fuzz(range(3), seed=0)
  assert 'no documented class' in str(failed[0]) and 'test_fuzz.py' in str(failed[1])
  assert 'more than 1 s' in str(failed[2])
