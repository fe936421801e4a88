"""Fields of a config that are None: they are found in the data, once, as a run begins."""

from pathlib import Path
from typing import Any

import ml_collections

from gta_jax.training.workdir_files import read_json

FIELDS = ('data.pixel_range',)


def unset(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """The fields among FIELDS that a config leaves to the data."""
  return tuple(name for name in FIELDS if _get(config, name) is None)


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
  for name in FIELDS:
    section, field = name.split('.')
    value = (begun.get(section) or {}).get(field)
    values[name] = tuple(value) if isinstance(value, list) else value
  return with_values(config, values)


def _get(config: ml_collections.ConfigDict, name: str) -> Any:
  section, field = name.split('.')
  return config[section].get(field, ())
