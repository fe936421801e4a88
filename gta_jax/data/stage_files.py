"""Files that a stage of training makes of images before it begins: masks, confidences, scores.

    WORKDIR/stages/STAGE/KIND/ID.SUFFIX     complete or absent
    WORKDIR/stages/STAGE/KIND.json          whose they are; at the end also the SHA-256 of them all

Each file is put in its place whole, so that a preparation that was cut off goes on; what is
complete is checked and never made again. Several processes share the images and meet at the record,
which the first one writes: no process waits for another inside a program.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gta_jax.data.files import DataError
from gta_jax.data.listing import named
from gta_jax.data.splits import ids_sha256
from gta_jax.data.writing import replace_bytes, replace_text

Make = Callable[[Sequence[str], set[str]], Iterator[tuple[str, Mapping[str, bytes]]]]
_PAUSE = 0.5  # seconds between two looks at what other processes have done


@dataclasses.dataclass(frozen=True)
class StageFiles:
  """The files of one stage, of one or more kinds for each image.

  Attributes:
    folder: WORKDIR/stages/STAGE.
    kinds: folder of a kind -> suffix with its dot; the first one names the record.
    ids: of the images, in the order of their list.
  """

  folder: Path
  kinds: Mapping[str, str]
  ids: tuple[str, ...]

  def path(self, kind: str, id: str) -> Path:
    """Where the file of an image is; ids may hold slashes."""
    return self.folder / kind / f'{id}{self.kinds[kind]}'

  @property
  def record_path(self) -> Path:
    return self.folder / f'{next(iter(self.kinds))}.json'

  def fill(self, make: Make, *, source: str, part: tuple[int, int] = (0, 1)) -> None:
    """Makes what is missing, and returns when all files of all processes are there.

    Args:
      make: (ids, those of them that are done) -> (id, {kind: bytes}) of at least the others.
      source: digest of what the files are made with.
      part: (i, n): this is the i-th of n processes that all call this; each makes every n-th.
    Raises: DataError where the folder holds files of another list or source, or files that have
      changed since they were complete.
    """
    expected = {'ids': list(self.ids), 'ids_sha256': ids_sha256(self.ids), 'source': source}
    record = self._record()
    if record and any(record.get(name) != value for name, value in expected.items()):
      raise DataError(
        f'{self.record_path} is of other images or of another network than this run has now; '
        f'remove {self.folder}, so that it is made anew.')
    if not record.get('sha256'):
      if part[0] == 0:
        self.record_path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.record_path, json.dumps(expected, indent=2))
      self._make_missing(make, self.ids[part[0]::part[1]])
      self._finish(expected, first=part[0] == 0)
    elif part[0] == 0:
      self.check()

  def check(self) -> None:
    """Refuses files that are not all there or not as they were written.

    Raises: DataError with the first one.
    """
    record = self._record()
    missing = self._missing()
    complete = record.get('sha256') and record.get('ids_sha256') == ids_sha256(self.ids)
    if complete and not missing and record['sha256'] == self._digest():
      return
    what = f'{named(missing)} is missing' if missing else (
      'its files have changed since they were written' if complete else 'it is not complete')
    raise DataError(
      f'{self.folder} cannot be used, {what}. The stage needs what it began with: restore the '
      "folder; or remove it and the checkpoints after the one at the stage's start; or train anew "
      'in another --workdir.')

  def _make_missing(self, make: Make, ids: Sequence[str]) -> None:
    missing = set(self._missing(ids))
    done = {id for id in ids if not any(self.path(kind, id) in missing for kind in self.kinds)}
    if len(done) == len(ids):
      return
    for id, files in make(ids, done):
      for kind, content in files.items():
        path = self.path(kind, id)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, content)

  def _finish(self, expected: Mapping[str, Any], *, first: bool) -> None:
    """Waits for the other processes; the first one completes the record."""
    if first:
      while self._missing():
        time.sleep(_PAUSE)
      text = json.dumps({**expected, 'sha256': self._digest()}, indent=2)
      replace_text(self.record_path, text)
    while not self._record().get('sha256'):
      time.sleep(_PAUSE)

  def _missing(self, ids: Sequence[str] | None = None) -> list[Path]:
    paths = (self.path(kind, id) for id in (self.ids if ids is None else ids)
             for kind in self.kinds)
    return [path for path in paths if not (path.is_file() and path.stat().st_size)]

  def _digest(self) -> str:
    """SHA-256 of the files' SHA-256, in the order of ids and kinds."""
    whole = hashlib.sha256()
    for id in self.ids:
      for kind in self.kinds:
        whole.update(hashlib.sha256(self.path(kind, id).read_bytes()).digest())
    return whole.hexdigest()

  def _record(self) -> dict[str, Any]:
    """What the record says; nothing where there is none."""
    try:
      return json.loads(self.record_path.read_text(encoding='utf-8'))
    except FileNotFoundError:
      return {}
    except ValueError as error:
      raise DataError(f'{self.record_path} is damaged ({error}); remove {self.folder}, so that it '
                      'is made anew.') from error
