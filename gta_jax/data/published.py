"""The published data sets by name: from prepared records, or from the user's own folders."""

import os
from pathlib import Path

from gta_jax.data import cityscapes, records, voc
from gta_jax.data.files import DataError
from gta_jax.data.sources import Dataset
from gta_jax.data.splits import Catalogue, choose, labelled_list

_MODULES = {'voc': voc, 'cityscapes': cityscapes}
NAMES = tuple(_MODULES)


def store_folder(store: str) -> Path:
  """Where downloads and records lie: `store`, or GTA_JAX_DATA, or ~/gta_jax_data."""
  return Path(store or os.environ.get('GTA_JAX_DATA') or '~/gta_jax_data').expanduser()


def is_published(name: str, split: str, labelled_sha256: str) -> bool:
  """Whether ids with this fingerprint are the published labelled list of a split."""
  return _MODULES[name].LISTS.labelled.get(split) == labelled_sha256


def prepare(name: str, *, store: str = '', mirror: str = '') -> Path:
  """Downloads a data set and writes its records, where that has not been done.

  Raises: DataError, see records.prepare.
  """
  return records.prepare(_MODULES[name].Source(), store_folder(store), mirror=mirror)


def read(name: str, *, split: str, folder: str = '', store: str = '',
         split_source: str = 'published', split_lists: str = '', mirror: str = '',
         seed: int = 0) -> Dataset:
  """The data set `name` with one of its splits; prepares its records first if need be.

  Args:
    folder: the user's own unpacked folders, '' for prepared records.
    store: see store_folder.
    split, split_source, split_lists, mirror, seed: see splits.choose.
  """
  module = _MODULES[name]
  if not split:
    raise DataError(f'no split is named; write configs/{name}.py:SPLIT, one of: '
                    f'{", ".join(module.LISTS.labelled)}.')
  wanted = {'split': split, 'source': split_source, 'folder': split_lists,
            'store': store_folder(store), 'mirror': mirror}
  labelled_list(module.LISTS, **wanted)  # Before gigabytes: a split that is unknown, or no network.
  catalogue = (module.read_tree(folder) if folder
               else _read_records(module.Source(), prepare(name, store=store, mirror=mirror)))
  return choose(catalogue, module.LISTS, seed=seed, **wanted)


def _read_records(source: records.Source, folder: Path) -> Catalogue:
  splits, reader = records.read(source, folder)
  validation = splits.pop('validation', ())
  training = tuple(sorted(id for ids in splits.values() for id in ids))
  return Catalogue(source.name, source.classes, source.palette, training,
                   splits.get('clean', training), validation, reader, checked=True)
