"""Masks that hold grey levels of classes: black and white of two, and greys of more."""

import numpy as np
import pytest
from PIL import Image

from gta_jax.data import sources
from gta_jax.data.class_list import read_classes
from gta_jax.data.convert import convert
from gta_jax.data.files import DataError, decode_mask
from gta_jax.data.folder import read_folder

SIZE = (6, 8)
WHITE = np.resize([True, False, False], SIZE)
TELLING = {  # classes.txt -> the class that white stands for
  'rock\npore\n': 1, 'rock 0 0 0\npore 255 255 255\n': 1, 'rock 255 255 255\npore 0 0 0\n': 0,
  'rock 200 0 0\npore 0 0 200\n': 1, 'rock 255 255 255\npore 200 0 0\n': 0,
  'rock 200 0 0\npore 0 0 0\n': 0}
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
  assert kinds[0] != 'grey' or f"255 is '{('rock', 'pore')[TELLING[classes]]}'" in dataset.note


@pytest.mark.parametrize('classes, colour', [
  ('road 128 64 128\ncar 0 0 142\n', 'black'), ('road 128 64 128\ncar 0 0 142\ncat 9 9 9', 'black'),
  ('sky 0 0 0\nroad 128 64 128\ncar 0 0 142\n', 'white'), ('sky\nroad\ncar\n', 'white')])
def test_black_and_white_are_unknown_colours_where_they_tell_no_two_classes(
  tmp_path, classes, colour
):
  root = make(tmp_path, classes, 'coloured', 'coloured')
  told = read_classes(root / 'classes.txt').palette[WHITE.astype(int)]
  Image.fromarray(told).save(root / 'masks' / 'a.png')
  dataset = read_folder(root, labelled='1')
  np.testing.assert_array_equal(dataset.reader.mask('a'), WHITE)
  Image.new('RGB', SIZE[::-1], colour).save(root / 'masks' / 'b.png')
  with pytest.raises(DataError, match=r'b\.png has the colour .* which no class'):
    sources.check(read_folder(root, labelled='1'))


def test_a_black_mask_among_black_and_white_ones_is_the_first_class(tmp_path):
  root = make(tmp_path, 'rock 200 0 0\npore 0 0 200\n', 'coloured', 'coloured')
  Image.new('RGB', SIZE[::-1]).save(root / 'masks' / 'b.png')
  dataset = read_folder(root, labelled='1')
  sources.check(dataset)
  assert not dataset.reader.mask('b').any()
  np.testing.assert_array_equal(dataset.reader.mask('a'), WHITE)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('classes', TELLING)
def test_a_conversion_means_the_same(tmp_path, classes, kind):
  convert(make(tmp_path / 'in', classes, kind, kind), tmp_path / 'out', layout='masks')
  expected = np.where(WHITE, TELLING[classes], 1 - TELLING[classes])
  for id in 'ab':
    path = tmp_path / 'out' / 'masks' / f'{id}.png'
    np.testing.assert_array_equal(decode_mask(path.read_bytes(), id), expected)
  sources.check(read_folder(tmp_path / 'out', labelled='1'))


GREYS = 'matrix 0 0 0\nmineral 85 85 85\npore 170 170 170\nfilm 255 255 255\n'
IDS = np.resize([0, 1, 2, 3], SIZE).astype(np.uint8)


def test_grey_levels_of_more_classes_are_ids_where_classes_have_them(tmp_path):
  root = make(tmp_path / 'in', GREYS, 'grey', 'grey')
  for id in 'ab':
    Image.fromarray(85 * IDS).save(root / 'masks' / f'{id}.png')
  convert(root, tmp_path / 'out', layout='masks')
  for data in (root, tmp_path / 'out'):
    dataset = read_folder(data, labelled='1')
    sources.check(dataset)
    np.testing.assert_array_equal(dataset.reader.mask('a'), IDS)
  assert "85 is 'mineral', 170 is 'pore', 255 is 'film'" in read_folder(root, labelled='1').note
  reader = read_folder(root, labelled='1').reader
  Image.fromarray(np.full(SIZE, 7, np.uint8)).save(root / 'masks' / 'a.png')
  with pytest.raises(DataError, match='holds 7, while the other masks hold 0, 85, 170, 255 alone'):
    reader.mask('a')
  with pytest.raises(DataError, match=r'holds \[85, 170\].* grey levels of classes, give each'):
    sources.check(read_folder(root, labelled='1'))


def test_ids_stay_ids_though_classes_are_grey(tmp_path):
  with_void = np.where(IDS == 3, 255, IDS), np.where(IDS, 255, 0)
  for i, void in enumerate((IDS, *(mask.astype(np.uint8) for mask in with_void))):
    root = make(tmp_path / str(i), GREYS, 'grey', 'grey')
    for id in 'ab':
      Image.fromarray(void).save(root / 'masks' / f'{id}.png')
    np.testing.assert_array_equal(read_folder(root, labelled='1').reader.mask('a'), void)


def test_a_conversion_says_how_much_is_void_and_takes_ids_from_1_on(tmp_path):
  root = make(tmp_path / 'in', 'a\nb\nc\nd\n', 'grey', 'grey')
  for id in 'ab':
    Image.fromarray(IDS + 1).save(root / 'masks' / f'{id}.png')
  with pytest.raises(DataError, match=r'holds \[4\].*begin at 1, .*--mode convert'):
    sources.check(read_folder(root, labelled='1'))
  report = convert(root, tmp_path / 'out', layout='masks')
  assert "1 was taken for 'a', the first class" in report.text()
  np.testing.assert_array_equal(read_folder(tmp_path / 'out', labelled='1').reader.mask('a'), IDS)
  (root / 'classes.txt').unlink()
  for id in 'ab':
    Image.fromarray(85 * IDS).save(root / 'masks' / f'{id}.png')
  text = convert(root, tmp_path / 'three', layout='masks').text()
  assert '255, void, has 25 % of the pixels. If it is a class, give --classes a file' in text


def test_masks_that_store_white_as_zero_are_refused(tmp_path):
  root = make(tmp_path, 'rock\npore\n', 'grey', 'grey')
  (root / 'masks' / 'a.png').unlink()
  KINDS['grey']().save(root / 'masks' / 'a.tif', tiffinfo={262: 0})
  with pytest.raises(DataError, match=r'a\.tif stores white as 0.*save it with black as 0'):
    sources.check(read_folder(root, labelled='1'))
