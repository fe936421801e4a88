"""Decoding of images and masks, the cache, and what importing leaves alone."""

import io
import os
import pickle
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from gta_jax.data import files, sources
from gta_jax.data.folder import read_folder
from gta_jax.data.sources import DataError
from tests.data.small_folder import mask


@pytest.mark.parametrize('palette', [False, True])
def test_masks_are_indices(folder, palette):
  mask(folder / 'masks' / 'a.png', [0, 1, 2, 255], palette=palette)
  assert np.unique(read_folder(folder, labelled='2').reader.mask('a')).tolist() == [0, 1, 2, 255]


def test_palette_of_few_bits_is_not_stretched(tmp_path):
  image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
  image.putpalette([0, 0, 0, 9, 9, 9, 5, 5, 5])
  image.save(tmp_path / 'x.png', bits=2)
  assert files.decode_mask((tmp_path / 'x.png').read_bytes(), 'x').tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'P', 'RGB'])
def test_grey_and_alpha_images_become_rgb(tmp_path, mode):
  Image.new('RGB', (5, 4), (102, 102, 102)).convert(mode).save(tmp_path / 'x.png')
  image = files.decode_image((tmp_path / 'x.png').read_bytes(), 'x')
  assert image.shape == (4, 5, 3) and (image == 102).all()


def test_channels_are_rgb_and_orientation_is_ignored(tmp_path):
  exif = Image.Exif()
  exif[274] = 6  # Turn by 90 degrees for display.
  Image.new('RGB', (16, 8), (250, 0, 0)).save(tmp_path / 'x.jpg', exif=exif)
  path = str(tmp_path / 'x.jpg')
  assert files.FileReader({'x': path}, {}).size('x') == (8, 16)
  image = files.FileReader({'x': path}, {}).image('x')
  assert image.shape == (8, 16, 3) and image[4, 4, 0] > 240 and image[4, 4, 2] < 10


def test_a_thumbnail_does_not_hide_truncation():
  whole = b'\xff\xd8' + b'\xff\xda thumbnail \xff\xd9' + b'\xff\xda image \xff\xd9 camera trailer'
  files.check_whole(whole, 'x.jpg')
  with pytest.raises(DataError, match='truncated'):
    files.check_whole(whole[:whole.index(b'image')], 'x.jpg')


def test_a_cache_keeps_what_fits_and_changes_nothing():
  class Counting:
    reads = 0

    def image(self, id):
      Counting.reads += 1
      return np.full((10, 10, 3), int(id), np.uint8)

  cached = sources.CachedReader(Counting(), 650e-6)
  for _ in range(3):
    for id in '123':
      assert (cached.image(id) == int(id)).all()
  assert Counting.reads == 2 + 3  # two of 300 bytes fit; the third is read every time


def test_a_cache_is_pickled_empty():
  cached = sources.CachedReader(files.FileReader({}, {}), 1e-3)
  array = np.zeros(1000, np.uint8)
  cached._kept['image', 'a'], cached._free = array, 0
  copy = pickle.loads(pickle.dumps(cached))
  assert not copy._kept and copy._free == 1000
  assert cached.image('a') is array


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'bmp', 'tif'])
@pytest.mark.filterwarnings('error')
def test_pillows_limit_is_neither_used_nor_changed(tmp_path, monkeypatch, suffix):
  Image.fromarray(np.full((20, 30), 7, np.uint8)).save(tmp_path / f'x.{suffix}')
  data = (tmp_path / f'x.{suffix}').read_bytes()
  for limit in (400, 100):  # Image.open would warn, and refuse.
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', limit)
    assert files.image_size(io.BytesIO(data), 'x') == (20, 30)
    with files.open_image(tmp_path / f'x.{suffix}', 'x') as image:
      # TIFF's class asks for the limit again when it decodes.
      assert suffix == 'tif' or abs(np.asarray(image).astype(int) - 7).max() < 2
    if suffix in ('jpg', 'png'):
      assert files.decode_image(data, 'x').shape == (20, 30, 3)
    if suffix == 'png':
      assert files.decode_mask(data, 'x').shape == (20, 30)
    assert limit == Image.MAX_IMAGE_PIXELS


_IMPORTS = """
import importlib, os, pathlib
import cv2, flax, grain, gta_jax, jax, optax, scipy.io
from PIL import Image, ImageFile

def found():
  return (dict(os.environ), cv2.getNumThreads(), cv2.useOptimized(), Image.MAX_IMAGE_PIXELS,
          ImageFile.LOAD_TRUNCATED_IMAGES)

before = found()
for room in ('data', 'evaluation', 'models', 'ops'):
  for path in (pathlib.Path(gta_jax.__file__).parent / room).glob('*.py'):
    if path.stem != 'builders':  # Imported only when needed.
      importlib.import_module(f'gta_jax.{room}.{path.stem}')
assert found() == before, (found(), before)
"""


def test_importing_changes_no_global_of_others():
  subprocess.run([sys.executable, '-c', _IMPORTS], check=True, timeout=300,
                 env=os.environ | {'PYTHONPATH': ':'.join(sys.path)})


def claims(path, height, width):
  """A whole small PNG whose header claims another size."""
  data = bytearray(path.read_bytes())
  data[16:24] = struct.pack('>II', width, height)
  data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
  path.write_bytes(data)


@pytest.mark.parametrize('kind', ['images', 'masks'])
def test_a_header_that_claims_too_many_pixels_is_refused_before_decoding(folder, kind):
  if kind == 'images':
    (folder / 'images' / 'a.jpg').unlink()
  path = folder / kind / 'a.png'
  mask(path, [0])
  claims(path, 100_000, 100_000)
  reader = read_folder(folder, labelled='2').reader
  with pytest.raises(DataError, match=r'a\.png claims 100000 x 100000 pixels, more than 180000000'):
    (reader.image if kind == 'images' else reader.mask)('a')
  if kind == 'images':
    with pytest.raises(DataError, match=r'a\.png claims 100000 x 100000'):
      reader.size('a')


def test_cmyk_and_deep_images_become_rgb_and_animations_their_first_picture(tmp_path):
  Image.new('RGB', (16, 8), (200, 100, 50)).convert('CMYK').save(tmp_path / 'x.jpg', quality=95)
  image = files.decode_image((tmp_path / 'x.jpg').read_bytes(), 'x')
  assert abs(image.astype(int) - (200, 100, 50)).max() < 12
  cv2.imwrite(str(tmp_path / 'x.png'), np.full((3, 4), 0x6655, np.uint16))
  assert (files.decode_image((tmp_path / 'x.png').read_bytes(), 'x', (0x6655, 0x6656)) == 0).all()
  first, second = (Image.new('RGB', (5, 4), colour) for colour in ((9, 9, 9), (80, 80, 80)))
  first.save(tmp_path / 'y.png', save_all=True, append_images=[second])
  assert (files.decode_image((tmp_path / 'y.png').read_bytes(), 'y') == 9).all()


def test_a_bitmap_of_16_bits_a_pixel_is_one_of_8_bits_a_channel(tmp_path):
  header = struct.pack('<2sIHHIIiiHHIIiiII', b'BM', 66 + 16, 0, 0, 66, 40, 4, 2, 1, 16, 3, 16, 0, 0,
                       0, 0)
  red, green, blue = 0b11111_000000_00000, 0b00000_111111_00000, 0b00000_000000_11111
  (tmp_path / 'x.bmp').write_bytes(
    header + struct.pack('<3I', red, green, blue) + struct.pack('<8H', *[red] * 8))
  reader = files.FileReader({'x': str(tmp_path / 'x.bmp')}, {})
  assert reader.size('x') == (2, 4) and (reader.image('x') == (255, 0, 0)).all()


def test_a_bitmap_of_a_byte_a_pixel_with_two_colours_is_read_or_refused(tmp_path):
  pixels = np.array([[0, 1, 1, 0], [1, 1, 0, 0]], np.uint8)
  for table in (b'\0\0\0\0\xff\xff\xff\0', b'\x09\x09\x09\0\x50\x50\x50\0'):
    path = tmp_path / 'x.bmp'
    path.write_bytes(
      struct.pack('<2sIHHI', b'BM', 70, 0, 0, 62)
      + struct.pack('<IiiHHIIiiII', 40, 4, 2, 1, 8, 0, 8, 0, 0, 2, 2) + table
      + pixels[::-1].tobytes())
    if table[0]:
      image = files.decode_image(path.read_bytes(), 'x')
      assert (image[..., 0] == np.where(pixels, 80, 9)).all()
      continue
    # Pillow takes black and white for one bit a pixel, and would give black alone.
    with pytest.raises(DataError, match='8 bits a pixel but two colours in its table'):
      files.decode_image(path.read_bytes(), str(path))


def deep_tiff(pixels: np.ndarray, *, separate: bool) -> bytes:
  """A TIFF of uint16 [H,W,3], its channels side by side or one after the other (tag 284)."""
  height, width, channels = pixels.shape
  data = (np.moveaxis(pixels, -1, 0) if separate else pixels).astype('<u2').tobytes()
  strips = channels if separate else 1
  size, start = len(data) // strips, 8 + len(data)
  tags = [(256, 3, [width]), (257, 3, [height]), (258, 3, [16] * channels), (259, 3, [1]),
          (262, 3, [2]), (273, 4, [8 + i * size for i in range(strips)]), (277, 3, [channels]),
          (278, 3, [height]), (279, 4, [size] * strips), (284, 3, [1 + separate])]
  entries, rest, place = b'', b'', start + 2 + 12 * len(tags) + 4
  for tag, kind, values in tags:
    packed = struct.pack(f'<{len(values)}{"H" if kind == 3 else "I"}', *values)
    if len(packed) > 4:
      packed, rest = struct.pack('<I', place + len(rest)), rest + packed
    entries += struct.pack('<HHI', tag, kind, len(values)) + packed.ljust(4, b'\0')
  head = struct.pack('<2sHI', b'II', 42, start)
  return head + data + struct.pack('<H', len(tags)) + entries + b'\0' * 4 + rest


def test_a_deep_tiff_of_separate_channels_which_opencv_mixes_up_is_refused():
  pixels = np.random.default_rng(0).integers(0, 2**16, (6, 5, 3)).astype(np.uint16)
  found = files.decode_image(deep_tiff(pixels, separate=False), 'x.tif', (0, 2**16 - 1))
  np.testing.assert_allclose(found, pixels / 257, atol=0.51)
  with pytest.raises(DataError, match=r'x\.tif stores its channels one after the other.*by side'):
    files.decode_image(deep_tiff(pixels, separate=True), 'x.tif', (0, 2**16 - 1))


def test_opencv_keeps_warnings_about_tags_to_itself(tmp_path, capfd):
  path = str(tmp_path / 'x.tif')
  Image.fromarray(np.ones((4, 5), np.uint16)).save(path, tiffinfo={33550: (1.0, 1.0, 0.0)})
  level, threads = cv2.utils.logging.getLogLevel(), cv2.getNumThreads()
  try:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_WARNING)  # a command may have run
    for quiet in (False, True):
      if quiet:
        files.set_up_opencv()
      files.decode_pixels(files.read_bytes(path), path)
      assert ('33550' in capfd.readouterr().err) != quiet
  finally:
    cv2.utils.logging.setLogLevel(level)
    cv2.setNumThreads(threads)
