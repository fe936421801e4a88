import contextlib
import dataclasses
import itertools
import pathlib
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

from gta_jax.data import pipeline
from gta_jax.data.pipeline import steps_per_epoch, training_stream
from gta_jax.data.shapes import make_shapes
from gta_jax.data.sources import DataError, Dataset


@dataclasses.dataclass(frozen=True)
class NumberReader:
  """Image and mask of id 'n' are full of the value n; ids of `bad` cannot be read."""

  bad: tuple[str, ...] = ()
  masked: int = 256

  def image(self, id):
    if id in self.bad:
      raise DataError(f'{id}.jpg is truncated; copy it again.')
    return np.full((12, 16, 3), int(id), np.uint8)

  def mask(self, id):
    return np.full((12, 16), int(id), np.uint8)

  def has_mask(self, id):
    return int(id) < self.masked

  def size(self, id):
    return 12, 16


def numbers(labelled=7, unlabelled=22, **options):
  ids = tuple(map(str, range(labelled + unlabelled)))
  classes = tuple(map(str, range(255)))
  return Dataset('numbers', classes, np.zeros((255, 3), np.uint8), ids[:labelled], ids[labelled:],
                 ('0', '5'), NumberReader(**options))


def take(count, dataset=None, **options):
  """`count` batches as a list; the crop is one pixel, so that the image tells the id."""
  options = {'stream': 'labelled', 'batch_size': 4, 'crop_size': 1, 'seed': 0} | options
  with contextlib.closing(training_stream(dataset or numbers(), **options)) as batches:
    return list(itertools.islice(batches, count))


def order(*args, **options):
  return np.concatenate([batch['image'][:, 0, 0, 0] for batch in take(*args, **options)])


def assert_same(batches, others):
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize('seed', [0, 1, 12345])
def test_every_epoch_is_another_permutation_of_the_subset_and_nothing_else(seed):
  epochs = order(56, batch_size=5, seed=seed).reshape(40, 7)
  assert (np.sort(epochs) == np.arange(7)).all()
  assert len(set(map(tuple, epochs))) > 35
  epochs = order(88, stream='unlabelled', batch_size=5, seed=seed).reshape(20, 22)
  assert (np.sort(epochs) == np.arange(7, 29)).all()
  assert len(set(map(tuple, epochs))) == 20


def test_one_seed_gives_one_order_and_two_seeds_two():
  shapes = make_shapes(labelled=5, unlabelled=9, validation=1, size=48)
  options = {'dataset': shapes, 'crop_size': 32}
  assert_same(take(4, **options, seed=3), take(4, **options, seed=3, threads=4, prefetch=1))
  assert_same(take(4, **options, seed=3), take(4, **options, seed=3, threads=0))
  assert (order(20, seed=3) != order(20, seed=4)).any()


def test_crops_of_one_image_differ_between_epochs():
  shapes = make_shapes(labelled=1, unlabelled=0, validation=0, size=48)
  first, second = take(1, shapes, batch_size=2, crop_size=32)[0]['image']
  assert (first != second).any()


def test_streams_of_one_seed_are_not_shifted_copies():
  """With equally long lists, no epoch of one stream or seed has the order of any other epoch."""
  epochs = [order(60, numbers(20, 20), batch_size=20, stream=stream, seed=seed) % 20
            for stream in ('labelled', 'unlabelled') for seed in (0, 1)]
  assert len(set(map(tuple, np.concatenate(epochs).reshape(-1, 20)))) == 240


@pytest.mark.parametrize('stream', ['labelled', 'unlabelled'])
def test_start_step_equals_skipping(stream):
  shapes = make_shapes(labelled=5, unlabelled=9, validation=1, size=48)
  options = {'dataset': shapes, 'crop_size': 32, 'stream': stream}
  whole = take(9, **options)
  for start in (1, 4, 8):
    assert_same(take(9 - start, **options, start_step=start), whole[start:])


def test_a_far_step_is_reached_without_walking():
  class Counting(NumberReader):
    reads = 0

    def image(self, id):
      Counting.reads += 1
      return super().image(id)

  dataset = dataclasses.replace(numbers(), reader=Counting())
  take(1, dataset, start_step=10**9, threads=0)
  assert Counting.reads == 4


@pytest.mark.parametrize('start_step', [0, 5])
def test_the_global_batch_is_the_same_for_every_number_of_processes(start_step):
  shapes = make_shapes(labelled=5, unlabelled=9, validation=1, size=48)
  options = {'dataset': shapes, 'crop_size': 32, 'start_step': start_step}
  whole = take(5, **options, batch_size=8)
  for count in (2, 4):
    parts = [take(5, **options, batch_size=8 // count, process_index=index, process_count=count)
             for index in range(count)]
    joined = [{name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
              for batch in zip(*parts, strict=True)]
    assert_same(joined, whole)


def test_a_process_reads_its_own_rows_only():
  seen = []

  class Noting(NumberReader):
    def image(self, id):
      seen.append(id)
      return super().image(id)

  dataset = dataclasses.replace(numbers(), reader=Noting())
  whole = order(3, batch_size=4)
  take(3, dataset, batch_size=2, process_index=1, process_count=2, threads=0)
  assert seen == [str(n) for n in whole.reshape(3, 4)[:, 2:].ravel()]


def test_contents_of_batches():
  batch = take(1, crop_size=20, scale=(1, 1))[0]
  assert batch.keys() == {'image', 'label'}
  assert batch['image'].shape == (4, 20, 20, 3) and batch['image'].dtype == np.uint8
  assert batch['label'].dtype == np.uint8 and (batch['label'][:, 0] == 255).all()
  np.testing.assert_array_equal(batch['label'][:, 10, 10], batch['image'][:, 10, 10, 0])
  batch = take(1, crop_size=20, scale=(1, 1), stream='unlabelled')[0]
  assert batch.keys() == {'image', 'valid'} and batch['valid'].dtype == bool
  assert (batch['valid'].sum(axis=(1, 2)) == 12 * 16).all()
  assert (take(1, crop_size=20, padding_label=0, scale=(1, 1))[0]['label'][:, 0] == 0).all()


def test_oracle_adds_labels_where_masks_exist():
  for batch in take(6, numbers(masked=15), stream='unlabelled', oracle=True):
    assert batch.keys() == {'image', 'valid', 'label'}
    number = batch['image'][:, 0, 0, 0]
    np.testing.assert_array_equal(batch['label'][:, 0, 0], np.where(number < 15, number, 255))


def test_label_sampling_once_keeps_to_one_sample_of_the_repeated_list():
  epochs = order(88, batch_size=5, label_sampling='once').reshape(20, 22)
  counts = np.bincount(epochs[0], minlength=7)
  assert counts.sum() == 22 and counts.max() <= 4 and set(epochs[0]) <= set(range(7))
  for epoch in epochs[1:]:
    np.testing.assert_array_equal(np.bincount(epoch, minlength=7), counts)
  assert len(set(map(tuple, epochs))) == 20
  np.testing.assert_array_equal(order(5, label_sampling='once', start_step=83, batch_size=5),
                                epochs.ravel()[-25:])


def test_steps_per_epoch():
  assert steps_per_epoch(numbers(7, 22), 4) == 5
  assert steps_per_epoch(numbers(7, 0), 2) == 3
  assert steps_per_epoch(numbers(1, 2), 8) == 1


@pytest.mark.parametrize(('options', 'message'), [
    ({'stream': 'both'}, "'both' is unknown; use one of labelled, unlabelled"),
    ({'label_sampling': 'twice'}, "'twice' is unknown; use one of reshuffled, once"),
    ({'process_index': 2, 'process_count': 2}, 'process_index 2'),
    ({'batch_size': 0}, 'batch_size 0'),
    ({'start_step': -1}, 'start_step -1'),
    ({'crop_size': 0}, 'crop size 0'),
])
def test_wrong_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    take(1, **options)


def test_a_stream_without_images_is_refused():
  with pytest.raises(DataError, match='no unlabelled images.*sup_only'):
    take(1, numbers(7, 0), stream='unlabelled')
  assert len(take(3, numbers(7, 0))) == 3


@pytest.mark.parametrize('threads', [0, 3])
def test_an_unreadable_file_reaches_the_consumer_by_name(threads):
  with pytest.raises(DataError, match=r'3\.jpg is truncated; copy'):
    take(8, numbers(bad=('3',)), threads=threads)


def test_a_mask_of_another_size_reaches_the_consumer_by_name():
  class Shrunk(NumberReader):
    def mask(self, id):
      return super().mask(id)[1:]

  with pytest.raises(DataError, match=r"mask of '\d' has height and width \(11, 16\)"):
    take(1, dataclasses.replace(numbers(), reader=Shrunk()))


def test_closing_ends_the_threads():
  before = set(threading.enumerate())
  batches = training_stream(numbers(), stream='labelled', batch_size=4, crop_size=8, seed=0,
                            threads=3)
  next(batches)
  started = set(threading.enumerate()) - before
  assert 1 <= len(started) <= 3  # a pool starts a thread only where none is idle
  batches.close()
  for thread in started:
    thread.join(timeout=10)
    assert not thread.is_alive()


_SCRIPT = """
from gta_jax.data.pipeline import training_stream
from gta_jax.data.shapes import make_shapes
import sys
if __name__ == '__main__':
  shapes = make_shapes(labelled=5, unlabelled=9, validation=1, size=48)
  batches = training_stream(shapes, stream='labelled', batch_size=4, crop_size=32, seed=0,
                            start_step=2, workers=int(sys.argv[1]))
  print(*(int(next(batches)['image'].sum()) for _ in range(5)))
  # Ends without close(), as a script that fails would.
"""


@pytest.mark.slow
def test_workers_change_nothing_and_nothing_hangs_at_exit(tmp_path):
  (tmp_path / 'script.py').write_text(_SCRIPT)
  here, two = [
      subprocess.run([sys.executable, tmp_path / 'script.py', workers], timeout=60, check=True,
                     capture_output=True, text=True, env={'PYTHONPATH': ':'.join(sys.path)}).stdout
      for workers in ('0', '2')]
  shapes = make_shapes(labelled=5, unlabelled=9, validation=1, size=48)
  assert here == two
  assert [int(batch['image'].sum()) for batch in take(5, shapes, crop_size=32, start_step=2)] == [
      int(number) for number in here.split()]


def test_the_data_path_imports_no_jax_and_no_model():
  for path in pathlib.Path(pipeline.__file__).parent.glob('*.py'):
    for line in path.read_text().splitlines():
      assert not re.match(r'(from|import) (jax|flax|gta_jax\.(?!data))', line.strip()), path


def test_jitter_leaves_padding_as_it_is():
  shapes = make_shapes(size=32, labelled=4, unlabelled=6, validation=2, seed=0)
  options = {'dataset': shapes, 'stream': 'labelled', 'crop_size': 48, 'fill': (1, 2, 3)}
  plain, jittered = (take(1, jitter=jitter, **options)[0]['image'] for jitter in (0.0, 0.4))
  padding = (plain == (1, 2, 3)).all(-1)
  assert padding.any() and (jittered[~padding] != plain[~padding]).any()
  np.testing.assert_array_equal(jittered[padding], plain[padding])


def test_jitter_is_for_labelled_crops_and_moves_no_crop():
  shapes = make_shapes(size=32, labelled=4, unlabelled=6, validation=2, seed=0)
  for stream in ('labelled', 'unlabelled'):
    options = {'dataset': shapes, 'stream': stream, 'crop_size': 24}
    plain, = take(1, **options)
    jittered, = take(1, jitter=0.4, **options)
    labelled = stream == 'labelled'
    name = 'label' if labelled else 'valid'
    # The next example of a batch has random numbers of its own.
    np.testing.assert_array_equal(jittered[name], plain[name])
    assert (jittered['image'] == plain['image']).all() != labelled
