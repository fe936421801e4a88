"""Grain streams of training batches, whose position is the step number alone."""

import atexit
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol, cast

import grain
import numpy as np
from absl import flags

from gta_jax.data import files, skipping
from gta_jax.data.mask_code import unknown_ids
from gta_jax.data.sources import IGNORE, DataError, Dataset, Reader
from gta_jax.data.transforms import ColourJitter, RandomCrop

STREAMS = ('labelled', 'unlabelled')
LABEL_SAMPLINGS = ('reshuffled', 'once')
Batch = dict[str, np.ndarray]
_TRIES = 10


class WorkerError(RuntimeError):
  """A process that reads data was killed."""


def steps_per_epoch(dataset: Dataset, batch_size: int) -> int:
  """Steps of one pass over the unlabelled images (labelled where there are none), at least one.

  Args:
    batch_size: the global one.
  """
  return max(1, len(dataset.unlabelled or dataset.labelled) // batch_size)


def training_stream(
    dataset: Dataset, *, stream: str, batch_size: int, crop_size: int, seed: int,
    scale: tuple[float, ...] = (0.5, 2.0), flip: bool = True,
    fill: tuple[int, int, int] = (124, 116, 104), padding_label: int = IGNORE, block: int = 1,
    jitter: float = 0.0,
    label_sampling: str = 'reshuffled', oracle: bool = False, pseudo: bool = False,
    confidence: bool = False, start_step: int = 0, process_index: int = 0, process_count: int = 1,
    threads: int = 2, workers: int = 0, prefetch: int = 4,
    skipped: skipping.Skipped | None = None) -> Generator[Batch, None, None]:
  """Endless batches; every pass over the ids is a new permutation of them.

  Global batch i is examples [i B, (i+1) B) of one sequence that depends on the seed alone, with
  B = batch_size * process_count; a process reads a contiguous part of it. The stream from
  start_step = n therefore yields, bit for bit, what an uninterrupted one yields from its n-th
  batch on, and nothing but n has to be saved.

  An example that cannot be read is replaced by one that its own random numbers choose: the stream
  stays a function of the seed, the step and which files are readable.

  Args:
    stream: 'labelled' or 'unlabelled'.
    batch_size: examples a batch in this process.
    crop_size, scale, flip, fill, padding_label, block: see RandomCrop.
    jitter: of labelled crops alone, see ColourJitter.
    seed: of the whole run; each stream derives random numbers of its own from it.
    label_sampling: 'reshuffled' permutes the labelled ids anew in every pass over them; 'once', as
      the release, repeats the list, samples it to the unlabelled length once a run, and permutes
      that.
    oracle: unlabelled batches carry 'label', for diagnostics: 255 where no mask can be read.
    pseudo: they carry it to be trained on; a mask that cannot be read is one of the unreadable.
    confidence: batches with 'label' carry 'confidence' uint8 [B,H,W] as well, of a reader that has
      confidence(id), cut and resized like the label.
    threads: each makes whole batches, in this process or in each worker.
    workers: spawned processes; 0 reads in this one.
    prefetch: batches made ahead, in this process or in each worker; at least one a thread.
    skipped: counts the unreadable examples of the batches taken; None refuses the first.
  Returns: an iterator with close(); labelled {'image' uint8 [B,H,W,3], 'label' uint8 [B,H,W]},
    unlabelled {'image', 'valid' bool [B,H,W]}. next() raises DataError for more unreadable files
    than `skipped` allows, WorkerError where a worker was killed.
  """
  if stream not in STREAMS:
    raise ValueError(f'stream {stream!r} is unknown; use one of {", ".join(STREAMS)}.')
  if batch_size < 1 or start_step < 0:
    raise ValueError(f'batch_size {batch_size} must be positive and start_step {start_step} not '
                     'negative; correct them.')
  crop = RandomCrop(crop_size, scale=scale, flip=flip, fill=fill, padding_label=padding_label,
                    block=block)
  seeds = np.random.SeedSequence((seed, STREAMS.index(stream))).generate_state(3)
  list_seed, order_seed, crop_seed = map(int, seeds)
  ids = _stream_ids(dataset, stream, label_sampling, list_seed)
  colours = ColourJitter(jitter if stream == 'labelled' else 0.0)
  example = _MakeExample(ids, dataset.reader, crop, colours, num_classes=len(dataset.classes),
                         label=stream == 'labelled' or pseudo, oracle=oracle,
                         valid=stream == 'unlabelled', confidence=confidence)
  batches = (
      _ReshuffledIds(ids, order_seed)
      .random_map(example, seed=crop_seed)
      # After the random map, so that the randomness belongs to the number of the example.
      .pipe(_ProcessRows, rows=batch_size, process_index=process_index,
            process_count=process_count)
      .batch(batch_size, drop_remainder=True))
  return _open(batches[start_step:], threads=threads, prefetch=prefetch, workers=workers,
               skipped=skipped or skipping.Skipped(0))


class _ConfidentReader(Reader, Protocol):
  """A reader that knows how far to trust its masks."""

  def confidence(self, id: str) -> np.ndarray:
    """uint8 [H,W] in 255ths, of mask(id)."""
    ...


@dataclasses.dataclass(frozen=True)
class _MakeExample:
  """From an id to one element of a batch, of another id where the first cannot be read."""

  ids: Sequence[str]
  reader: Reader
  crop: RandomCrop
  colours: ColourJitter
  num_classes: int
  label: bool
  oracle: bool
  valid: bool
  confidence: bool = False

  def __call__(self, id: str, rng: np.random.Generator) -> Batch:
    failures = []
    for _ in range(_TRIES):
      try:
        image, label = self._read(id)
      except DataError as error:
        failures.append((id, str(error)))
        id = self.ids[int(rng.integers(len(self.ids)))]
        continue
      image, label, valid = self.crop(image, label, rng)
      if self.colours.strength:
        image = np.where(valid[..., None], self.colours(image, rng), image)
      element = {'image': image, skipping.FIELD: skipping.encode(failures)}
      if label is not None and self.confidence:
        label, element['confidence'] = np.moveaxis(label, -1, 0)
      if label is not None:
        element['label'] = label
      if self.valid:
        element['valid'] = valid
      return element
    raise DataError(f'{_TRIES} examples in a row could not be read, the last: {failures[-1][1]} '
                    'Is the folder still there? Start again when it is.')

  def _read(self, id: str) -> tuple[np.ndarray, np.ndarray | None]:
    image = self.reader.image(id)
    if not self.label and not self.oracle:
      return image, None
    unknown = np.full(image.shape[:2], IGNORE, np.uint8)
    if not self.reader.has_mask(id):
      return image, unknown
    try:
      return image, self._read_label(id, image.shape[:2])
    except DataError:
      if self.label:
        raise
      return image, unknown

  def _read_label(self, id: str, size: tuple[int, ...]) -> np.ndarray:
    label = self.reader.mask(id)
    if label.shape != size:
      raise DataError(f'The mask of {id!r} has height and width {label.shape}, its image {size}; '
                      'export the mask at the size of its image.')
    if unknown_ids(label, self.num_classes):
      raise DataError(f'The mask of {id!r} holds ids that are neither below {self.num_classes} nor '
                      f'{IGNORE} (ignore); it has changed since the run began, restore it.')
    if self.confidence:  # As a second channel it goes the way of the label.
      label = np.stack([label, cast(_ConfidentReader, self.reader).confidence(id)], -1)
    return label


class _ReshuffledIds(grain.MapDataset):
  """The ids without end, in an order of its own in every pass over them.

  Grain's shuffle of a short list walks a 16-bit cipher until it lands inside the list: 0.7 ms for
  each example of 46, a third of decoding it. It also permutes epoch e with seed + e, so that
  streams of near seeds are shifted copies of each other.
  """

  def __init__(self, ids: Sequence[str], seed: int):
    super().__init__()
    self._ids, self._seed = ids, seed

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index) -> Any:
    if isinstance(index, slice):
      return self.slice(index)
    epoch, position = divmod(index, len(self._ids))
    return self._ids[int(_permutation(self._seed, epoch, len(self._ids))[position])]


@functools.lru_cache(maxsize=16)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(length)


class _ProcessRows(grain.MapDataset):
  """A process's rows of every global batch, the batches cut from a sequence of examples."""

  def __init__(self, parent: grain.MapDataset, *, rows: int, process_index: int,
               process_count: int):
    super().__init__(parent)
    if not 0 <= process_index < process_count:
      raise ValueError(f'process_index {process_index} is not one of {process_count} processes; '
                       'use 0 to process_count - 1.')
    self._rows, self._process_index, self._process_count = rows, process_index, process_count

  def __len__(self) -> int:
    return len(self._parent) // self._process_count

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, self._rows)
    return self._parent[(batch * self._process_count + self._process_index) * self._rows + row]


def _stream_ids(dataset: Dataset, stream: str, label_sampling: str, seed: int) -> Sequence[str]:
  """The ids of one epoch of a stream."""
  if label_sampling not in LABEL_SAMPLINGS:
    raise ValueError(f'label_sampling {label_sampling!r} is unknown; use one of '
                     f'{", ".join(LABEL_SAMPLINGS)}.')
  ids = dataset.labelled if stream == 'labelled' else dataset.unlabelled
  if not ids:
    raise DataError(f'{dataset.name} has no {stream} images; add some, or train with a method that '
                    'needs none (sup_only needs no unlabelled ones).')
  if stream == 'labelled' and label_sampling == 'once':
    length = len(dataset.unlabelled or ids)
    repeated = np.tile(np.arange(len(ids)), -(-length // len(ids)))
    return [ids[i] for i in np.random.default_rng(seed).permutation(repeated)[:length]]
  return ids


def _open(examples: grain.MapDataset, *, threads: int, prefetch: int, workers: int,
          skipped: skipping.Skipped) -> Generator[Batch, None, None]:
  """An iterator whose close() leaves nothing of Grain's behind; at exit it closes by itself."""
  # Grain's default buffer of 500 holds gigabytes of crops; less than the threads idles some.
  read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
  streamed = examples.to_iter_dataset(read_options)
  if workers:
    if not flags.FLAGS.is_parsed():  # In a notebook or a plain script; Grain has flags of its own.
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
    streamed = streamed.mp_prefetch(options, worker_init_fn=_begin_worker)

  def read() -> Generator[Batch, None, None]:
    with contextlib.closing(iter(streamed)) as iterator, _naming_dead_workers():
      for batch in iterator:
        skipped.add(skipping.decode(batch.pop(skipping.FIELD)))
        yield batch

  stream = read()
  reference = weakref.ref(stream)
  # Left to the interpreter's end, Grain's iterators lose shared memory and print tracebacks.
  atexit.register(lambda: (alive := reference()) and alive.close())
  return stream


@contextlib.contextmanager
def _naming_dead_workers() -> Iterator[None]:
  """Grain notices a dead worker within a second or two, but says neither why nor what to do."""
  try:
    yield
  except RuntimeError as error:
    if 'terminated unexpectedly' not in str(error):
      raise
    raise WorkerError(
        f'A process that reads data ended ({str(error).partition(". ")[0]}); -9 is most often the '
        'system short of memory. Lower data.workers, data.prefetch or data.cache if so, and start '
        'again: the run goes on from its last checkpoint.') from error


def _begin_worker(*_: int) -> None:
  files.set_up_opencv()
  _end_with_parent()


def _end_with_parent() -> None:
  """Makes a worker end with the run; Grain's wait for ever where the run is killed.

  And not before it: a signal to the whole group, as Ctrl-C, is left to the run, which saves first.
  """
  def wait() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=wait, daemon=True).start()
