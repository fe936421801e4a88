"""What the files of a run say of how it was begun and how far it has come."""

import shlex
from pathlib import Path
from typing import Any

import ml_collections

from gta_jax.training.snapshot import read_snapshot


def unfinished(workdir: Path, step: int) -> str:
  """A sentence about networks of a step where their run has not ended; '' where it has."""
  if (workdir / 'results.json').is_file():
    return ''
  steps = _snapshot(workdir).get('steps')
  return f'The networks are of step {step}{f" of {steps}" if steps else ""}: the run has not ended.'


def command_with_lists(
  workdir: Path, own: ml_collections.ConfigDict, *, data: str, lists: Path
) -> str:
  """The command that began a run, for another run on other lists of the same folder.

  Args:
    workdir: of the run; the other one's has the number of images behind its name.
    own: the run's config.
    data: the folder's place.
    lists: LISTS/SPLIT with labeled.txt.
  Returns: the command; where none was kept, one with the method alone, and a line that says so.
  """
  kept = shlex.split(_snapshot(workdir).get('command', ''))
  given = kept or [
    'gta-jax', '--config', f'folder:{own.data.split},method={own.method.name}']
  new = {'config.data.dir': data, 'config.data.split_lists': lists.parent,
         'workdir': workdir.parent / f'{workdir.resolve().name}-{lists.name}'}
  words, rest = [], iter(given)
  for word in rest:
    name, equals, value = word.partition('=')
    name = name.lstrip('-') if word.startswith('-') else ''
    if name not in (*new, 'config', 'config.data.split'):
      words.append(word)
      continue
    value = value if equals else next(rest, '')
    if name == 'config':
      file, _, choices = value.partition(':')
      others = [one for one in choices.split(',') if '=' in one and not one.startswith('split=')]
      words += ['--config', f'{file}:{",".join([lists.name, *others])}']
  command = shlex.join([*words, *(f'--{name}={value}' for name, value in new.items())])
  return command if kept else (
    f'{command}\nThe run has kept no command: add model= and the fields that were set for it.')


def _snapshot(workdir: Path) -> dict[str, Any]:
  """What report.json holds; nothing where it is damaged, as no result depends on it."""
  try:
    return read_snapshot(workdir)
  except ValueError:
    return {}
