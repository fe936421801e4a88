"""What a comparison of methods runs: systems, settings, budgets, and the digest of a run's config.

benchmarks/compare_methods.py says by which rules.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from cases import read_method_config

from gta_jax.data import inspection
from gta_jax.data.sources import check
from gta_jax.methods.registry import METHODS, make_method
from gta_jax.training import datasets, from_data
from gta_jax.training.config_rules import DEFAULTS

REFERENCE, SUPERVISED = 'gta', 'sup_only'
MARKS = {'pc2seg': ' (a reconstruction, no official code exists)'}
# What a run's scores do not depend on.
_OF_THE_MACHINE = ('data.store', 'data.mirror', 'data.threads', 'data.workers', 'data.prefetch',
                   'data.cache')
_inspected: dict[str, inspection.Inspection] = {}  # by digest: one folder serves all methods


class Task(NamedTuple):
  """A run: its method and seed, its resolved config's digest, and launch.py's flags for it."""

  method: str
  seed: int
  digest: str
  flags: tuple[str, ...]


def systems() -> list[str]:
  """The names of the registry that are systems of their own.

  Left out are rows of ablation tables, names that continue another name of the same class, as
  gta_confidence does, and what follows one code base where it differs from its paper.
  """
  def varies(name: str) -> bool:
    return name.endswith(('_released', '_torchsemiseg')) or any(
      name.startswith(f'{other}_') and METHODS[other].kind is METHODS[name].kind
      for other in METHODS)

  return [name for name, named in METHODS.items()
          if not named.note.startswith('Table') and not varies(name)]


def budget_fields(config: ml_collections.ConfigDict, budget: str) -> dict[str, float]:
  """The fields of a method's config that its budget changes."""
  if budget == 'steps':
    return {}
  factor = make_method(REFERENCE).cost / make_method(
    config.method.name, **{k: v for k, v in config.method.items() if k not in ('name', 'recipe')}
  ).cost
  fields = {'train.epochs': config.train.epochs, 'train.evaluate_epochs':
            config.train.evaluate_epochs}
  fields |= {f'method.{k}': v for k, v in config.method.items() if k.endswith('_epochs')}
  return {field: round(factor * value, 6) for field, value in fields.items()}


def with_its_data(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config with what a run finds in the data where it says None.

  So that budgets can scale it, and that a rule which changes makes another digest.
  """
  if not from_data.unset(config):
    return config
  dataset = datasets.make_dataset(config)
  check(dataset)
  key = inspection.digest(dataset)
  if key not in _inspected:
    _inspected[key] = inspection.inspect(dataset)
  return from_data.decide(config, dataset, _inspected[key])[0]


def digest(config: ml_collections.ConfigDict) -> str:
  """12 hexadecimal digits of what decides a run's scores; a data folder counts by its name.

  Fields that older configs lack count where they are set only, so that a new one changes no digest.
  """
  fields = {name: value for name, value in flat(config.to_dict()).items()
            if name not in _OF_THE_MACHINE and (
              name not in DEFAULTS or value != DEFAULTS[name])}
  fields['data.dir'] = Path(fields['data.dir']).name
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'data.crop': 64, ...} of nested dicts."""
  found = {}
  for name, value in tree.items():
    found |= flat(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
  return found


def make_task(
  config: str, budget: str, method: str, seed: int, fields: list[str]
) -> Task:
  """The run of a method with a seed.

  Args:
    config: NAME:SPLIT or FILE.py:SPLIT.
    fields: --config.FIELD=VALUE each, as for launch.py.
  """
  chosen = resolved(config, method, fields)
  file, _, split = _file_of(config).partition(':')
  changed = budget_fields(chosen, budget) | {'seed': seed}
  chosen.update_from_flattened_dict(changed)
  argument = ','.join(filter(None, [split, f'method={method}', 'recipe=scratch']))
  return Task(method, seed, digest(chosen), (
    f'--config={file}:{argument}', *fields,
    *(f'--config.{field}={value}' for field, value in changed.items())))


def resolved(config: str, method: str, fields: list[str]) -> ml_collections.ConfigDict:
  """The config of a method with what its run finds in the data; arguments as of make_task."""
  return with_its_data(read_method_config(_file_of(config), method, 'scratch', fields))


def make_folder(data: Path, out: Path, masks: int) -> Path:
  """A data folder with the images of `data` and a split of so many masks; one that is there stays.

  Raises: ValueError where no list of `data` is long enough, or the one that is there has others.
  """
  lists = [*map(read_list, (data / 'splits').glob('*/labeled.txt'))]
  enough = min((ids for ids in lists if len(ids) >= masks), key=len, default=None)
  if enough is None:
    raise ValueError(f'{data}/splits has no list of {masks} masks or more; give fewer --masks.')
  return link_folder(data, out.resolve() / 'data' / str(masks), {
    'val': read_list(data / 'splits' / 'val.txt'),
    f'{masks}/labeled': [enough[i * len(enough) // masks] for i in range(masks)]})


def link_folder(data: Path, folder: Path, lists: Mapping[str, Sequence[str]]) -> Path:
  """A data folder with the images and masks of `data` and other lists; one that is there stays.

  lists: name below splits/ -> ids.
  Raises: ValueError where the folder that is there has the images of another one.
  """
  if folder.is_dir():
    if (folder / 'images').resolve() != (data / 'images').resolve():
      raise ValueError(f'{folder} has the images of {(folder / "images").resolve().parent}, not of '
                       f'{data}; give another --out.')
    return folder
  begun = folder.with_name(f'{folder.name}.partial')  # Whole or not there, however this ends.
  shutil.rmtree(begun, ignore_errors=True)
  begun.mkdir(parents=True)
  for name in ('images', 'masks', 'classes.txt'):
    (begun / name).symlink_to((data / name).resolve())
  for name, ids in lists.items():
    write_list(begun / 'splits' / f'{name}.txt', ids)
  return begun.rename(folder)


def read_list(path: Path) -> list[str]:
  """The lines of a list."""
  lines = path.read_text(encoding='utf-8-sig').splitlines()
  return [line.strip() for line in lines if line.strip()]


def write_list(path: Path, ids: Sequence[str]) -> None:
  """Writes ids, one a line; its folders are made if missing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(f'{id}\n' for id in ids), encoding='utf-8')


def check_settings(path: Path, settings: dict[str, Any]) -> None:
  """Keeps what results are of; a later call that would mix others with them is refused.

  Args:
    path: of a file beside the results.
    settings: everything that decides them, as JSON.
  Raises: ValueError with what differs.
  """
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + '\n')
    return
  before = json.loads(path.read_text())
  differ = [f'{name}={settings.get(name)} instead of {before.get(name)}'
            for name in {**before, **settings} if before.get(name) != settings.get(name)]
  if differ:
    raise ValueError(f'{path} is of results with {", ".join(differ)}; give another --out.')


def check_equal_terms(config: str, methods: Sequence[str], fields: list[str]) -> None:
  """Refuses a config that gives methods more than options of their own; as of make_task.

  Raises: ValueError with the first field that two methods have otherwise, and the remedy.
  """
  terms = {method: {field: value for field, value in flat(
    resolved(config, method, fields).to_dict()).items() if not field.startswith('method.')}
    for method in methods}
  for method, own in terms.items():
    for field, value in terms[methods[0]].items():
      if own[field] != value:
        raise ValueError(
          f'{config} gives {methods[0]} {field}={value} and {method} {own[field]}, as they were '
          'published, so that no equal steps or equal compute follow; compare by configs/shapes.py '
          'or configs/folder.py, or set every such field, as in --config.train.epochs=80.')


def _file_of(config: str) -> str:
  """NAME:SPLIT or FILE.py:SPLIT as FILE.py:SPLIT."""
  name, _, split = config.partition(':')
  return f'{name if name.endswith(".py") else f"configs/{name}.py"}:{split}'
