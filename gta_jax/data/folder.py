"""A user's folder: images/, masks/, classes.txt and splits/ become a Dataset."""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from gta_jax.data.class_list import read_classes, read_lines
from gta_jax.data.files import (
  IGNORE,
  IMAGE_SUFFIXES,
  DataError,
  FileReader,
  bits_of,
  check_ends,
  decode_pixels,
  open_image,
  read_bytes,
)
from gta_jax.data.folder_notes import OTHER_IMAGES, of_masks, of_turned, of_unlisted
from gta_jax.data.listing import id_of, readings, refuse_look_alikes, visible_files
from gta_jax.data.mask_code import MaskCode, ids_of_greys
from gta_jax.data.mask_palettes import of_palettes
from gta_jax.data.masks import MASK_SUFFIXES, decode_any_mask, mask_kind, values_of_mask
from gta_jax.data.pixel_range import PERCENTILES, percentile_range
from gta_jax.data.sources import Dataset, draw_covering

_THREADS = 8
_SAMPLE = 200  # images or masks that are decoded to learn how all of them are meant


@dataclasses.dataclass(frozen=True)
class FolderReader(FileReader):
  """Reads images of IMAGE_SUFFIXES and masks of MASK_SUFFIXES.

  Attributes:
    code: how the masks tell classes.
  """

  code: MaskCode = MaskCode()

  def mask(self, id: str) -> np.ndarray:
    return decode_any_mask(read_bytes(self.masks[id]), self.masks[id], self.code)

  def kind(self, id: str) -> tuple[str, int, int, int]:
    """(format, bits a channel, height, width) of an image, from its header."""
    with open_image(self.images[id], self.images[id]) as image:
      width, height = image.size
      return image.format or '', bits_of(image, self.images[id]), height, width

  def _mask_size(self, path: str) -> tuple[int, int]:
    check_ends(path)
    with open_image(path, path) as image:
      mask_kind(image, path)
      width, height = image.size
    return height, width


@dataclasses.dataclass(frozen=True)
class _Files:
  """The files below a folder.

  Attributes:
    read: id -> path, of those that can be read.
    others: id -> path, of those under another suffix.
  """

  read: Mapping[str, str]
  others: Mapping[str, str]


def read_folder(
  root: str | os.PathLike, *, labelled: str, seed: int = 0, lists: str | os.PathLike = '',
  pixel_range: Sequence[int] | None = None, drawn: Sequence[str] = (),
) -> Dataset:
  """Reads DIR/images, DIR/masks, DIR/classes.txt and DIR/splits.

  The roles come from splits/val.txt, splits/test.txt (may be missing) and from
  splits/LABELLED/labeled.txt and unlabeled.txt. Without unlabeled.txt every other image is
  unlabelled. An integer for which there is no such folder draws that many images (see
  `draw_covering`) from splits/train.txt, or from all other images with masks.

  Args:
    root: DIR.
    labelled: the folder below splits, or how many to draw.
    seed: for drawing only.
    lists: another folder in the place of DIR/splits.
    pixel_range: (black, white) of images of 16 bits, () where there are none; None looks for such
      among the training images and takes percentiles of their pixels.
    drawn: labelled images of an earlier draw. Those that still have an image and a mask are taken
      instead of drawing anew.
  Raises: DataError naming the missing or wrong file.
  """
  root, labelled = pathlib.Path(root), str(labelled)
  images = _find_files(root / 'images', IMAGE_SUFFIXES)
  masks = _find_files(root / 'masks', MASK_SUFFIXES)
  classes = read_classes(root / 'classes.txt')
  reader = FolderReader(
    images.read, {id: masks.read[id] for id in images.read if id in masks.read},
    tuple(pixel_range or ()), classes.code)
  reader, notes = _with_greys(reader, classes.names)
  notes += of_masks(images.read, masks.read, masks.others)
  notes += of_palettes(spread(list(reader.masks.values()), _SAMPLE), classes.code)
  splits = pathlib.Path(lists) if lists else root / 'splits'
  refuse_look_alikes(splits, ('train', 'val', 'test'))
  refuse_look_alikes(splits / labelled, ('labeled', 'unlabeled'))
  validation = _read_validation(splits / 'val.txt', images, reader)
  test = _read_optional_list(splits / 'test.txt', images)
  if test is None and lists:  # What is kept for the end is so whichever lists train.
    test = _read_optional_list(root / 'splits' / 'test.txt', images)
    notes += [f'{splits} has no test.txt: the {len(test)} images of {root / "splits"} stay '
              'out.'] if test else []
  test = test or ()
  elsewhere = {*validation, *test}
  train = _read_optional_list(splits / 'train.txt', images)
  unlabelled = None
  if (splits / labelled).is_dir() and pathlib.PurePath(labelled).name == labelled:
    chosen = _read_list(splits / labelled / 'labeled.txt', images)
    unlabelled = _read_optional_list(splits / labelled / 'unlabeled.txt', images)
  elif kept := tuple(id for id in drawn if id in reader.masks):
    chosen = kept
  else:
    candidates = [id for id in (sorted(images.read) if train is None else train)
                  if reader.has_mask(id) and id not in elsewhere]
    limits = [] if train is None else [f'Only the {len(train)} of {splits / "train.txt"} are drawn '
                                       'from; add ids there, or take it out.']
    chosen, note = _draw(
      labelled, candidates, reader, splits, classes=classes.names, seed=seed,
      notes=[*limits, *notes])
    notes.append(note)
  listed = {*elsewhere, *chosen, *(train or ()), *(unlabelled or ())}
  notes += of_unlisted(images.read, images.others, listed, reader.masks, used=unlabelled is None)
  if unlabelled is None:
    unlabelled = tuple(sorted(images.read.keys() - elsewhere - set(chosen)))
  for id in (*chosen, *validation):
    if not reader.has_mask(id) and id in masks.others:
      raise DataError(f'{masks.others[id]} is a mask under a suffix that is not read; convert it '
                      f'to one of {", ".join(MASK_SUFFIXES)} (not to .jpg, which changes ids).')
  notes += of_turned([
    images.read[id] for id in spread((*chosen, *validation), _SAMPLE) if id in reader.masks])
  if pixel_range is None:
    reader, more = _with_pixel_range(reader, (*chosen, *unlabelled))
    notes += more
  return Dataset(
    root.resolve().name, classes.names, classes.palette, chosen, unlabelled, validation, reader,
    '\n'.join(notes), test=test, pixel_range=reader.pixel_range)


def _draw(
  labelled: str, candidates: Sequence[str], reader: FolderReader, splits: pathlib.Path, *,
  classes: Sequence[str], seed: int, notes: Sequence[str],
) -> tuple[tuple[str, ...], str]:
  """Draws as many as `labelled` says; an error has the notes too, which may say why too few."""
  if not labelled.isdecimal():
    known = sorted(path.name for path in splits.iterdir() if path.is_dir())
    raise DataError(f'{splits / labelled} does not exist; name one of the splits there '
                    f'({", ".join(known) or "none yet"}) or the number of labelled images to draw.')
  try:
    return draw_covering(candidates, reader, count=int(labelled), classes=classes, seed=seed)
  except DataError as error:
    raise DataError(' '.join([str(error), *notes])) from error


def _with_greys(reader: FolderReader, classes: Sequence[str]) -> tuple[FolderReader, list[str]]:
  """The reader told what the grey levels of masks stand for, where these are no ids."""
  held: set[int] = set()
  for path in spread(list(reader.masks.values()), _SAMPLE):
    # `check` names what cannot be read where it matters.
    with contextlib.suppress(DataError):
      values, told_by_colour = values_of_mask(read_bytes(path), path, reader.code)
      if not told_by_colour:
        held.update(np.unique(values).tolist())
  greys = ids_of_greys(held, reader.code)
  if not greys:
    return reader, []
  code = dataclasses.replace(reader.code, greys=tuple(greys.items()))
  said = ', '.join(f'{grey} is {classes[greys[grey]]!r}' for grey in sorted(held)
                   if greys[grey] != IGNORE)
  return dataclasses.replace(reader, code=code), [
    f'The masks hold grey levels of classes, not ids: {said}.']


def _with_pixel_range(
  reader: FolderReader, ids: Sequence[str]
) -> tuple[FolderReader, list[str]]:
  """The reader with percentiles of the images of 16 bits among these."""
  def is_deep(id: str) -> bool:
    try:
      return reader.kind(id)[1] == 16
    except DataError:  # As above.
      return False

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    deep = [id for id, found in zip(ids, pool.map(is_deep, ids), strict=True) if found]
  if not deep:
    return reader, []
  sample = spread(sorted(deep), _SAMPLE)  # the same whichever of them have been drawn
  paths = {id: reader.images[id] for id in sample}
  black, white = percentile_range(
    lambda id: decode_pixels(read_bytes(paths[id]), paths[id]), sample)
  note = (f'{len(deep)} of {len(ids)} training images have 16 bits a channel: {black} to {white} '
          f'become 0 to 255 (percentiles {PERCENTILES[0]} and {PERCENTILES[1]} of {len(sample)} of '
          'them), in prediction as well.')
  if len(deep) < len(ids):
    note += ' The others have 8 bits and stay as they are; do they look alike?'
  return dataclasses.replace(reader, pixel_range=(black, white)), [note]


def spread(ids: Sequence[str], count: int) -> list[str]:
  """At most `count` of them, evenly spread."""
  count = min(count, len(ids))
  return [ids[i * len(ids) // count] for i in range(count)]


def _find_files(folder: pathlib.Path, suffixes: Sequence[str]) -> _Files:
  """By id, which is the path below the folder without its suffix."""
  if not folder.is_dir():
    raise DataError(f'{folder} does not exist; a data folder holds images/, masks/, classes.txt '
                    'and splits/val.txt.')
  found, others = {}, {}
  for path in visible_files(folder):
    if not path.suffix:
      continue
    id = id_of(path, folder)
    if path.suffix.lower() not in suffixes:
      others[id] = str(path)
      continue
    if id in found:
      raise DataError(f'{found[id]} and {path} have the same id {id!r}; remove or rename one.')
    found[id] = str(path)
  if not found:
    there = ', '.join(sorted({pathlib.Path(path).suffix.lower() for path in others.values()}))
    lossy = ' A JPEG changes ids: export masks anew.' if suffixes == MASK_SUFFIXES else ''
    raise DataError(f'{folder} holds no {" or ".join(suffixes)} files'
                    f'{f", but {len(others)} of {there}" if there else ""}; put them there.'
                    f'{lossy if ".jpg" in there or ".jpeg" in there else ""}')
  return _Files(found, {id: path for id, path in others.items() if id not in found})


def _read_validation(
  path: pathlib.Path, images: _Files, reader: FolderReader
) -> tuple[str, ...]:
  if not path.exists():
    masked = sorted(reader.masks)
    raise DataError(
      f'{path} does not exist; list there, one a line, the ids of images to score on, such as '
      f'{masked[-1] if masked else "ID"}, say a fifth of the {len(masked)} that have masks. They '
      'are never trained on.')
  return _read_list(path, images)


def _read_optional_list(path: pathlib.Path, images: _Files) -> tuple[str, ...] | None:
  return _read_list(path, images) if path.exists() else None


def _read_list(path: pathlib.Path, images: _Files) -> tuple[str, ...]:
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
