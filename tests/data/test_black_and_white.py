"""Masks of two classes that are black and white: which of them white is."""

import numpy as np
import pytest
from PIL import Image

from gta_jax.data import sources
from gta_jax.data.convert import convert
from gta_jax.data.files import DataError, decode_mask
from gta_jax.data.folder import read_folder

SIZE = (6, 8)
WHITE = np.resize([True, False, False], SIZE)
TELLING = {  # classes.txt -> the class that white stands for
  'rock\npore\n': 1, 'rock 0 0 0\npore 255 255 255\n': 1, 'rock 255 255 255\npore 0 0 0\n': 0,
  'rock 200 0 0\npore 0 0 200\n': 1}
KINDS = {
  'grey': lambda: Image.fromarray(np.where(WHITE, 255, 0).astype(np.uint8)),
  'coloured': lambda: Image.fromarray(np.where(WHITE, 255, 0).astype(np.uint8)).convert('RGB'),
  'of one bit': lambda: Image.fromarray(WHITE)}


def make(root, classes, *kinds):
  """Images a and b, whose masks are of these kinds; b is for validation."""
  for folder in ('images', 'masks', 'splits'):
    (root / folder).mkdir(parents=True)
  for id, kind in zip('ab', kinds, strict=True):
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(root / 'images' / f'{id}.png')
    KINDS[kind]().save(root / 'masks' / f'{id}.png')
  (root / 'classes.txt').write_text(classes)
  (root / 'splits' / 'val.txt').write_text('b')
  return root


@pytest.mark.parametrize(
  'kinds', [('grey', 'grey'), ('coloured', 'coloured'), ('grey', 'coloured')])
@pytest.mark.parametrize('classes', TELLING)
def test_white_is_the_white_class_and_else_the_second(tmp_path, classes, kinds):
  dataset = read_folder(make(tmp_path, classes, *kinds), labelled='1')
  sources.check(dataset)
  expected = np.where(WHITE, TELLING[classes], 1 - TELLING[classes])
  for id in 'ab':
    np.testing.assert_array_equal(dataset.reader.mask(id), expected)
  if kinds == ('grey', 'grey'):
    name = ('rock', 'pore')[TELLING[classes]]
    assert f'255 is read as {name!r}' in dataset.note


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('classes', TELLING)
def test_a_conversion_means_the_same(tmp_path, classes, kind):
  convert(make(tmp_path / 'in', classes, kind, kind), tmp_path / 'out', layout='masks')
  expected = np.where(WHITE, TELLING[classes], 1 - TELLING[classes])
  for id in 'ab':
    path = tmp_path / 'out' / 'masks' / f'{id}.png'
    np.testing.assert_array_equal(decode_mask(path.read_bytes(), id), expected)
  sources.check(read_folder(tmp_path / 'out', labelled='1'))


def test_masks_that_store_white_as_zero_are_refused(tmp_path):
  root = make(tmp_path, 'rock\npore\n', 'grey', 'grey')
  (root / 'masks' / 'a.png').unlink()
  KINDS['grey']().save(root / 'masks' / 'a.tif', tiffinfo={262: 0})
  with pytest.raises(DataError, match=r'a\.tif stores white as 0.*save it with black as 0'):
    sources.check(read_folder(root, labelled='1'))
