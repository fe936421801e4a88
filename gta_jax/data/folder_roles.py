"""Which images of a folder train, with their mask or without, and which are scored."""

import pathlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

from gta_jax.data.class_list import read_lines
from gta_jax.data.files import IMAGE_SUFFIXES, DataError
from gta_jax.data.folder_notes import OTHER_IMAGES, of_unlisted
from gta_jax.data.listing import FolderFiles, readings, refuse_look_alikes
from gta_jax.data.sources import Reader, draw_covering


class Draw(NamedTuple):
  """How labelled images are drawn where no list names them.

  Attributes:
    reader: of all images and masks.
    classes: their names; a draw shows every class if it can.
    seed: of the draw.
    before: labelled images of an earlier draw. Those that still have an image and a mask are taken
      instead of drawing anew.
  """

  reader: Reader
  classes: Sequence[str]
  seed: int
  before: Sequence[str]


class Roles(NamedTuple):
  """Ids by role, disjoint, and what the user should read about them, as sentences."""

  labelled: tuple[str, ...]
  unlabelled: tuple[str, ...]
  validation: tuple[str, ...]
  test: tuple[str, ...]
  notes: list[str]


def read_roles(
  own: pathlib.Path, lists: pathlib.Path | None, labelled: str, images: FolderFiles, draw: Draw,
  notes: Sequence[str],
) -> Roles:
  """Reads the lists of a folder, and draws where there are none; see folder.read_folder.

  Args:
    own: DIR/splits.
    lists: another folder in its place; None for DIR/splits itself.
    labelled: the folder below it, or how many to draw.
    images: of the data folder.
    notes: sentences that may say why there are too few images to draw from; errors end with them.
  Raises: DataError naming the missing or wrong list.
  """
  splits = lists or own
  refuse_look_alikes(splits, ('train', 'val', 'test'))
  refuse_look_alikes(splits / labelled, ('labeled', 'unlabeled'))
  said: list[str] = []
  validation = _read_validation(splits / 'val.txt', images, draw.reader)
  test = _read_optional_list(splits / 'test.txt', images)
  if test is None and lists:  # What is kept for the end is so whichever lists train.
    test = _read_optional_list(own / 'test.txt', images)
    said += [f'{splits} has no test.txt: the {len(test)} images of {own} stay out.'] if test else []
  test = test or ()
  train = _read_optional_list(splits / 'train.txt', images)
  kept_out, unlabelled = {*validation, *test}, None
  if (splits / labelled).is_dir() and pathlib.PurePath(labelled).name == labelled:
    chosen = _read_list(splits / labelled / 'labeled.txt', images)
    unlabelled = _read_optional_list(splits / labelled / 'unlabeled.txt', images)
  elif kept := tuple(id for id in draw.before if draw.reader.has_mask(id)):
    chosen = kept
  else:
    chosen, note = _draw(labelled, images, draw, splits, train, kept_out, (*notes, *said))
    said.append(note)
  listed = {*kept_out, *chosen, *(train or ()), *(unlabelled or ())}
  masked = [id for id in images.read if draw.reader.has_mask(id)]
  said += of_unlisted(images.read, images.others, listed, masked, used=unlabelled is None)
  if unlabelled is None:
    unlabelled = tuple(sorted(images.read.keys() - kept_out - set(chosen)))
  return Roles(chosen, unlabelled, validation, test, said)


def _draw(
  labelled: str, images: FolderFiles, draw: Draw, splits: pathlib.Path,
  train: Sequence[str] | None, kept_out: Collection[str], notes: Sequence[str],
) -> tuple[tuple[str, ...], str]:
  """Draws as many as `labelled` says; an error has the notes too, which may say why too few."""
  if not labelled.isdecimal():
    known = sorted(path.name for path in splits.iterdir() if path.is_dir())
    raise DataError(f'{splits / labelled} does not exist; name one of the splits there '
                    f'({", ".join(known) or "none yet"}) or the number of labelled images to draw.')
  candidates = [id for id in (sorted(images.read) if train is None else train)
                if draw.reader.has_mask(id) and id not in kept_out]
  limits = [] if train is None else [
    f'Only the {len(train)} of {splits / "train.txt"} are drawn from; add ids there, or take it '
    'out.']
  try:
    return draw_covering(
      candidates, draw.reader, count=int(labelled), classes=draw.classes, seed=draw.seed)
  except DataError as error:
    raise DataError(' '.join([str(error), *limits, *notes])) from error


def _read_validation(
  path: pathlib.Path, images: FolderFiles, reader: Reader
) -> tuple[str, ...]:
  if not path.exists():
    masked = sorted(id for id in images.read if reader.has_mask(id))
    raise DataError(
      f'{path} does not exist; list there, one a line, the ids of images to score on, such as '
      f'{masked[-1] if masked else "ID"}, say a fifth of the {len(masked)} that have masks. They '
      'are never trained on.')
  return _read_list(path, images)


def _read_optional_list(path: pathlib.Path, images: FolderFiles) -> tuple[str, ...] | None:
  return _read_list(path, images) if path.exists() else None


def _read_list(path: pathlib.Path, images: FolderFiles) -> tuple[str, ...]:
  ids = {}
  for number, line in read_lines(path):
    # Looked up among the files found, so that no list can lead out of the folder.
    meant = readings(line, (*IMAGE_SUFFIXES, *OTHER_IMAGES))
    known = [id for id in meant if id in images.read]
    if not known:
      for id in meant:
        if id in images.others:
          raise DataError(f'{path}, line {number}: {images.others[id]} has a suffix that is not '
                          f'read; convert it to one of {", ".join(IMAGE_SUFFIXES)}.')
      raise DataError(f'{path}, line {number}: no image below images/ has the id {meant[-1]!r}'
                      f'{_likely(meant[-1], images.read)}; add the image or remove the line.')
    if known[0] in ids:
      raise DataError(f'{path}, line {number}: {known[0]!r} is on line {ids[known[0]]} already; '
                      'remove one.')
    ids[known[0]] = number
  return tuple(ids)


def _likely(id: str, images: Collection[str]) -> str:
  """The id that may be meant, as a part of a sentence: of the same name in another folder."""
  path = pathlib.PurePosixPath(id.replace('\\', '/'))
  found = sorted(image for image in images
                 if pathlib.PurePosixPath(image).name in (path.name, path.stem))
  return f' (there is {found[0]!r})' if found else ''
