"""Copies of images that are scored, under other names among those that train."""

import collections
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from gta_jax.data.files import FileReader, read_bytes
from gta_jax.data.sources import Dataset, of_each

_PART = 4096  # bytes from a file's middle, which tell most files of one size apart


def of_twins(dataset: Dataset) -> list[str]:
  """That files which are scored train as well, byte for byte, under another id; as a sentence.

  Only files of one size are opened, and only those that agree in their middle are read.
  """
  if not isinstance(dataset.reader, FileReader):
    return []
  paths = dataset.reader.images
  scored, training = dataset.validation + dataset.test, dataset.labelled + dataset.unlabelled
  sizes = {id: os.path.getsize(paths[id]) for id in (*scored, *training)}
  alike = _of_both(scored, training, sizes)
  middles = dict(zip(alike, of_each(lambda id: _middle(paths[id], sizes[id]), alike), strict=True))
  alike = _of_both(scored, training, middles)
  wholes = dict(zip(
    alike, of_each(lambda id: _digest(read_bytes(paths[id])), alike), strict=True))
  seen = {wholes[id]: id for id in reversed(training) if id in wholes}
  pairs = [(id, seen[wholes[id]]) for id in scored if wholes.get(id) in seen]
  if not pairs:
    return []
  (one, other), role = pairs[0], 'validation' if pairs[0][0] in dataset.validation else 'test'
  return [f'{len(pairs)} images that are scored train as well under another name: {role} image '
          f'{one!r} and {other!r} are the same file. Take one of each pair out of the lists.']


def _of_both(
  scored: Sequence[str], training: Sequence[str], values: Mapping[str, Any]
) -> list[str]:
  """The ids whose value is one of an image that is scored and of one that trains."""
  roles = collections.defaultdict(set)
  for role, ids in enumerate((scored, training)):
    for id in ids:
      if id in values:
        roles[values[id]].add(role)
  return [id for id in (*scored, *training) if id in values and len(roles[values[id]]) == 2]


def _middle(path: str, size: int) -> str:
  with open(path, 'rb') as file:
    file.seek(max(0, (size - _PART) // 2))
    return f'{size} {_digest(file.read(_PART))}'


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()
