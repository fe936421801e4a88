"""The record of a prediction that has not ended, by which the same command goes on with it."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gta_jax.data.writing import replace_text
from gta_jax.inference.model import Model

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


def begin(out: Path, of: Mapping[str, Any]) -> None:
  """Keeps the settings of a prediction in its folder."""
  replace_text(out / _FILE, json.dumps(of))


def end(out: Path) -> None:
  """Removes the record."""
  (out / _FILE).unlink()


def done(
  out: Path, images: Mapping[str, Path], results: Mapping[str, Collection[Path]]
) -> set[str]:
  """The images whose results this prediction has written, of what they are now.

  Args:
    out: the folder, with a record.
    images: id -> file.
    results: id -> its files.
  """
  began = (out / _FILE).stat().st_mtime_ns

  def is_done(id: str) -> bool:
    since = max(began, images[id].stat().st_mtime_ns)
    return all(path.is_file() and path.stat().st_mtime_ns >= since for path in results[id])

  return {id for id in images if is_done(id)}
