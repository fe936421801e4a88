"""What palettes say is found without decoding, or counting, more than it takes."""

import numpy as np
import pytest
from PIL import Image

from gta_jax.data import convert_masks, folder, mask_code, mask_palettes
from gta_jax.data.files import IGNORE, DataError, open_image
from gta_jax.data.mask_code import MaskCode, values_in
from gta_jax.data.masks import decode_any_mask, encode_mask

COLOURS = (0, 0, 0), (250, 50, 0), (0, 0, 200)
CHOSEN = MaskCode(COLOURS, chosen=True, ignored=((7, 7, 7),))
IDS = np.resize([0, 1, 2, IGNORE], (6, 8)).astype(np.uint8)


def save(path, palette, ids=IDS, **options):
  mask = Image.fromarray(ids)
  mask.putpalette([value for colour in palette for value in colour])
  mask.save(path, **options)
  return str(path)


def never(*arguments, **options):
  raise AssertionError('not needed')


@pytest.mark.parametrize(('suffix', 'options'), [
  ('png', {}), ('png', {'transparency': 1}), ('png', {'bits': 2}), ('bmp', {}), ('tif', {})])
def test_a_palette_is_read_from_the_header(tmp_path, monkeypatch, suffix, options):
  path = save(tmp_path / f'a.{suffix}', COLOURS, IDS % 4, **options)
  with open_image(path, path) as image:
    expected = tuple(image.getpalette())
  monkeypatch.setattr('PIL.ImageFile.ImageFile.load', never)
  assert mask_palettes._palette(path) == expected
  assert expected[:9] == sum(COLOURS, ())


def test_values_that_occur_are_found_in_parts_of_an_array_too():
  values = np.zeros((5, 7, 3), np.uint8)
  values[1, 2] = 3, 200, 255
  assert [values_in(values[..., channel]) for channel in range(3)] == [[0, 3], [0, 200], [0, 255]]
  assert values_in(IDS) == [0, 1, 2, IGNORE]


def test_nothing_is_counted_where_a_palette_begins_with_the_classes(tmp_path, monkeypatch):
  path = str(tmp_path / 'a.png')
  data = encode_mask(IDS, np.array(COLOURS, np.uint8))
  (tmp_path / 'a.png').write_bytes(data)
  monkeypatch.setattr(mask_palettes, 'values_in', never)
  np.testing.assert_array_equal(decode_any_mask(data, path, CHOSEN), IDS)
  monkeypatch.setattr(mask_palettes, '_indices', never)
  assert mask_palettes.of_palettes([path], CHOSEN) == []


def test_a_colour_of_ignored_pixels_behind_those_of_the_classes_is_no_id(tmp_path):
  path = save(tmp_path / 'a.png', (*COLOURS, (7, 7, 7)), np.where(IDS == IGNORE, 3, IDS))
  with pytest.raises(DataError, match='index 3 the colour of ignored pixels'):
    decode_any_mask((tmp_path / 'a.png').read_bytes(), path, CHOSEN)


def test_no_mask_is_decoded_for_grey_levels_that_no_class_can_have(tmp_path, monkeypatch):
  path = save(tmp_path / 'a.png', COLOURS)
  reader = folder.FolderReader({}, {'a': path}, code=CHOSEN)
  monkeypatch.setattr(folder, 'values_of_mask', never)
  assert folder._with_greys(reader, 'abc', [path]) == (reader, [])
  for grey in (MaskCode(COLOURS[:2]), MaskCode(((0, 0, 0), (9, 9, 9), (8, 8, 8)), chosen=True)):
    with pytest.raises(AssertionError, match='not needed'):
      folder._with_greys(folder.FolderReader({}, {'a': path}, code=grey), 'abc', [path])
  for values in ([0, 255], [0, 9, 8], [9]):
    assert not mask_code.ids_of_greys(values, CHOSEN)


def test_damaged_masks_say_nothing_and_the_first_odd_palette_is_told(tmp_path):
  whole = save(tmp_path / 'a.png', (COLOURS[0], COLOURS[2], (6, 6, 6)))
  data = (tmp_path / 'a.png').read_bytes()
  (tmp_path / 'b.png').write_bytes(data[:data.index(b'IDAT') + 8])
  paths = [str(tmp_path / 'b.png'), whole, save(tmp_path / 'c.png', COLOURS[::-1])]
  said, = mask_palettes.of_palettes(paths, CHOSEN)
  assert said.startswith(f'{whole} has a palette that gives index 1 the colour of class 2')
  said, = mask_palettes.of_palettes(paths, MaskCode(COLOURS))
  assert 'index 0 has the colour (0, 0, 0) in' in said and said.count('c.png') == 1


def test_white_before_black_is_refused_where_two_classes_have_no_colours(tmp_path):
  ids = IDS % 2
  path = save(tmp_path / 'a.png', ((255,) * 3, (0,) * 3), ids)
  data = (tmp_path / 'a.png').read_bytes()
  for read in (lambda code: decode_any_mask(data, path, code),
               lambda code: convert_masks.read_mask(tmp_path / 'a.png', code)):
    with pytest.raises(DataError, match=r'a\.png has a palette of which index 0 is white and 1 bl'):
      read(MaskCode(((0, 0, 0), (128, 0, 0))))
    np.testing.assert_array_equal(
      read(MaskCode(((255, 255, 255), (0, 0, 0)), chosen=True)), ids)
    np.testing.assert_array_equal(read(MaskCode(((0, 0, 0), (128, 0, 0), (0, 128, 0)))), ids)
  turned = MaskCode(((0, 0, 0), (255, 255, 255)), chosen=True)
  np.testing.assert_array_equal(convert_masks.read_mask(tmp_path / 'a.png', turned), 1 - ids)
