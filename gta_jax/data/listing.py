"""Which files of a folder count, and what they are called."""

import collections
import dataclasses
import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from gta_jax.data.files import DataError

_LOOK_ALIKES = {'labelled': 'labeled', 'unlabelled': 'unlabeled', 'valid': 'val',
                'validation': 'val', 'testing': 'test', 'training': 'train'}


@dataclasses.dataclass(frozen=True)
class FolderFiles:
  """The files below a folder.

  Attributes:
    read: id -> path, of those that can be read.
    others: id -> path, of those under another suffix.
  """

  read: Mapping[str, str]
  others: Mapping[str, str]


def find_files(folder: Path, suffixes: Sequence[str]) -> FolderFiles:
  """By id, which is the path below the folder without its suffix.

  Raises: DataError where there is no such folder or nothing to read in it, or two files of one id.
  """
  if not folder.is_dir():
    raise DataError(f'{folder} does not exist; a data folder holds images/, masks/, classes.txt '
                    'and splits/val.txt.')
  found, others = {}, {}
  for path in visible_files(folder):
    if not path.suffix:
      continue
    id = id_of(path, folder)
    if path.suffix.lower() not in suffixes:
      others[id] = str(path)
      continue
    if id in found:
      raise DataError(f'{found[id]} and {path} have the same id {id!r}; remove or rename one.')
    found[id] = str(path)
  if not found:
    there = sorted({Path(path).suffix.lower() for path in others.values()})
    lossy = {'.jpg', '.jpeg'}.intersection(there)  # among images they would be read
    held = f', but {len(others)} of {", ".join(there)}' if there else ''
    raise DataError(f'{folder} holds no {" or ".join(suffixes)} files{held}; put them there.'
                    f'{" A JPEG changes ids: export masks anew." if lossy else ""}')
  return FolderFiles(found, {id: path for id, path in others.items() if id not in found})


def visible_files(folder: Path, *, recursive: bool = True) -> list[Path]:
  """The files of a folder, sorted; names with a dot in front are passed over with all below them.

  Such are copies that programs keep for themselves, as .ipynb_checkpoints/a-checkpoint.png. Links
  to folders are followed, but not to one that is searched already: its files would count twice.

  Args:
    folder: must exist; dots in its own path do not count.
    recursive: whether folders in it are searched.
  Raises: DataError for a name that is no UTF-8, as lists and tables of ids are.
  """
  found, seen, folders = [], set(), collections.deque([folder])
  while folders:
    place = folders.popleft()
    if (real := place.resolve()) in seen:
      continue
    seen.add(real)
    try:
      inside = sorted(path for path in place.iterdir() if not path.name.startswith('.'))
    except PermissionError as error:
      if place.name == 'lost+found':
        continue
      raise DataError(f'{place} cannot be looked into ({error.strerror}); permit it, or take it '
                      'out.') from error
    for path in inside:
      if not path.is_dir():
        found.append(path)
      elif recursive:  # Links last: of two ways to a folder the one without a link counts.
        (folders.append if path.is_symlink() else folders.appendleft)(path)
  found.sort()
  for path in found:
    try:
      str(path).encode()
    except UnicodeEncodeError as error:
      raise DataError(f'{os.fsencode(path)!r} has a name that is not UTF-8; rename it.') from error
  return found


def id_of(path: Path, folder: Path) -> str:
  """The path below the folder without its suffix, in Unicode's composed form (NFC).

  Archives made on a Mac hold decomposed names, while lists and masks of other programs do not.
  """
  return composed(path.relative_to(folder).with_suffix('').as_posix())


def composed(text: str) -> str:
  """Text in the form of ids."""
  return unicodedata.normalize('NFC', text)


def readings(line: str, suffixes: Sequence[str]) -> tuple[str, ...]:
  """What a line of a list may mean: an id, then one with a suffix behind it.

  Spaces around it are the id's, then they are none's: names of files may begin or end with some.
  """
  known = tuple(suffixes)
  found = [reading for text in (composed(line), composed(line.strip())) for reading in (
    (text, text[:text.rfind('.')]) if text.lower().endswith(known) else (text,))]
  return tuple(dict.fromkeys(found))


def refuse_look_alikes(folder: Path, names: Collection[str]) -> None:
  """Refuses lists that would not be read because of how they are called.

  Raises: DataError for one, such as unlabelled.txt, whose name is meant to be one of `names`.
  """
  for path in sorted(folder.glob('*.[tT][xX][tT]')) if folder.is_dir() else ():
    stem = path.stem.lower()
    meant = _LOOK_ALIKES.get(stem, stem)
    if meant in names and not (folder / f'{meant}.txt').exists():
      raise DataError(f'{path} is no name of a list and would not be read; call it {meant}.txt.')


def named(ids: Sequence[str | Path]) -> str:
  """The first of some ids or files, and how many more there are, for messages."""
  return f'{str(ids[0])!r}' + (f' (and {len(ids) - 1} more)' if len(ids) > 1 else '')
