"""Fields of a config that are None: they are found in the data, once, as a run begins."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from gta_jax.config_base import FROM_DATA, OF_STRONG_VIEWS, of_strong_views
from gta_jax.data import inspection
from gta_jax.data.inspection import Inspection
from gta_jax.data.proposals import Machine, Proposal, propose
from gta_jax.data.sources import Dataset
from gta_jax.training import config_rules
from gta_jax.training.workdir_files import read_json


def unset(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """The fields among FROM_DATA that a config leaves to the data."""
  return tuple(name for name in FROM_DATA if config_rules.look_up(config, name) is None)


def with_values(
  config: ml_collections.ConfigDict, values: dict[str, Any]
) -> ml_collections.ConfigDict:
  """A copy with values in the place of None, by dotted name; of other fields nothing changes."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for name in unset(config):
      if values.get(name) is not None:
        section, field = name.split('.')
        config[section][field] = values[name]
  return config


def as_begun(config: ml_collections.ConfigDict, workdir: Path | None) -> ml_collections.ConfigDict:
  """The config with what the run in a folder, if there is one, found when it began.

  Raises: ValueError for a config.json that is damaged.
  """
  path = workdir / 'config.json' if workdir else None
  if not path or not path.is_file():
    return config
  begun = read_json(path)
  values = {}
  for name in FROM_DATA:
    section, field = name.split('.')
    value = (begun.get(section) or {}).get(field)
    values[name] = tuple(value) if isinstance(value, list) else value
  return with_values(config, values)


def kept(
  given: ml_collections.ConfigDict, config: ml_collections.ConfigDict, workdir: Path | None
) -> list[str]:
  """What a run keeps of its beginning though nobody says so now, where the data propose another.

  Args:
    given: the config as it was given.
    config: with what the run began with, see as_begun.
    workdir: of the run.
  Returns: a sentence, if there is such a field.
  """
  path = workdir / 'inspection.json' if workdir else None
  if not path or not path.is_file() or not unset(given):
    return []
  try:
    found, _ = of_json(read_json(path))
  except ValueError:  # A training inspects anew where it needs to.
    return []
  others = [
    f'{one.field}={config_rules.look_up(config, one.field)} (the data propose {one.value})'
    for one in proposals(found, given) if one.field in unset(given)
    and config_rules.look_up(config, one.field) not in (None, one.value)]
  return [f'This run began with {", ".join(others)} and keeps it; use another workdir for a run as '
          'the data propose it.'] if others else []


def inspect(dataset: Dataset, workdir: Path | None = None) -> Inspection:
  """Inspects a checked data set; an inspection of the same files in the folder is read instead."""
  path = workdir / 'inspection.json' if workdir else None
  if path and path.is_file():
    try:
      kept = json.loads(path.read_text(encoding='utf-8'))
      if kept['digest'] == inspection.digest(dataset):
        return of_json(kept)[0]
    except (KeyError, RecursionError, TypeError, ValueError):  # It is inspected anew.
      pass
  return inspection.inspect(dataset)


def proposals(found: Inspection, config: ml_collections.ConfigDict) -> list[Proposal]:
  """What to set the config's fields to, those that it has; on this machine."""
  machine = Machine(jax.default_backend() != 'cpu', jax.device_count())
  given = {f'{section}.{field}': value for section, fields in config.items()
           if isinstance(fields, ml_collections.ConfigDict) for field, value in fields.items()}
  published = of_strong_views(config.method.name)
  proposed = propose(found, machine, given | {
    f'published.{field}': value for field, value in published.items()})
  # A method without strong views has nothing to leave out of them.
  return [one for one in proposed if one.field in given and (
    one.field not in OF_STRONG_VIEWS or one.field.removeprefix('method.') in published)]


def decide(
  config: ml_collections.ConfigDict, dataset: Dataset, found: Inspection
) -> tuple[ml_collections.ConfigDict, list[Proposal]]:
  """The config with nothing left to the data, and the proposals that it took."""
  taken = [one for one in proposals(found, config) if one.field in unset(config)]
  values = {'data.pixel_range': dataset.pixel_range} | {one.field: one.value for one in taken}
  return with_values(config, values), taken


def to_json(found: Inspection, proposed: list[Proposal]) -> dict[str, Any]:
  """What inspection.json holds."""
  return {**dataclasses.asdict(found), 'proposals': [dataclasses.asdict(one) for one in proposed]}


def of_json(kept: Mapping[str, Any]) -> tuple[Inspection, list[Proposal]]:
  """What inspection.json holds as it was. Raises ValueError where it holds something else."""
  names = [field.name for field in dataclasses.fields(Inspection)]
  try:
    # An older version's has fewer.
    return (Inspection(**{name: kept[name] for name in names if name in kept}),
            [Proposal(**one) for one in kept['proposals']])
  except (KeyError, TypeError) as error:
    raise ValueError(
      f'inspection.json is damaged ({error!r}); run --mode inspect again.') from error
