"""The data set of a finished run, with the images that the run itself was trained on."""

from collections.abc import Sequence
from pathlib import Path

import ml_collections

from gta_jax.data.listing import named
from gta_jax.data.sources import Dataset
from gta_jax.training import datasets
from gta_jax.training.logs import note
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
  config = config.copy_and_resolve_references()
  with config.unlocked():  # Images are turned into 8 bits as in training, whatever their set is.
    config.data.pixel_range = own.data.get('pixel_range', ())
  same_draw = is_own(config, own) and config.data.split == own.data.split
  drawn = workdir / 'splits' / own.data.split / 'labeled.txt'
  dataset = datasets.make_dataset(config, drawn=read_ids(drawn) if same_draw else ())
  if dataset.classes != tuple(classes):
    raise ValueError(
      f'{workdir} was trained for {", ".join(classes)}, the data set has '
      f'{", ".join(dataset.classes)}; use the same classes in the same order.')
  return dataset


def is_own(config: ml_collections.ConfigDict, own: ml_collections.ConfigDict) -> bool:
  """Whether a config names the data of the run itself: elsewhere equal ids may be other images."""
  return (config.data.source, folder_of(config)) == (own.data.source, folder_of(own))


def folder_of(config: ml_collections.ConfigDict) -> Path | None:
  """Of the data, however it is spelt; None where the config names none."""
  return Path(config.data.dir).resolve() if config.data.dir else None


def check_unseen(
  workdir: Path, ids: Sequence[str], *, split: str, same_data: bool = True
) -> None:
  """Refuses to score images whose masks the run has learnt from, and tells of unlabelled ones.

  Args:
    workdir: of the run.
    ids: to be scored.
    split: their name, for messages.
    same_data: see is_own.
  Raises: ValueError naming one of the images.
  """
  def seen(role: str) -> list[str]:
    learnt = {id for path in (workdir / 'splits').glob(f'*/{role}.txt') for id in read_ids(path)}
    return sorted(learnt & set(ids))

  if labelled := seen('labeled'):
    text = (f'{named(labelled)} of the {len(ids)} {split} images '
            f'trained the run in {workdir} with a mask')
    if same_data:
      raise ValueError(f'{text}, so that its score says nothing; take it out of '
                       f'splits/{split}.txt, or train anew without it, in another --workdir.')
    note(f'{text}, if it is the same image: its score would say nothing.')
  if unlabelled := seen('unlabeled'):
    note(f'{named(unlabelled)} of the {len(ids)} {split} images '
         f'trained the run in {workdir} without a mask: scores of new images may be lower.')
