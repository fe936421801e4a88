"""Image and mask files: decoding them, and telling cheaply whether they are whole."""

import contextlib
import dataclasses
import io
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from gta_jax.data.file_ends import JPEG, PNG, TAIL, is_whole, seems_whole
from gta_jax.data.pixel_range import scale_to_8_bits

IGNORE = 255
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
# 180 megapixels, 540 MB as RGB: a small file whose header claims more is no photograph.
MAX_PIXELS = 180_000_000
# First bytes -> Pillow's class. Image.open would apply a limit of its own, which warns from half of
# ours on, without a remedy. That limit is a global of the whole process, and the user's. (WebP's
# class refuses above twice the limit all the same, and TIFF's asks for it when it decodes.)
_FORMATS: dict[bytes, type[ImageFile.ImageFile]] = {
  JPEG: JpegImageFile, PNG: PngImageFile, b'BM': BmpImageFile, b'RIFF': WebPImageFile,
  **dict.fromkeys((b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'), TiffImageFile)}
_MODES_OF_8_BITS = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')
# Of TIFF's tags.
_BITS, _SAMPLE_FORMAT, _ORIENTATION, _SUBFILE, _PHOTOMETRIC = 258, 339, 274, 254, 262
_PLANES, _SAMPLES = 284, 277
_REDUCED = 1  # in _SUBFILE: a smaller copy of another page
_CONVERT = 'convert it to grey or RGB of 8 or 16 bits a channel.'
_UNKNOWN_PIXELS = ('pixels that are not read: floating-point or signed numbers, another number of '
                   'bits than 8 or 16, or channels of a TIFF that it does not call RGB (GDAL\'s '
                   f'default; gdal_translate -co PHOTOMETRIC=RGB does); {_CONVERT}')


class DataError(ValueError):
  """Data that cannot be used; the message names the file, the rule and the remedy."""


@dataclasses.dataclass(frozen=True)
class FileReader:
  """Reads images of IMAGE_SUFFIXES, and PNG masks.

  Attributes:
    images: id -> path of the image.
    masks: id -> path of the mask, for ids that have one.
    pixel_range: (black, white) of images of 16 bits; () refuses them.
  """

  images: Mapping[str, str]
  masks: Mapping[str, str]
  pixel_range: tuple[int, ...] = ()

  def image(self, id: str) -> np.ndarray:
    return decode_image(read_bytes(self.images[id]), self.images[id], self.pixel_range)

  def mask(self, id: str) -> np.ndarray:
    return decode_mask(read_bytes(self.masks[id]), self.masks[id])

  def has_mask(self, id: str) -> bool:
    return id in self.masks

  def size(self, id: str) -> tuple[int, int]:
    path = self.images[id]
    check_ends(path)
    with open_image(path, path) as image:
      _is_deep(image, path, self.pixel_range)
      size = image.height, image.width
    if id in self.masks:
      check_mask_size(self._mask_size(self.masks[id]), size, self.masks[id], path)
    return size

  def _mask_size(self, path: str) -> tuple[int, int]:
    """(H,W) of a mask, from its header. Raises DataError for what is seen without decoding."""
    size = _png_mask_size(_read_ends(path)[0], path)
    check_ends(path)
    return size


def check_mask_size(
  mask_size: tuple[int, int], size: tuple[int, int], mask: str, image: str
) -> None:
  """Raises DataError, with these names of both, where a mask has not its image's (H,W)."""
  if mask_size != size:
    remedy = 'export the mask at the size of its image'
    if mask_size == size[::-1]:
      remedy = ('if EXIF data turn the image, which is not followed here, save it upright; else '
                f'{remedy}')
    raise DataError(f'{mask} has height and width {mask_size}, but {image} has {size}; {remedy}.')


def set_up_opencv() -> None:
  """Lets OpenCV compute in the thread that calls it and tell errors alone, in the whole process.

  For commands, and processes of their own, that read in threads: these share the cores, and
  OpenCV's pool on top of them only costs switches. Results are the same. Of a TIFF with tags that
  it does not know it would warn each time that one is decoded.
  """
  cv2.setNumThreads(0)
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)


@contextlib.contextmanager
def open_image(
  file: str | os.PathLike | BinaryIO, path: str | os.PathLike
) -> Iterator[ImageFile.ImageFile]:
  """Opens a JPEG, PNG, BMP, TIFF or WebP in Pillow; nothing but the header is decoded yet.

  Args:
    file: a path, or the bytes as a stream.
    path: for messages.
  Raises: DataError for other and for damaged files, and above MAX_PIXELS.
  """
  with contextlib.ExitStack() as stack:
    if isinstance(file, (str, os.PathLike)):
      try:
        file = stack.enter_context(pathlib.Path(file).open('rb'))
      except OSError as error:
        raise DataError(f'{path} cannot be read ({error.strerror}); restore it.') from error
    image = _opened(file, path)
    width, height = image.size
    if width * height > MAX_PIXELS:
      raise DataError(f'{path} claims {height} x {width} pixels, more than {MAX_PIXELS}; cut it '
                      'into tiles, or take it out if that is not its size.')
    yield image


def _opened(stream: BinaryIO, path: str | os.PathLike) -> ImageFile.ImageFile:
  try:
    start = stream.read(30)
    stream.seek(0)
    _check_format(start, path)
    image = next(of for magic, of in _FORMATS.items() if start.startswith(magic))(stream)
    if isinstance(image, TiffImageFile):
      _check_tiff(image, path)
    if isinstance(image, BmpImageFile):
      _check_bmp(image, start, path)
  except DataError:
    raise
  except SyntaxError as error:
    if 'unknown pixel mode' in str(error):
      raise DataError(f'{path} has {_UNKNOWN_PIXELS}') from error
    raise damaged(path) from error
  except Image.DecompressionBombError as error:
    # WebP. Twice Pillow's limit is one per cent below ours, unless it was changed.
    raise DataError(f'{path}: {error} Cut it into tiles, or take it out.') from error
  except Exception as error:  # Pillow raises almost anything on damaged bytes.
    raise damaged(path) from error
  return image


def image_size(file: str | os.PathLike | BinaryIO, path: str | os.PathLike) -> tuple[int, int]:
  """(H,W) of an image from its header alone; arguments and errors as open_image."""
  with open_image(file, path) as image:
    width, height = image.size
  return height, width


def decode_image(
  data: bytes, path: str, pixel_range: Sequence[int] = ()
) -> np.ndarray:
  """Decodes an image to uint8 [H,W,3] RGB; grey, palette, alpha and CMYK images work as well.

  Of an animation the first picture is taken; transparency is ignored. EXIF orientation is ignored,
  since masks do not have it.

  Args:
    data: the whole file, JPEG, PNG, TIFF, BMP or WebP.
    path: for messages only.
    pixel_range: (black, white) that becomes 0 to 255 in an image of 16 bits a channel; () refuses
      such images. Others are left as they are.
  Raises: DataError for damaged files and other kinds of pixels.
  """
  # Some versions of OpenCV fill the missing part of a truncated JPEG with grey and say nothing.
  check_whole(data, path)
  with open_image(io.BytesIO(data), path) as image:
    deep = _is_deep(image, path, pixel_range)
    if not deep and not data.startswith((JPEG, PNG)):
      try:
        return np.asarray(image.convert('RGB'))
      except Exception as error:  # As above.
        raise damaged(path) from error
  pixels = decode_pixels(data, path)
  return scale_to_8_bits(pixels, pixel_range) if deep else pixels


def decode_pixels(data: bytes, path: str) -> np.ndarray:
  """Decodes to RGB [H,W,3] in the file's own depth, uint8 or uint16; a check of the header before
  is up to the caller."""
  try:
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  except cv2.error as error:
    raise damaged(path) from error
  if image is None:
    raise damaged(path)
  return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def bits_of(image: ImageFile.ImageFile, path: str | os.PathLike) -> int:
  """Bits a channel as images are decoded, 8 (also for fewer) or 16; from the header alone.

  Raises: DataError for other kinds of pixels, such as floating-point numbers.
  """
  if isinstance(image, TiffImageFile):
    bits = max(image.tag_v2.get(_BITS, (1,)))
    whole = set(image.tag_v2.get(_SAMPLE_FORMAT, (1,))) <= {1, 4}
    if bits == 16 and whole:
      if white_is_zero(image):
        raise DataError(f'{path} stores white as 0, which programs follow or not where there are '
                        '16 bits; save it with black as 0.')
      if image.tag_v2.get(_PLANES) == 2 and image.tag_v2.get(_SAMPLES, 1) > 1:
        raise DataError(f'{path} stores its channels one after the other, which is not read with '
                        '16 bits; save them side by side (interleaved, planar configuration 1).')
      return 16
    if bits > 8 or not whole:
      raise DataError(f'{path} has {_UNKNOWN_PIXELS}')
  elif not isinstance(image, BmpImageFile) and any(';16' in str(tile[3]) for tile in image.tile):
    return 16
  if image.mode not in _MODES_OF_8_BITS:
    raise DataError(f'{path} has pixels of kind {image.mode}; {_CONVERT}')
  return 8


def white_is_zero(image: TiffImageFile) -> bool:
  """Whether a TIFF stores grey levels the other way round."""
  return image.tag_v2.get(_PHOTOMETRIC) == 0


def _is_deep(
  image: ImageFile.ImageFile, path: str | os.PathLike, pixel_range: Sequence[int]
) -> bool:
  """Whether an image has 16 bits a channel. Raises DataError where these have no range, and as
  bits_of does."""
  deep = bits_of(image, path) == 16
  if deep and not pixel_range:
    raise DataError(
      f'{path} has 16 bits a channel, and no range of its values is known; convert it to 8 bits, '
      'as images of training are, or give --config.data.pixel_range=BLACK,WHITE before training.')
  return deep


def _check_tiff(image: TiffImageFile, path: str | os.PathLike) -> None:
  """Refuses what would be lost or turned in silence. Leaves the first page open."""
  if image.tag_v2.get(_ORIENTATION, 1) != 1:
    raise DataError(f'{path} is stored turned (orientation {image.tag_v2[_ORIENTATION]}), which '
                    'programs follow or not; save it upright, and its mask likewise.')
  for page in range(1, image.n_frames):
    image.seek(page)
    if not image.tag_v2.get(_SUBFILE, 0) & _REDUCED:
      raise DataError(f'{path} holds {image.n_frames} pages; save each as a file of its own.')
  image.seek(0)


def _check_bmp(image: BmpImageFile, start: bytes, path: str | os.PathLike) -> None:
  """Refuses a byte a pixel with black and white alone in the table: Pillow reads bits."""
  bits, = struct.unpack_from('<H', start, 24 if start[14] == 12 else 28)
  if image.mode == '1' and bits != 1:
    raise DataError(f'{path} has {bits} bits a pixel but two colours in its table, which is '
                    'misread; save it as a PNG.')


def decode_mask(data: bytes, path: str) -> np.ndarray:
  """Decodes an 8-bit grey or palette PNG to uint8 [H,W], palette indices as they are."""
  _png_mask_size(data[:TAIL], path)
  with open_image(io.BytesIO(data), path) as image:
    check_whole(data, path)
    try:
      return np.asarray(image)
    except Exception as error:  # As above.
      raise damaged(path) from error


def damaged(path: str | os.PathLike) -> DataError:
  """The error for a file whose header is right and whose data are not."""
  return DataError(f'{path} is damaged and cannot be decoded; copy or export it again.')


def read_bytes(path: str) -> bytes:
  """A whole file; DataError where it cannot be read."""
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror}); restore it.') from error


def _read_ends(path: str) -> tuple[bytes, bytes]:
  """The first and the last bytes of a file. Raises DataError where it cannot be read."""
  try:
    with open(path, 'rb') as file:
      head = file.read(TAIL)
      file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
      return head, file.read()
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror}); restore it.') from error


def check_whole(data: bytes, path: str) -> None:
  """Raises DataError for a file of no known format, and for a JPEG or PNG without its end."""
  _check_format(data, path)
  if not (seems_whole(data, data[-TAIL:]) or is_whole(data)):
    raise DataError(f'{path} is truncated, its end is missing; copy or download it again.')


def check_ends(path: str) -> None:
  """check_whole of a file, of which no more than its ends is read where they show that it is."""
  head, tail = _read_ends(path)
  _check_format(head, path)
  if not seems_whole(head, tail):
    check_whole(read_bytes(path), path)


def _check_format(head: bytes, path: str | os.PathLike) -> None:
  if not head:
    raise DataError(f'{path} is empty; copy or download it again, or take it out.')
  if not head.startswith(tuple(_FORMATS)):
    raise DataError(f'{path} is no JPEG, PNG, TIFF, BMP or WebP file; convert it, or take it out.')


def _png_mask_size(head: bytes, path: str) -> tuple[int, int]:
  """(H,W) from a PNG's first 26 bytes, where its bit depth and colour type stand too."""
  if not head.startswith(PNG) or len(head) < 26:
    raise DataError(f'{path} is not a PNG; masks are PNG files of 8-bit class ids.')
  width, height, depth, colour = struct.unpack('>IIBB', head[16:26])
  # Fewer bits are fine with a palette; as grey values, decoders would stretch them to 0..255.
  if not (colour == 3 or (colour == 0 and depth == 8)):
    kind = {0: 'grey', 2: 'RGB', 4: 'grey with alpha', 6: 'RGB with alpha'}.get(colour, 'unknown')
    raise DataError(f'{path} is {kind} with {depth} bits a channel; a mask holds class ids, as a '
                    'PNG of 8-bit grey values or of palette indices: convert colours to ids.')
  return height, width
