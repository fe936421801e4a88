"""A user's folder: images/, masks/, classes.txt and splits/ become a Dataset."""

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from gta_jax.data.class_list import read_classes
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
from gta_jax.data.folder_notes import of_bits, of_masks, of_turned
from gta_jax.data.folder_roles import Draw, read_roles
from gta_jax.data.listing import FolderFiles, find_files
from gta_jax.data.mask_code import MaskCode, ids_of_greys, values_in
from gta_jax.data.mask_palettes import of_palettes
from gta_jax.data.masks import MASK_SUFFIXES, decode_any_mask, mask_kind, values_of_mask
from gta_jax.data.pixel_range import PERCENTILES, percentile_range
from gta_jax.data.sources import Dataset, of_each, spread

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
  root = pathlib.Path(root)
  images = find_files(root / 'images', IMAGE_SUFFIXES)
  masks = find_files(root / 'masks', MASK_SUFFIXES)
  classes = read_classes(root / 'classes.txt')
  reader = FolderReader(
    images.read, {id: masks.read[id] for id in images.read if id in masks.read},
    tuple(pixel_range or ()), classes.code)
  sample = spread(list(reader.masks.values()), _SAMPLE)
  reader, notes = _with_greys(reader, classes.names, sample)
  notes += of_masks(images.read, masks.read, masks.others)
  notes += of_palettes(sample, classes.code) + of_bits(sample, classes.code, classes.names)
  draw = Draw(reader, classes.names, seed, drawn)
  roles = read_roles(
    root / 'splits', pathlib.Path(lists) if lists else None, str(labelled), images, draw, notes)
  notes += roles.notes
  scored = (*roles.labelled, *roles.validation)
  _refuse_unread_masks(scored, reader, masks)
  notes += of_turned([
    images.read[id] for id in spread(scored, _SAMPLE) if id in reader.masks])
  if pixel_range is None:
    reader, more = _with_pixel_range(reader, (*roles.labelled, *roles.unlabelled))
    notes += more
  return Dataset(
    root.resolve().name, classes.names, classes.palette, roles.labelled, roles.unlabelled,
    roles.validation, reader, '\n'.join(notes), test=roles.test, pixel_range=reader.pixel_range)


def _refuse_unread_masks(ids: Sequence[str], reader: FolderReader, masks: FolderFiles) -> None:
  """Refuses masks that are there, but under a suffix that is not read."""
  for id in ids:
    if not reader.has_mask(id) and id in masks.others:
      raise DataError(f'{masks.others[id]} is a mask under a suffix that is not read; convert it '
                      f'to one of {", ".join(MASK_SUFFIXES)} (not to .jpg, which changes ids).')


def _with_greys(
  reader: FolderReader, classes: Sequence[str], sample: Sequence[str]
) -> tuple[FolderReader, list[str]]:
  """The reader told what the grey levels of these masks stand for, where they are no ids."""
  def values_held(path: str) -> list[int]:
    try:
      values, told_by_colour = values_of_mask(read_bytes(path), path, reader.code)
    except DataError:  # `check` names what cannot be read where it matters.
      return []
    return [] if told_by_colour else values_in(values)

  if not reader.code.may_have_greys:
    return reader, []
  held = {value for values in of_each(values_held, sample) for value in values}
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
