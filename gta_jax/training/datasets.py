"""The data set that a config names."""

from collections.abc import Sequence

import ml_collections

from gta_jax.data import folder, published, shapes, sources
from gta_jax.data.sources import Dataset
from gta_jax.data.twins import of_twins
from gta_jax.training import config_rules


def make_dataset(config: ml_collections.ConfigDict, *, drawn: Sequence[str] = ()) -> Dataset:
  """The data set that the config names, not yet checked; drawn: of a folder, see read_folder."""
  data = config_rules.complete(config).data
  if data.split_source != 'published' and data.source not in published.NAMES:
    raise ValueError(
      f'data.split_source={data.split_source} has no effect where data.source={data.source!r}; '
      'leave it out. A folder draws as many images as its split says where no list has that name.')
  if data.source == 'shapes':
    if not (data.split.isdecimal() and len(data.split) <= 6):
      raise ValueError(
        f'split {data.split[:100]!r} is not a number below 1,000,000; use configs/shapes.py:24.')
    if missing := [name for name in ('unlabelled', 'validation', 'size') if name not in data]:
      raise ValueError(f'data.source=shapes needs data.{missing[0]} too, which this config lacks; '
                       'use configs/shapes.py.')
    return shapes.make_shapes(
      labelled=int(data.split), unlabelled=data.unlabelled, validation=data.validation,
      size=data.size)
  if data.source == 'folder':
    if not data.dir:
      raise ValueError('data.dir is empty; add --config.data.dir=DIR, the folder with images/.')
    if not data.split:
      raise ValueError(
        'no split is named; write configs/folder.py:46 for splits/46/labeled.txt, or any number '
        'of labelled images to be drawn.')
    return folder.read_folder(
      data.dir, labelled=data.split, seed=config.seed, lists=data.split_lists,
      pixel_range=data.pixel_range, drawn=drawn)
  if data.source in published.NAMES:
    return published.read(
      data.source, split=data.split, folder=data.dir, store=data.store,
      split_source=data.split_source, split_lists=data.split_lists, mirror=data.mirror,
      seed=config.seed)
  raise ValueError(
    f'data.source={data.source!r} is unknown; use one of: folder, shapes, '
    f'{", ".join(published.NAMES)}.')


def checked_dataset(config: ml_collections.ConfigDict) -> tuple[Dataset, list[str]]:
  """The config's data set, and what is odd about its files."""
  dataset = make_dataset(config)
  return dataset, [*sources.check_classes(dataset, sources.check(dataset)), *of_twins(dataset)]
