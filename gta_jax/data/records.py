"""Prepared records: writing them once, completely, and reading single examples by id.

A prepared data set is a folder STORE/NAME/VERSION that TFDS wrote under another name and renamed,
and an index beside its shards. Without an index it is not taken for whole.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gta_jax.data.downloads import locked
from gta_jax.data.files import DataError, decode_image, decode_mask, image_size

VERSION = '1.0.0'
_INDEX = 'index.json'


@dataclasses.dataclass(frozen=True)
class Example:
  """One image as it is stored: the bytes of its JPEG or PNG, and of a PNG with class ids."""

  id: str
  image: bytes
  label: bytes


class Source(Protocol):
  """Where the examples of a data set come from."""

  name: str
  classes: tuple[str, ...]
  palette: np.ndarray

  def archives(self, folder: Path, *, mirror: str = '') -> tuple[Path, ...]:
    """Paths of the archives in `folder`; DataError where they cannot be had."""
    ...

  def examples(self, *archives: Path) -> dict[str, Iterator[Example]]:
    """The examples by split; one of the splits is 'validation'."""
    ...


@dataclasses.dataclass(frozen=True)
class RecordReader:
  """Reads examples of prepared records by id; see sources.Reader.

  Attributes:
    folder: STORE/NAME/VERSION.
    entries: id -> (split, position in it, height, width).
  """

  folder: str
  entries: Mapping[str, tuple[str, int, int, int]] = dataclasses.field(repr=False)

  def image(self, id: str) -> np.ndarray:
    return decode_image(self._record(id)['image'], f'{self.folder}: {id}')

  def mask(self, id: str) -> np.ndarray:
    return decode_mask(self._record(id)['label'], f'{self.folder}: {id}')

  def has_mask(self, id: str) -> bool:
    return id in self.entries

  def size(self, id: str) -> tuple[int, int]:
    _, _, height, width = self.entries[id]
    return height, width

  def _record(self, id: str) -> dict[str, bytes]:
    split, position, _, _ = self.entries[id]
    try:
      return _source(self.folder, split, os.getpid())[position]
    except Exception as error:  # array_record raises almost anything on damaged bytes.
      raise DataError(f'{self.folder}: the record of {id!r} cannot be read ({error}); remove the '
                      'folder and prepare it again.') from error


_opening = threading.Lock()


def _source(folder: str, split: str, process: int) -> Any:
  with _opening:  # Threads of one process share its open files; a child has to open its own.
    return _open_source(folder, split, process)


@functools.lru_cache(maxsize=16)
def _open_source(folder: str, split: str, process: int) -> Any:
  del process
  from gta_jax.data import builders  # noqa: PLC0415  TFDS takes a second to import.

  return builders.open_split(Path(folder), split)


def prepare(source: Source, store: Path, *, mirror: str = '') -> Path:
  """Returns the folder of a source's records, after getting and writing them if need be.

  Safe to interrupt and repeat, and for several processes at once: one works, the others wait.

  Raises: DataError for an archive that cannot be had or is damaged, or a lack of room.
  """
  folder = store / source.name / VERSION
  if (folder / _INDEX).exists():  # Perhaps in a store that others may only read.
    return folder
  with _errors(store), locked(store):
    if not (folder / 'dataset_info.json').exists():
      archives = source.archives(store / 'downloads', mirror=mirror)
      from gta_jax.data import builders  # noqa: PLC0415

      for left in folder.parent.glob('incomplete.*'):  # by a process that was killed
        shutil.rmtree(left)
      builders.write(source, archives, store)
    if not (folder / _INDEX).exists():
      _write_index(folder)
  return folder


@contextlib.contextmanager
def _errors(store: Path) -> Iterator[None]:
  try:
    yield
  except (OSError, RuntimeError) as error:  # ArrayRecord reports a full disk as the latter.
    raise DataError(f'{store} cannot be written: make room or make it writable, and try again, or '
                    f'name another folder as data.store ({error}).') from error


def read(source: Source, folder: Path) -> tuple[dict[str, tuple[str, ...]], RecordReader]:
  """The ids of every split, sorted, and their reader.

  Raises: DataError where shards do not have the size that they were written with.
  """
  entries = _read_index(folder)
  splits = {}
  for id, (split, *_) in sorted(entries.items()):
    splits.setdefault(split, []).append(id)
  return {split: tuple(ids) for split, ids in splits.items()}, RecordReader(str(folder), entries)


def _shards(folder: Path) -> dict[str, int]:
  return {path.name: path.stat().st_size for path in sorted(folder.glob('*.array_record-*'))}


def _write_index(folder: Path) -> None:
  """Reads every record once and writes where each id is and how large its image."""
  from gta_jax.data import builders  # noqa: PLC0415

  entries = {}
  for split in builders.split_names(folder):
    source = builders.open_split(folder, split)
    for position in range(len(source)):
      record = source[position]
      size = image_size(io.BytesIO(record['image']), record['id'].decode())
      entries[record['id'].decode()] = (split, position, *size)
  temporary = folder / f'{_INDEX}.tmp'
  temporary.write_text(json.dumps({'entries': entries, 'shards': _shards(folder)}))
  temporary.replace(folder / _INDEX)


def _read_index(folder: Path) -> dict[str, tuple[str, int, int, int]]:
  try:
    index = json.loads((folder / _INDEX).read_text())
    entries, shards = index['entries'], index['shards']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DataError(f'{folder / _INDEX} is damaged; remove it and start again.') from error
  if _shards(folder) != shards:
    raise DataError(f'{folder} is not as it was prepared: a shard is missing or has another size; '
                    'remove the folder and prepare it again.')
  return {id: tuple(entry) for id, entry in entries.items()}
