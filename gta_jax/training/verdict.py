"""What the network and the unlabelled images have brought, as a sentence."""

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gta_jax.data.splits import ids_sha256
from gta_jax.data.writing import replace_bytes, replace_text
from gta_jax.evaluation.bootstrap import miou_difference
from gta_jax.evaluation.metrics import iou
from gta_jax.training.logs import note
from gta_jax.training.workdir_files import read_ids, read_json

_FILE = 'confusions.npz'
_OF_SEEDS = ('The intervals are over images alone: with another seed a training may end one or two '
             'points higher or lower, so compare several.')


class Scored(NamedTuple):
  """What is compared.

  name: in a sentence.
  ids: of validation images.
  confusions: int64 [N,K,K] in their order.
  labelled_sha256: of the ids whose masks it learnt from; '' if not known.
  """

  name: str
  ids: tuple[str, ...]
  confusions: np.ndarray
  labelled_sha256: str = ''

  @property
  def miou(self) -> float:
    """In [0,1]."""
    return float(iou(self.confusions.sum(0))[1])


def write_confusions(
  workdir: Path, ids: tuple[str, ...], by_network: dict[str, np.ndarray]
) -> None:
  """Keeps the counts of every validation image, int64 [N,K,K] by network."""
  arrays: dict[str, Any] = {'/ids': np.array(ids), **by_network}
  file = io.BytesIO()
  np.savez_compressed(file, **arrays)
  replace_bytes(workdir / _FILE, file.getbuffer())


def read_run(workdir: Path, *, name: str, network: str) -> Scored | None:
  """A run's network at its last step; None where its counts by image were not kept."""
  path = workdir / _FILE
  if not path.is_file():
    return None
  try:
    with np.load(path) as found:
      return Scored(
        name, tuple(found['/ids'].tolist()), found[network], _labelled_sha256(workdir))
  except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f'{path} is damaged ({error}); remove it.') from error


def _labelled_sha256(workdir: Path) -> str:
  lists = list((workdir / 'splits').glob('*/labeled.txt'))
  # A run that went on with another split has several, and learnt from all of them.
  return ids_sha256(read_ids(lists[0])) if len(lists) == 1 else ''


def read_baseline(workdir: Path) -> Scored | None:
  """The pixel classifier of --mode baseline; None where it was not run in this folder."""
  path = workdir / 'baseline.json'
  if not path.is_file():
    return None
  found = read_json(path)
  try:
    return Scored('the pixel classifier', tuple(found['ids']), np.array(found['confusions']),
                  found.get('labelled_sha256', ''))
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{path} is damaged ({error}); run --mode baseline again.') from error


def verdict(method: Scored, *others: Scored | None) -> str:
  """How far a method is from others on the same images and classes; others are left out.

  One that learnt from other masks is named and not compared: the masks would be the difference.

  Each difference has the 95 % interval of a paired bootstrap over the images, which says nothing of
  other seeds; that is said.
  """
  scored = int(method.confusions.any((1, 2)).sum())  # those with a labelled pixel
  parts = [f'On {scored} validation images {method.name} has mIoU {100 * method.miou:.1f}.']
  compared = False
  for other in others:
    if other is None or sorted(other.ids) != sorted(method.ids) or (
        other.confusions.shape != method.confusions.shape):
      continue
    if '' not in (of := {method.labelled_sha256, other.labelled_sha256}) and len(of) > 1:
      parts.append(f'It is not compared with {other.name}, which learnt from other masks; use one '
                   'split for both.')
      continue
    place = {id: i for i, id in enumerate(other.ids)}
    found = miou_difference(
      method.confusions, other.confusions[[place[id] for id in method.ids]])
    if not found.shown:
      says = 'no difference is shown'
    else:
      says = f'it is {"better" if found.value > 0 else "worse"} on images like these'
    interval = (f', 95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}'
                if math.isfinite(found.low) else ' on one image, which says nothing of others')
    parts.append(f'Against {other.name} ({100 * other.miou:.1f}) these are '
                 f'{100 * found.value:+.1f} points{interval}: {says}.')
    compared = True
  if compared:
    parts.append(_OF_SEEDS)
  return ' '.join(parts)


def over_baseline(workdir: Path, network: str) -> str:
  """The verdict on a run beside the pixel classifier of its folder; says how to get one if none.

  A damaged file is named and the verdict left out: a run does not end for want of it.
  """
  try:
    scored = read_run(workdir, name=f'the {network}', network=network)
    baseline = read_baseline(workdir)
  except ValueError as error:
    note(f'there is no verdict: {error}')
    return ''
  if scored is None:
    return ''
  if baseline is None:
    return (verdict(scored) + ' What a pixel classifier makes of the same masks is found by --mode '
            'baseline.')
  return verdict(scored, baseline)


def write_verdict(workdir: Path, said: str) -> None:
  """Puts a verdict into the results of a finished run, in the place of the one they held."""
  path = workdir / 'results.json'
  if said and path.is_file():
    replace_text(path, json.dumps(read_json(path) | {'verdict': said}, indent=2) + '\n')
