"""Unreadable examples of training: replaced, carried to the consumer, named once, and limited."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from gta_jax.data.files import DataError
from gta_jax.data.writing import replace_text

# A batch's field of this name holds what was skipped, bytes [B]; no batch leaves a stream with it.
FIELD = 'skipped'
# Of one example. Arrays of a fixed size travel between processes like the images beside them.
_BYTES = 2000
# File names cannot hold it.
_BETWEEN = '\0'


def encode(failures: Sequence[tuple[str, str]]) -> np.ndarray:
  """(id, reason) pairs of one example as an array of bytes; what is too long is cut off."""
  text = _BETWEEN.join(part for failure in failures for part in failure)
  return np.array(text.encode(errors='replace')[:_BYTES], f'S{_BYTES}')


def decode(field: np.ndarray) -> list[tuple[str, str]]:
  """The pairs of a whole batch's field."""
  pairs = []
  for example in field.tolist():
    parts = iter(example.decode(errors='ignore').split(_BETWEEN))
    pairs += [(id, reason) for id, reason in zip(parts, parts, strict=False)]
  return pairs


class Skipped:
  """The examples that could not be read, by id, and the limit on them.

  Attributes:
    reasons: id -> why it was skipped, over the whole run where `path` is given.
  """

  def __init__(self, limit: int, *, path: pathlib.Path | None = None,
               note: Callable[[str], None] = print):
    """Begins to count.

    Args:
      limit: different ids that may be skipped before the run fails; 0 refuses the first. Those of
        an interrupted run's earlier part do not count, since they may have been repaired.
      path: JSON file that keeps the reasons, for a run that goes on later; None keeps none.
      note: told of each id once.
    """
    self._limit, self._path, self._note = limit, path, note
    self._now: dict[str, str] = {}
    self.reasons: dict[str, str] = _read_reasons(path)

  def add(self, failures: Sequence[tuple[str, str]]) -> None:
    """Notes what is new. Raises DataError, with all names, beyond the limit."""
    new = {id: reason for id, reason in failures if id not in self._now}
    if not new:
      return
    self._now |= new
    self.reasons |= new
    self._write()
    if len(self._now) > self._limit:
      names = '\n'.join(f'  {id}: {reason}' for id, reason in self._now.items())
      raise DataError(
          f'{len(self._now)} images or masks could not be read, more than data.skip_limit='
          f'{self._limit} allows; repair them or take them out, then start again, or raise the '
          f'limit:\n{names}')
    for id, reason in new.items():
      self._note(f'skips {id!r} ({len(self._now)} of at most {self._limit}): {reason}')

  def _write(self) -> None:
    if not self._path:
      return
    # A full disk ends no run: the next one that is skipped writes them all.
    with contextlib.suppress(OSError):
      replace_text(self._path, json.dumps(self.reasons, indent=2) + '\n')


def _read_reasons(path: pathlib.Path | None) -> dict[str, str]:
  """What an earlier part of the run skipped; nothing where the file is missing or damaged."""
  try:
    found = json.loads(path.read_text()) if path else {}
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}
