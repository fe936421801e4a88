"""The JSON files of a run, and its lists of ids."""

import json
from pathlib import Path
from typing import Any

from gta_jax.data.sources import Dataset
from gta_jax.data.writing import replace_text


def read_json(path: Path) -> dict[str, Any]:
  """What a JSON file of a run holds; its top level is an object.

  Raises:
    ValueError: no run lies there, or the file is damaged.
  """
  if not path.is_file():
    raise ValueError(f'{path} does not exist; give the --workdir of a run.')
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is damaged ({error}); restore it, or train anew.') from error
  if not isinstance(found, dict):
    raise ValueError(f'{path} is damaged: it holds no object; restore it, or train anew.')
  return found


def lists_of(dataset: Dataset, split: str) -> dict[str, tuple[str, ...]]:
  """The ids of every role, by the name of their list below splits/."""
  return {f'{split}/labeled': dataset.labelled, f'{split}/unlabeled': dataset.unlabelled,
          'val': dataset.validation, 'test': dataset.test}


def write_lists(dataset: Dataset, folder: Path, *, split: str) -> None:
  """Writes the ids of every role below a folder, as data.split_lists reads them back."""
  (folder / split).mkdir(parents=True, exist_ok=True)
  for name, ids in lists_of(dataset, split).items():
    # An empty list of unlabelled images says that there are none; without one all others would be.
    if ids or name.endswith('/unlabeled'):
      replace_text(folder / f'{name}.txt', ''.join(f'{id}\n' for id in ids))


def read_ids(path: Path) -> tuple[str, ...]:
  """A list that write_lists wrote; none where it wrote none."""
  # Not splitlines, which also cuts at characters that file names may hold.
  return tuple(filter(None, path.read_bytes().decode().split('\n'))) if path.is_file() else ()


def tuples(value: Any) -> Any:
  """JSON with its lists as tuples."""
  if isinstance(value, dict):
    return {k: tuples(v) for k, v in value.items()}
  return tuple(map(tuples, value)) if isinstance(value, list) else value


def has_checkpoint(workdir: Path) -> bool:
  """Whether a run in this folder has saved anything."""
  return any((workdir / 'checkpoints').glob('*.json'))
