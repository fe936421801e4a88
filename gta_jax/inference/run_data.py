"""The data set of a finished run, with the images that the run itself was trained on."""

from collections.abc import Sequence
from pathlib import Path

import ml_collections

from gta_jax.data.sources import Dataset
from gta_jax.training import datasets, unseen
from gta_jax.training.workdir_files import read_ids


def make_dataset(
  workdir: Path, config: ml_collections.ConfigDict, own: ml_collections.ConfigDict,
  classes: Sequence[str],
) -> Dataset:
  """The data set of a config, to be seen as the run in `workdir` has seen its own.

  A split that the run has drawn is not drawn again, but read from WORKDIR/splits: with more masks,
  or fewer, the draw would be another one, or fail. Validation and test lists are the folder's.

  Args:
    workdir: of the run.
    config: of the data set.
    own: the run's config.
    classes: of the run.
  Raises: ValueError for other classes, DataError for data that cannot be used.
  """
  if config.data.source == 'folder' and config == own and not Path(config.data.dir).is_dir():
    raise ValueError(f'{config.data.dir}, the data of the run in {workdir}, does not exist (any '
                     f'more); say where it lies: --config folder:{config.data.split} '
                     '--config.data.dir=DIR.')
  config = config.copy_and_resolve_references()
  with config.unlocked():  # Images are turned into 8 bits as in training, whatever their set is.
    config.data.pixel_range = own.data.get('pixel_range', ())
  same_draw = unseen.is_own(config, own) and config.data.split == own.data.split
  drawn = workdir / 'splits' / own.data.split / 'labeled.txt'
  dataset = datasets.make_dataset(config, drawn=read_ids(drawn) if same_draw else ())
  if dataset.classes != tuple(classes):
    raise ValueError(
      f'{workdir} was trained for {", ".join(classes)}, the data set has '
      f'{", ".join(dataset.classes)}; use the same classes in the same order.')
  return dataset
