"""Whether images that score a run are new to it, and to the run whose networks it began with."""

from collections.abc import Sequence
from pathlib import Path

import ml_collections

from gta_jax.data.listing import named
from gta_jax.data.writing import replace_text
from gta_jax.devices import sharding
from gta_jax.training.logs import note
from gta_jax.training.workdir_files import read_ids

_BEFORE = 'init_from'  # in a workdir, holds the lists of the run that it began with
_ROLES = {'labeled': 'with a mask', 'unlabeled': 'without a mask'}


def is_own(config: ml_collections.ConfigDict, own: ml_collections.ConfigDict) -> bool:
  """Whether a config names the data of the run itself: elsewhere equal ids may be other images."""
  return (config.data.source, folder_of(config)) == (own.data.source, folder_of(own))


def folder_of(config: ml_collections.ConfigDict) -> Path | None:
  """Of the data, however it is spelt; None where the config names none."""
  return Path(config.data.dir).resolve() if config.data.dir else None


def check_unseen(
  workdir: Path, ids: Sequence[str], *, split: str, same_data: bool = True
) -> None:
  """Refuses to score images whose masks a run has learnt from, and tells of unlabelled ones.

  Args:
    workdir: of the run.
    ids: to be scored.
    split: their name, for messages.
    same_data: see is_own.
  Raises: ValueError naming one of the images.
  """
  for role, how in _ROLES.items():
    if not (found := sorted(_learnt(workdir, role) & set(ids))):
      continue
    text = (f'{named(found)} of the {len(ids)} {split} images '
            f'trained the run in {workdir} {how}')
    if role == 'labeled' and same_data:
      raise ValueError(f'{text}, so that its score says nothing; take it out of '
                       f'splits/{split}.txt, or train anew without it, in another --workdir.')
    if sharding.is_first_process():
      note(f'{text}: scores of new images may be lower.' if role == 'unlabeled' else
           f'{text}, if it is the same image: its score would say nothing.')


def keep_lists_of(source: Path, workdir: Path) -> None:
  """Notes in a workdir what the networks that it begins with were trained on."""
  for role in _ROLES:
    if ids := _learnt(source, role):
      (workdir / _BEFORE).mkdir(exist_ok=True)
      replace_text(workdir / _BEFORE / f'{role}.txt', ''.join(f'{id}\n' for id in sorted(ids)))


def _learnt(workdir: Path, role: str) -> set[str]:
  """Ids that trained the networks of a run in this role, those before it included."""
  paths = [*(workdir / 'splits').glob(f'*/{role}.txt'), workdir / _BEFORE / f'{role}.txt']
  return {id for path in paths for id in read_ids(path)}
