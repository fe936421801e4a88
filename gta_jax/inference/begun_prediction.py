"""The record of a prediction that has not ended, by which the same command goes on with it."""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gta_jax.data.files import DataError
from gta_jax.data.locking import claim
from gta_jax.inference.model import Model
from gta_jax.training.logs import note

_FILE = '.prediction.json'


def settings(model: Model, network: str, **others: Any) -> dict[str, Any]:
  """All that results depend on but the images themselves; others: further values for JSON."""
  whole = hashlib.sha256(repr((
    jax.__version__, network, model.classes, model.crop, model.image_scale, model.pixel_range,
    model.batch_size, model.multiple)).encode())
  for leaf in jax.tree.leaves((model.variables[network], model.palette)):
    whole.update(np.asarray(leaf).tobytes())
  return {'model': whole.hexdigest(), **others}


def is_begun(out: Path, of: Mapping[str, Any]) -> bool:
  """Whether a prediction of these settings has begun to write to a folder, and has not ended."""
  try:
    return json.loads((out / _FILE).read_text(encoding='utf-8')) == of
  except (OSError, ValueError):
    return False


@contextlib.contextmanager
def recorded(out: Path, of: Mapping[str, Any], *, anew: bool) -> Iterator[None]:
  """Keeps the settings of a prediction in its folder as long as it has not ended without an error.

  Args:
    out: the folder.
    of: the settings.
    anew: whether they take the place of what is there.
  Raises: DataError where another process predicts into the folder.
  """
  path = out / _FILE
  with path.open('a+', encoding='utf-8') as file:
    try:
      refused = claim(file)
    except BlockingIOError as error:
      raise DataError(f'{out} is in use by another prediction; wait for it, stop it, or give '
                      'another --out.') from error
    if refused:  # As for a run, a prediction there is worth more than the guard.
      note(f'{path} cannot be locked ({refused}): start no second prediction into {out}')
    if anew:
      file.truncate(0)
      file.write(json.dumps(of))
      file.flush()
    yield
    path.unlink()


def done(
  out: Path, images: Mapping[str, Path], results: Mapping[str, Collection[Path]]
) -> set[str]:
  """The images of which this prediction has written all results, since they are what they are.

  Args:
    out: the folder, with a record.
    images: id -> file.
    results: id -> its files.
  """
  began = (out / _FILE).stat().st_mtime_ns

  def is_done(id: str) -> bool:
    try:
      image, link = images[id].stat(), images[id].lstat()
    except OSError:  # The reader says why.
      return False
    # ctime: of one that was moved there, or a link that was set anew
    since = max(began, image.st_mtime_ns, image.st_ctime_ns, link.st_ctime_ns)
    return all(path.is_file() and path.stat().st_mtime_ns >= since for path in results[id])

  return {id for id in images if is_done(id)}
