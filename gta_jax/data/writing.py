"""Files that are whole or not there."""

import contextlib
import hashlib
import os
from pathlib import Path

from gta_jax.data.files import DataError

_LONGEST = 255  # bytes of a file's name


def replace_bytes(path: Path, data: bytes | memoryview, *, durable: bool = False) -> None:
  """Writes a file so that at any moment either the old or the new one is there, whole.

  Args:
    path: of the file.
    data: all that it holds.
    durable: whether that holds also where the machine stops; it costs a wait for the disk.
  Raises: OSError, which names the file.
  """
  # Of this process alone: a training and an evaluation may write one page at the same time.
  name, end = path.name, f'.{os.getpid()}.partial'
  if len(os.fsencode(name + end)) > _LONGEST:
    name = hashlib.sha256(os.fsencode(name)).hexdigest()
  partial = path.with_name(name + end)
  try:
    with partial.open('wb') as file:
      file.write(data)
      if durable:
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
  except OSError as error:
    error.filename = str(path)
    raise
  finally:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)


def check_writable(out: Path, flag: str = '--out') -> None:
  """Refuses a folder that is none, or can neither be written nor made.

  flag: that names it on a command line.
  Raises: DataError.
  """
  there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
  if not there.is_dir() or not os.access(there, os.W_OK):
    raise DataError(f'{out} cannot be written, as {there} is no folder or is read-only; give '
                    f'another {flag}.')


def is_of_data(folder: Path, data: Path) -> bool:
  """Whether results there would be taken for data: it is the data's folder, or one in it."""
  place, root = folder.resolve(), data.resolve()
  return place == root or any(
    place.is_relative_to(root / name) for name in ('images', 'masks', 'splits'))


def replace_text(path: Path, text: str) -> None:
  """replace_bytes of text in UTF-8, durable, as records are."""
  replace_bytes(path, text.encode(), durable=True)
