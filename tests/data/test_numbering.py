"""What the grey values of masks become where a conversion reads them."""

import numpy as np
import pytest
from PIL import Image

from gta_jax.data import folder, sources
from gta_jax.data.class_list import read_classes
from gta_jax.data.convert import convert
from gta_jax.data.files import DataError
from tests.data.test_convert import SIZE, ids_of, photo, save


def grey_pair(root, values):
  """Images and masks, so many that all values occur; returns the masks by id."""
  count = -(-len(values) // (SIZE[0] * SIZE[1])) + 1
  masks = {f'{i}': part for i, part in enumerate(np.resize(values, (count, *SIZE)))}
  for id, mask in masks.items():
    photo(root / 'images' / f'{id}.png')
    save(root / 'masks' / f'{id}.png', mask)
  (root / 'splits').mkdir()
  (root / 'splits' / 'val.txt').write_text('0\n')
  return masks


@pytest.mark.parametrize('values, void, note', [
  ([0, 128], [], '0 became 0, 128 became 1; 255 is void'),
  ([0, 50, 100, 150], [], '0 became 0, 50 became 1, 100 became 2, 150 became 3; 255'),
  ([1, 2], [255], '1 became 0, 2 became 1; 255'), ([0, 254], [255], '254 became 1'),
  ([*range(0, 128, 2)], [], '126 became 63'), ([0, 1, 2], [255], None), ([*range(64)], [], None)])
def test_grey_values_that_occur_are_the_classes_in_ascending_order(tmp_path, values, void, note):
  root, out = tmp_path / 'in', tmp_path / 'out'
  masks = grey_pair(root, [*values, *void])
  report = convert(root, out, layout='masks')
  assert report.classes == tuple(f'class{value}' for value in values)
  text = (out / 'conversion.txt').read_text()
  assert text == report.text() and ('became' in text) == bool(note) and (note or '') in text
  dataset = folder.read_folder(out, labelled='1')
  sources.check(dataset)
  assert dataset.classes == report.classes
  for id, mask in masks.items():
    expected = np.where(mask == 255, 255, np.searchsorted(values, mask))
    np.testing.assert_array_equal(dataset.reader.mask(id), expected)


@pytest.mark.parametrize('other, told', [([0, 1], True), ([0, 1, 255], False)])
def test_one_and_white_that_never_meet_are_told(tmp_path, other, told):
  for id, values in {'a': [0, 255], 'b': other}.items():
    photo(tmp_path / 'in' / 'images' / f'{id}.png')
    save(tmp_path / 'in' / 'masks' / f'{id}.png', np.resize(values, SIZE))
  report = convert(tmp_path / 'in', tmp_path / 'out', layout='masks')
  assert report.classes == ('class0', 'class1')
  assert ('No mask holds both 1 and 255' in report.text()) == told


def test_so_many_grey_values_are_said_or_refused(tmp_path):
  grey_pair(tmp_path / 'many', [*range(65)])
  report = convert(tmp_path / 'many', tmp_path / 'out', layout='masks')
  assert report.classes == tuple(f'class{i}' for i in range(65))
  assert 'hold 65 grey values, and each is a class now' in report.text()
  for values in ([*range(256)], [*range(64), 65]):
    root = tmp_path / f'{len(values)}'
    grey_pair(root, values)
    with pytest.raises(DataError, match=r'hold (255|65) grey values .* JPEG .* or give --classes'):
      convert(root, tmp_path / 'new', layout='masks')
    assert not (tmp_path / 'new').exists()


def test_grey_values_are_ids_where_a_list_names_the_classes(tmp_path):
  root, out = tmp_path / 'in', tmp_path / 'out'
  masks = grey_pair(root, [0, 2])
  chosen = tmp_path / 'mine.txt'
  chosen.write_text('sky\nroad\ncar\n')
  assert 'became' not in convert(root, out, layout='masks', classes=chosen).text()
  np.testing.assert_array_equal(ids_of(out, '0'), masks['0'])
  chosen.write_text('sky\nroad\n')
  # 0 is a class without a line, or the last one has none; taking 0 for the sky would be wrong.
  with pytest.raises(DataError, match=r"hold 0 and 2, while 2 classes are .* before 'sky'"):
    convert(root, tmp_path / 'new', layout='masks', classes=chosen)
  chosen.write_text('sky 1 1 1\nroad 2 2 2\nignore 0 0 0\n')  # as the message says
  convert(root, tmp_path / 'new', layout='masks', classes=chosen)
  np.testing.assert_array_equal(ids_of(tmp_path / 'new', '0'), np.where(masks['0'], 1, 255))


def test_smoothed_colours_are_no_classes(tmp_path):
  root = tmp_path / 'in'
  photo(root / 'images' / 'a.png')
  save(root / 'masks' / 'a.png', np.arange(80).reshape(*SIZE, 1) * [3, 0, 1])
  with pytest.raises(DataError, match='80 colours .* 1 to 64 are possible, as smoothed masks'):
    convert(root, tmp_path / 'out', layout='masks')


@pytest.mark.parametrize('classes', [
  'sky 0 0 0\nroad 0 128 0\ncar\n',  # VOC's third colour is 0 128 0
  'sky 0 0 0\nroad 0 128 0\nignore 0 128 0\n'])
def test_one_colour_with_two_meanings_is_refused_as_training_refuses_it(tmp_path, classes):
  root = tmp_path / 'in'
  photo(root / 'images' / 'a.png')
  save(root / 'masks' / 'a.png', np.resize([[0, 0, 0], [0, 128, 0]], (*SIZE, 3)))
  (root / 'classes.txt').write_text(classes)
  reader = folder.FolderReader({}, {'a': str(root / 'masks' / 'a.png')},
                               code=read_classes(root / 'classes.txt').code)
  for use in (lambda: reader.mask('a'), lambda: convert(root, tmp_path / 'out', layout='masks')):
    with pytest.raises(DataError, match='the colour 0 128 0 to two classes .*; give each its own'):
      use()
  assert not (tmp_path / 'out').exists()


def test_colours_of_a_palette_that_two_classes_have_are_no_ids(tmp_path):
  root, ids = tmp_path / 'in', np.resize([0, 1], SIZE).astype(np.uint8)
  photo(root / 'images' / 'a.png')
  (root / 'masks').mkdir()
  picture = Image.fromarray(ids)
  picture.putpalette([0, 0, 0, 0, 128, 0])
  picture.save(root / 'masks' / 'a.png')
  (root / 'classes.txt').write_text('sky 0 0 0\nroad 0 128 0\ncar 0 128 0\n')
  convert(root, tmp_path / 'out', layout='masks')
  np.testing.assert_array_equal(ids_of(tmp_path / 'out', 'a'), ids)


@pytest.mark.parametrize('grey', [0, 255])
def test_colours_beside_grey_values_need_a_list_of_classes(tmp_path, grey):
  root, out = tmp_path / 'in', tmp_path / 'out'
  for id in 'ab':
    photo(root / 'images' / f'{id}.png')
  save(root / 'masks' / 'a.png', np.resize([[255, 0, 0], [0, 200, 0]], (*SIZE, 3)))
  save(root / 'masks' / 'b.png', np.full(SIZE, grey))
  listed = tmp_path / 'mine.txt'
  listed.write_text('red 255 0 0\ngreen 0 200 0\n')
  if grey == 255:  # void, which needs no list
    convert(root, out, layout='masks')
  else:
    with pytest.raises(DataError, match=r'colours, such as \(0, 200, 0\), .*, such as 0, and noth'):
      convert(root, out, layout='masks')
    assert not out.exists()
    convert(root, out, layout='masks', classes=listed)
  assert (ids_of(out, 'b') == grey).all()


@pytest.mark.parametrize('bit', [False, True])
def test_masks_of_one_bit_and_one_value_are_those_beside_them(tmp_path, bit):
  root, out, truth = tmp_path / 'in', tmp_path / 'out', np.resize([0, 1], SIZE)
  for id in 'ab':
    photo(root / 'images' / f'{id}.png')
  save(root / 'masks' / 'a.png', 255 * truth)
  Image.fromarray(np.full(SIZE, bit)).save(root / 'masks' / 'b.png')
  assert convert(root, out, layout='masks').classes == ('class0', 'class1')
  np.testing.assert_array_equal(ids_of(out, 'a'), truth)
  assert (ids_of(out, 'b') == bit).all()
