"""What a run began with, as its folder keeps it: config, classes and lists of ids.

A run goes on only with the same: steps, rates and the order of the images follow from them.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from gta_jax.data.writing import replace_text
from gta_jax.devices import sharding
from gta_jax.training import config_rules
from gta_jax.training.setup import Run, from_json, to_json
from gta_jax.training.unseen import check_unseen, is_own, keep_lists_of
from gta_jax.training.workdir_files import (
  has_checkpoint,
  lists_of,
  read_ids,
  read_json,
  tuples,
  write_lists,
)

# Fields that may differ when a run goes on: they change its speed or its log, not its result.
# The lists that data.split_lists gives are compared themselves.
FREE_FIELDS = ('data.dir', 'data.split_lists', 'data.store', 'data.mirror', 'data.threads',
               'data.workers', 'data.prefetch', 'data.cache', 'data.skip_limit', 'model.remat',
               'train.log_steps', 'train.checkpoint_steps', 'evaluate.batch', 'evaluate.pictures',
               'evaluate.worst', 'evaluate.protocols')
_REMEDY = 'Use another --workdir, {}, or --allow_config_change.'


def check_same(run: Run, workdir: Path, *, allow_config_change: bool) -> None:
  """Refuses to go on with another config or other data, and processes that would not train one run.

  Raises: ValueError with what has changed.
  """
  if has_checkpoint(workdir) and not allow_config_change:
    _check_config(run, workdir / 'config.json')
    _check_data(run, workdir)
  elif has_checkpoint(workdir):
    for split, ids in (('val', run.dataset.validation), ('test', run.dataset.test)):
      check_unseen(workdir, ids, split=split)
  trained = max((int(path.stem) for path in (workdir / 'checkpoints').glob('*.json')
                 if path.stem.isdigit()), default=0)
  if trained > run.total_steps:
    raise ValueError(
      f'{workdir} has been trained for {trained} steps, but train.epochs={run.config.train.epochs} '
      f'makes {run.total_steps}; raise train.epochs, or use another --workdir.')
  config = flatten(run.config.to_dict())
  sharding.check_agreement(
    # train.log_steps decides when processes meet, model.remat on the program they enter.
    config={k: v for k, v in config.items()
            if k not in FREE_FIELDS or k.startswith(('model.', 'train.'))},
    images=(run.dataset.labelled, run.dataset.unlabelled, run.dataset.validation),
    number_of_devices=jax.local_device_count(), jax_version=jax.__version__)


def _check_config(run: Run, path: Path) -> None:
  if not path.exists():
    return
  old, new = settings(read_json(path)), settings(run.config.to_dict())
  changed = [
    f'  {key}: {old.get(key)!r} -> {new.get(key)!r}'
    for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
  ]
  if changed:
    raise ValueError(f'{path} started this run with another config:\n' + '\n'.join(changed) +
                     '\n' + _REMEDY.format('the old values'))


def _check_data(run: Run, workdir: Path) -> None:
  """Refuses other classes, and lists of other ids or in another order; files that lack count not.

  The list of test images may change: no step and no choice depends on it.
  """
  path, split = workdir / 'dataset.json', run.config.data.split
  before = read_json(path).get('classes') if path.is_file() else None
  if before is not None and before != list(run.dataset.classes):
    raise ValueError(
      f'{path} started this run with the classes {", ".join(map(str, before))}; the data have '
      f'{", ".join(run.dataset.classes)} now. {_REMEDY.format("the old classes")}')
  if not (workdir / 'splits' / split).is_dir():
    return
  for name, now in lists_of(run.dataset, split).items():
    path = workdir / 'splits' / f'{name}.txt'
    before = read_ids(path)
    if name != 'test' and before != now:
      place = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b),
                   min(len(before), len(now)))
      one, other = (repr(ids[place]) if place < len(ids) else 'nothing' for ids in (before, now))
      lists = f'that list (--config.data.split_lists={workdir / "splits"})'
      raise ValueError(
        f'{path} started this run with {len(before)} images, the data have {len(now)} now; the '
        f'first that differs is number {place + 1}, {one} -> {other}. {_REMEDY.format(lists)}')


def write_same(run: Run, workdir: Path) -> None:
  """Writes config.json, dataset.json and the lists of ids."""
  if not sharding.is_first_process():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  replace_text(workdir / 'config.json', to_json(_anywhere(run.config)))
  dataset = {'name': run.dataset.name, 'classes': list(run.dataset.classes),
             'palette': np.asarray(run.dataset.palette).tolist(), 'note': run.dataset.note}
  replace_text(workdir / 'dataset.json', json.dumps(dataset, indent=2) + '\n')
  write_lists(run.dataset, workdir / 'splits', split=run.config.data.split)
  source = Path(run.config.train.init_from or '.') / 'config.json'
  if run.config.train.init_from and source.is_file() and is_own(from_json(source), run.config):
    keep_lists_of(source.parent, workdir)
  if run.inspection:
    replace_text(workdir / 'inspection.json', json.dumps(run.inspection, indent=2) + '\n')


def _anywhere(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy whose folders are found from any current folder, and none of the same name instead."""
  config = config.copy_and_resolve_references()
  config.train.init_from = _absolute(config.train.init_from)
  for field in ('dir', 'split_lists', 'store'):
    config.data[field] = _absolute(config.data[field])
  return config


def _absolute(path: str) -> str:
  return str(Path(path).absolute()) if path else path


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a config that decide a run's result, by dotted name.

  Args:
    config: as a tree, of a file or a ConfigDict; fields that it lacks have their defaults.
  """
  fields = tuples(config_rules.DEFAULTS | flatten(config))
  # As a run's file has it, and as a command spells it from wherever it is given.
  fields['train.init_from'] = os.path.realpath(of) if (of := fields['train.init_from']) else of
  return {name: value for name, value in fields.items() if name not in FREE_FIELDS}


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """A tree of mappings as one: {'a': {'b': 1}} -> {'a.b': 1}."""
  flat = {}
  for key, value in tree.items():
    inner = isinstance(value, Mapping)
    flat |= flatten(value, f'{prefix}{key}.') if inner else {f'{prefix}{key}': value}
  return flat
