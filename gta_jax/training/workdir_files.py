"""Reading the JSON files of a run."""

import json
from pathlib import Path
from typing import Any


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
