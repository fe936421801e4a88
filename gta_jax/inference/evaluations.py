"""The evaluations of a run, evaluation.json: what is added leaves the others as they are."""

import json
from pathlib import Path
from typing import Any

from gta_jax.data.writing import replace_text
from gta_jax.training.workdir_files import read_json

# What two evaluations that are one have in common; they differ in their protocols.
_SAME = ('checkpoint', 'step', 'split', 'dataset', 'validation_sha256')


def read(workdir: Path) -> list[dict[str, Any]]:
  """The evaluations of a run, as finished.evaluate_run describes them, the newest last.

  Raises: ValueError where the file is damaged.
  """
  path = workdir / 'evaluation.json'
  if not path.is_file():
    return []
  found = read_json(path).get('evaluations')
  if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
    raise ValueError(f'{path} is damaged: it holds no list of evaluations; remove it and evaluate '
                     'again.')
  return found


def add(workdir: Path, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
  """Writes evaluation.json with one more evaluation, the last.

  Protocols of the same checkpoint and images are put together.
  """
  rest, protocols = [], {}
  for one in read(workdir):
    if all(one.get(key) == evaluation[key] for key in _SAME):
      protocols = one['protocols']
    else:
      rest.append(one)
  every = [*rest, evaluation | {'protocols': protocols | evaluation['protocols']}]
  replace_text(
    workdir / 'evaluation.json', json.dumps({'evaluations': every}, indent=2) + '\n')
  return every
