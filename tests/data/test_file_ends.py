"""Files with something behind their end, and files without one."""

import io

import numpy as np
import pytest
from PIL import Image

from gta_jax.data import files
from gta_jax.data.files import DataError

RNG = np.random.default_rng(0)
TRAILER = RNG.bytes(100_000) + b'\xff\xda'  # a film, in which markers occur as well
KINDS = {'jpg': {}, 'progressive.jpg': {'progressive': True}, 'png': {},
         'restarts.jpg': {'restart_marker_blocks': 1}}


def encoded(kind):
  pixels = np.repeat(np.repeat(RNG.integers(0, 256, (40, 50, 3), np.uint8), 4, 0), 4, 1)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG' if kind == 'png' else 'JPEG', **KINDS[kind])
  return file.getvalue()


@pytest.mark.parametrize('kind', KINDS)
def test_what_stands_behind_the_end_is_passed_over(tmp_path, kind):
  data, path = encoded(kind), tmp_path / f'x.{kind}'
  path.write_bytes(data + TRAILER)
  reader = files.FileReader({'x': str(path)}, {})
  assert reader.size('x') == (160, 200)
  np.testing.assert_array_equal(reader.image('x'), files.decode_image(data, 'x'))


@pytest.mark.parametrize('kind', KINDS)
def test_a_file_without_its_end_is_truncated_wherever_it_was_cut(tmp_path, kind):
  data, path = encoded(kind), tmp_path / f'x.{kind}'
  for length in (30, len(data) // 3, len(data) // 2, len(data) - 6, len(data) - 1):
    path.write_bytes(data[:length])
    with pytest.raises(DataError, match='truncated'):
      files.check_ends(str(path))
    with pytest.raises(DataError, match='truncated'):
      files.decode_image(data[:length], 'x')


def test_no_image_under_an_images_suffix_is_named_as_such(tmp_path):
  (tmp_path / 'x.jpg').write_bytes(b'\0\0\0\x18ftypheic' + bytes(100))
  for look in (files.check_ends, lambda path: files.image_size(path, path)):
    with pytest.raises(DataError, match='is no JPEG, PNG, TIFF, BMP or WebP file'):
      look(str(tmp_path / 'x.jpg'))
