"""Masks as people have them: class ids, colours or grey levels of the classes, black and white; and
as they are written here: ids with the classes' colours as their palette."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from gta_jax.data.files import (
  IGNORE,
  DataError,
  bits_of,
  check_whole,
  damaged,
  open_image,
  white_is_zero,
)
from gta_jax.data.mask_code import (
  IGNORE_COLOUR,
  MaskCode,
  class_of_white,
  ids_of_colours,
  pack,
  unpack,
)
from gta_jax.data.mask_palettes import check_indices
from gta_jax.data.writing import replace_bytes

MASK_SUFFIXES = ('.png', '.bmp', '.tif', '.tiff')  # without loss, every one of them
_IDS, _COLOURS, _BITS = 'ids', 'colours', 'bits'
_BLACK, _WHITE = 0, 0xffffff  # packed
_NAMED = 8  # colours in a message
_NEEDED = ('a mask holds class ids, as grey values of 8 bits or palette indices, or the colours of '
           'classes.txt as RGB of 8 bits; export it so')


def decode_any_mask(data: bytes, path: str, code: MaskCode) -> np.ndarray:
  """Decodes a mask of MASK_SUFFIXES to class ids, uint8 [H,W], 255 = ignore.

  Args:
    data: the whole file. Palette images give their indices; RGB ones are looked up by colour, or
      read as grey where two classes are told by greys and they hold black and white alone.
    path: for messages.
    code: of the data set.
  Raises: DataError for damaged files, other kinds of pixels, and a colour that no class has.
  """
  values, told_by_colour = values_of_mask(data, path, code, by_greys=bool(code.greys))
  return values if told_by_colour or not code.greys else _ids_by_greys(values, path, code.greys)


def values_of_mask(
  data: bytes, path: str, code: MaskCode, *, by_greys: bool = True
) -> tuple[np.ndarray, bool]:
  """A mask before grey levels have a meaning; arguments and errors as decode_any_mask.

  by_greys: whether black and white of RGB may be grey levels of two classes.
  Returns: uint8 [H,W], and whether these are ids of classes, told by their colours; else they are
    grey values or indices.
  """
  check_whole(data, path)
  with open_image(io.BytesIO(data), path) as image:
    kind = mask_kind(image, path)
    try:
      pixels = np.asarray(image)
    except Exception as error:  # Pillow raises almost anything on damaged bytes.
      raise damaged(path) from error
    if image.mode == 'P':
      check_indices(pixels, image.getpalette() or [], path, code)
  if kind == _COLOURS:
    return _ids_of_colours(pixels, path, code, by_greys=by_greys)
  if kind == _BITS:
    check_bits(path, code)
    of_white = class_of_white(code.palette)
    return np.where(pixels, np.uint8(of_white), np.uint8(1 - of_white)), True
  return in_8_bits(pixels, path), False


def mask_kind(image: ImageFile.ImageFile, path: str) -> str:
  """What an opened mask holds. Raises DataError for what cannot tell classes."""
  bits = bits_of(image, path)
  if image.format == 'JPEG':
    raise DataError(f'{path} is a JPEG, which changes ids; export it as PNG.')
  if isinstance(image, TiffImageFile) and white_is_zero(image):
    raise DataError(f'{path} stores white as 0, so that programs read each other\'s ids the other '
                    'way round; save it with black as 0.')
  if bits == 16 and image.mode.startswith('I'):
    return _IDS
  if image.mode == '1':
    return _BITS
  # Fewer bits are fine with a palette; as grey values, decoders would stretch them to 0..255.
  stretched = image.mode == 'L' and _grey_bits(image) < 8
  if bits == 8 and not stretched:
    if image.mode in ('L', 'P'):
      return _IDS
    if image.mode in ('RGB', 'RGBA', 'RGBX'):
      return _COLOURS
  kind = f'grey with {_grey_bits(image)} bits' if stretched else f'{image.mode} with {bits} bits'
  raise DataError(f'{path} is {kind} a channel; {_NEEDED}.')


def _grey_bits(image: ImageFile.ImageFile) -> int:
  if isinstance(image, TiffImageFile):
    return max(image.tag_v2.get(258, (1,)))
  raw = str(image.tile[0][3]) if image.tile else ''
  return next((bits for bits in (1, 2, 4) if raw.endswith(f';{bits}')), 8)


def without_alpha(pixels: np.ndarray, path: str) -> np.ndarray:
  """RGB of RGB or RGBA, [H,W,3]. Raises DataError where a pixel is transparent."""
  if pixels.shape[-1] == 4 and (pixels[..., 3] != 255).any():
    raise DataError(f'{path} is transparent in places, which is no class; fill them.')
  return pixels[..., :3]


def in_8_bits(ids: np.ndarray, path: str) -> np.ndarray:
  """Ids [H,W] as uint8. Raises DataError for one above 255."""
  if ids.max(initial=0) > IGNORE:
    raise DataError(f'{path} holds {int(ids.max())}; {_NEEDED}.')
  return ids.astype(np.uint8)


def check_bits(path: str, code: MaskCode) -> None:
  """Raises DataError for a mask of one bit a pixel where there are not two classes.

  None at all are still to be found out.
  """
  if len(code.palette) not in (0, 2):
    raise DataError(f'{path} has one bit a pixel, which tells two classes, but there are '
                    f'{len(code.palette)}; {_NEEDED}.')


def _ids_by_greys(
  values: np.ndarray, path: str, greys: Sequence[tuple[int, int]]
) -> np.ndarray:
  known, table = np.zeros(IGNORE + 1, bool), np.zeros(IGNORE + 1, np.uint8)
  for grey, id in greys:
    known[grey], table[grey] = True, id
  if not known[values].all():
    held = ', '.join(str(grey) for grey, _ in sorted(greys))
    raise DataError(f'{path} holds {int(values[~known[values]][0])}, while the other masks hold '
                    f'{held} alone, the grey levels of classes; write all of them in one way.')
  return table[values]


def _ids_of_colours(
  pixels: np.ndarray, path: str, code: MaskCode, *, by_greys: bool
) -> tuple[np.ndarray, bool]:
  pixels = without_alpha(pixels, path)
  colours, classes = _sorted_colours(code)
  packed = pack(pixels)
  places = np.minimum(np.searchsorted(colours, packed), len(colours) - 1)
  unknown = colours[places] != packed
  if not unknown.any():
    return classes[places], True
  if by_greys and len(code.palette) == 2 and np.isin(packed, (_BLACK, _WHITE)).all():
    return pixels[..., 0], False
  row, column = (int(axis[0]) for axis in np.nonzero(unknown))
  others = np.unique(packed[unknown]).tolist()
  named = ', '.join(str(unpack(one)) for one in others[:_NAMED]) + ', ...' * (len(others) > _NAMED)
  raise DataError(
    f'{path} has the colour {tuple(pixels[row, column].tolist())} in row {row}, column {column} '
    f'(and {int(unknown.sum()) - 1} more pixels of unknown colours: {named}), which no class of '
    'classes.txt has; give one that colour, as in "road 128 64 128", or write a line '
    '"ignore R G B" for pixels without a label.')


@functools.lru_cache(maxsize=4)
def _sorted_colours(code: MaskCode) -> tuple[np.ndarray, np.ndarray]:
  """Packed colours in ascending order, and the id of each."""
  ids = ids_of_colours(code)
  order = sorted(ids)
  return np.array(order, np.int32), np.array([ids[packed] for packed in order], np.uint8)


def full_palette(palette: np.ndarray) -> np.ndarray:
  """uint8 [256,3]: the classes' colours, black for ids without a class, VOC's border for 255."""
  table = np.zeros((IGNORE + 1, 3), np.uint8)
  table[: len(palette)] = palette
  table[IGNORE] = IGNORE_COLOUR
  return table


def encode_mask(labels: np.ndarray, palette: np.ndarray) -> bytes:
  """uint8 [H,W] as a palette PNG: read as indices, it gives the ids back."""
  picture, file = Image.fromarray(labels), io.BytesIO()
  picture.putpalette(full_palette(palette).tobytes())
  picture.save(file, 'PNG')
  return file.getvalue()


def write_mask(path: Path, labels: np.ndarray, palette: np.ndarray) -> None:
  """Writes uint8 [H,W] as encode_mask makes it."""
  replace_bytes(path, encode_mask(labels, palette))
