"""A folder as people have it: formats, depths, colours, lists, and what becomes of the rest."""

import dataclasses
import functools
import pathlib
import shutil
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from gta_jax.data.class_list import read_classes
from gta_jax.data.convert import convert
from gta_jax.data.files import IMAGE_SUFFIXES, DataError, decode_image
from gta_jax.data.folder import read_folder
from gta_jax.data.pixel_range import percentile_range, scale_to_8_bits
from gta_jax.data.sources import check
from gta_jax.data.twins import of_twins
from gta_jax.inference.image_folder import ImageFolder, find_images
from gta_jax.training.workdir_files import write_lists

SIZE = (12, 16)
IDS = np.resize(np.array([0, 1, 2, 255], np.uint8), SIZE)


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  if array.ndim == 3:
    array = array[..., ::-1]  # OpenCV's order
  assert cv2.imwrite(str(path), array)


def make(root, *, image, mask=IDS, suffix='png', classes='a 0 0 0\nb 255 0 0\nc 0 0 255\n'):
  """Images a to f, a labelled, b validation, f test; masks of a, b and f."""
  for i, id in enumerate('abcdef'):
    save(root / 'images' / f'{id}.{suffix}', image(i))
    if id in 'abf':
      save(root / 'masks' / f'{id}.png', mask)
  (root / 'classes.txt').write_text(classes)
  (root / 'splits' / '1').mkdir(parents=True)
  for name, ids in (('val', 'b'), ('test', 'f'), ('1/labeled', 'a')):
    (root / 'splits' / f'{name}.txt').write_text('\n'.join(ids))
  return root


def grey(i):
  return np.full(SIZE, 40 * i, np.uint8)


def ramp(i):
  """16 bits: all of them together are the values 1000 to 1000 + 6 * 192 - 1."""
  return (1000 + np.arange(6 * 192, dtype=np.uint16)[i::6]).reshape(SIZE)


@pytest.mark.parametrize('suffix', [s[1:] for s in IMAGE_SUFFIXES])
@pytest.mark.parametrize('channels', [(), (3,)])
def test_every_format_is_read_alike_in_training_and_prediction(tmp_path, suffix, channels):
  image = np.full((*SIZE, *channels), 90, np.uint8)
  if channels:
    image[..., 0] = 200
  dataset = read_folder(make(tmp_path, image=lambda i: image, suffix=suffix), labelled='1')
  check(dataset)
  read = dataset.reader.image('a')
  assert read.shape == (*SIZE, 3) and read.dtype == np.uint8
  assert abs(read.astype(int) - image.reshape(*SIZE, -1)).max() <= 6  # JPEG and WebP lose some
  paths = {'a': tmp_path / 'images' / f'a.{suffix}'}
  np.testing.assert_array_equal(ImageFolder(paths).image('a'), read)


@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('channels', [1, 3])
def test_deep_images_share_the_range_of_the_training_images(tmp_path, suffix, channels):
  def image(i):
    return ramp(i) if channels == 1 else np.repeat(ramp(i)[..., None], 3, -1)

  dataset = read_folder(make(tmp_path, image=image, suffix=suffix), labelled='1')
  check(dataset)
  # Of a, c, d, e: validation and test have no say.
  values = np.concatenate([ramp(i).ravel() for i in (0, 2, 3, 4)])
  low, high = np.percentile(values, (0.1, 99.9), method='inverted_cdf')
  assert dataset.pixel_range == (low, high)
  assert f'4 of 4 training images have 16 bits a channel: {low} to {high} become' in dataset.note
  levels = (ramp(1).astype(int) - int(low)) * 255 / int(high - low)
  expected = np.clip(np.round(levels), 0, 255)
  np.testing.assert_array_equal(dataset.reader.image('b'), np.repeat(expected[..., None], 3, -1))
  path = tmp_path / 'images' / f'b.{suffix}'
  predicted = ImageFolder({'b': path}, dataset.pixel_range).image('b')
  np.testing.assert_array_equal(predicted, dataset.reader.image('b'))
  with pytest.raises(DataError, match=r'16 bits a channel.*convert it to 8 bits'):
    ImageFolder({'b': path}).image('b')
  assert read_folder(tmp_path, labelled='1', pixel_range=(0, 9)).pixel_range == (0, 9)


def test_bright_spots_on_an_even_ground_are_not_all_white():
  pixels = np.full((200, 200), 100, np.uint16)
  pixels.ravel()[:16] = np.linspace(2000, 60_000, 16)  # 0.04 % of them
  black, white = percentile_range(lambda id: pixels, ['a'])
  assert (black, white) == (100, 60_000)
  assert len(np.unique(scale_to_8_bits(pixels, (black, white)))) > 12



def test_the_range_does_not_depend_on_which_images_were_drawn(tmp_path, monkeypatch):
  monkeypatch.setattr('gta_jax.data.folder._SAMPLE', 2)
  root = make(tmp_path, image=ramp)
  ranges = [read_folder(root, labelled='1').pixel_range]
  shutil.copy(root / 'masks' / 'a.png', root / 'masks' / 'd.png')
  (root / 'splits' / '1' / 'labeled.txt').write_text('d\n')
  assert [*ranges, read_folder(root, labelled='1').pixel_range] == ranges * 2


def test_mixed_depths_are_said(tmp_path):
  make(tmp_path, image=lambda i: ramp(i) if i == 2 else grey(i))
  assert 'The others have 8 bits' in read_folder(tmp_path, labelled='1').note


@pytest.mark.parametrize('array', [
  np.ones(SIZE, np.float32), np.ones(SIZE, np.float64), np.ones(SIZE, np.int32),
  np.ones((*SIZE, 3), np.float32)])
def test_other_pixels_are_refused_by_name(tmp_path, array):
  root = make(tmp_path, image=grey)
  (root / 'images' / 'a.png').unlink()
  save(root / 'images' / 'a.tif', array)
  with pytest.raises(DataError, match=r'a\.tif has pixels that are not read.*convert it to grey'):
    read_folder(root, labelled='1').reader.image('a')


def test_a_tiff_that_does_not_call_its_channels_rgb_is_refused_with_the_reason(tmp_path):
  """So GDAL writes three channels of 16 bits unless it is told otherwise."""
  path = tmp_path / 'a.tif'
  Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)
  rgb, black_is_zero = (struct.pack('<HHIHH', 262, 3, 1, value, 0) for value in (2, 1))
  assert path.read_bytes().count(rgb) == 1
  path.write_bytes(path.read_bytes().replace(rgb, black_is_zero))
  with pytest.raises(DataError, match='does not call RGB .*PHOTOMETRIC=RGB'):
    decode_image(path.read_bytes(), str(path))


@pytest.mark.parametrize(('suffix', 'array', 'message'), [
  ('png', np.ones(SIZE, np.uint16), r'b\.png has 16 bits a channel, and no range.*convert'),
  ('tif', np.ones(SIZE, np.float32), r'b\.tif has pixels that are not read'),
  ('tif', np.ones(SIZE, np.int16), r'b\.tif has pixels that are not read'),
])
def test_pixels_of_validation_images_are_checked_before_a_run(tmp_path, suffix, array, message):
  root = make(tmp_path / 'data', image=grey)
  (root / 'images' / 'b.png').unlink()
  save(root / 'images' / f'b.{suffix}', array)
  dataset = read_folder(root, labelled='1')
  assert dataset.pixel_range == ()
  for read in (lambda: check(dataset), lambda: dataset.reader.image('b')):
    with pytest.raises(DataError, match=message):
      read()
  # A conversion takes 16 bits: their range is found when the folder is read.
  report = convert(root, tmp_path / 'out', layout='masks')
  assert report.images == (6 if suffix == 'png' else 5)


def test_pages_and_turned_tiffs_are_refused(tmp_path):
  page = Image.fromarray(grey(3))
  page.save(tmp_path / 'a.tif', save_all=True, append_images=[page])
  exif = Image.Exif()
  exif[274] = 6
  page.save(tmp_path / 'b.tif', exif=exif)
  reader = ImageFolder({id: tmp_path / f'{id}.tif' for id in 'ab'})
  with pytest.raises(DataError, match=r'a\.tif holds 2 pages; save each'):
    reader.image('a')
  with pytest.raises(DataError, match=r'b\.tif is stored turned \(orientation 6\)'):
    reader.size('b')


@pytest.mark.parametrize(('reduced', 'whole'), [([1], True), ([1, 1], True), ([1, 0], False)])
def test_pages_are_refused_unless_all_but_the_first_are_smaller_copies(tmp_path, reduced, whole):
  pages = [Image.fromarray(grey(i)) for i in range(1 + len(reduced))]
  for page, kind in zip(pages[1:], reduced, strict=True):
    page.encoderinfo = {'tiffinfo': {254: kind}}
  pages[0].save(tmp_path / 'a.tif', save_all=True, append_images=pages[1:])
  read = functools.partial(ImageFolder({'a': tmp_path / 'a.tif'}).image, 'a')
  if whole:
    np.testing.assert_array_equal(read()[..., 0], grey(0))
  else:
    with pytest.raises(DataError, match=r'a\.tif holds 3 pages; save each'):
      read()


def coloured(ids):
  table = np.zeros((256, 3), np.uint8)
  table[[1, 2, 255]] = (255, 0, 0), (0, 0, 255), (9, 9, 9)
  return table[ids]


@pytest.mark.parametrize('suffix', ['png', 'bmp', 'tif'])
def test_coloured_masks_are_read_by_the_colours_of_the_classes(tmp_path, suffix):
  root = make(tmp_path, image=grey, classes='a 0 0 0\nb 255 0 0\nc 0 0 255\nignore 9 9 9\n')
  (root / 'masks' / 'a.png').unlink()
  save(root / 'masks' / f'a.{suffix}', coloured(IDS))
  dataset = read_folder(root, labelled='1')
  check(dataset)
  assert dataset.classes == ('a', 'b', 'c')
  np.testing.assert_array_equal(dataset.reader.mask('a'), IDS)


def test_an_unknown_colour_is_refused_with_its_place(tmp_path):
  colours = coloured(IDS)
  colours[2, 3] = 1, 2, 3
  root = make(tmp_path, image=grey, mask=colours)
  with pytest.raises(DataError, match=r'a\.png has the colour \(9, 9, 9\) in row 0, column 3 \(and '
                     r'47 more .*"ignore R G B"'):
    check(read_folder(root, labelled='1'))
  (root / 'classes.txt').write_text('a 0 0 0\nb 255 0 0\nc 0 0 255\nignore 9 9 9\n')
  with pytest.raises(DataError, match=r'colour \(1, 2, 3\) in row 2, column 3'):
    check(read_folder(root, labelled='1'))
  (root / 'classes.txt').write_text('a 0 0 0\nb 255 0 0\nc 255 0 0\n')
  with pytest.raises(DataError, match='255 0 0 to two classes'):
    check(read_folder(root, labelled='1'))


BLACK_WHITE = np.where(IDS == 0, 0, 255).astype(np.uint8)


@pytest.mark.parametrize('mask', [BLACK_WHITE, np.repeat(BLACK_WHITE[..., None], 3, -1)])
def test_black_and_white_masks_are_two_classes(tmp_path, mask):
  root = make(tmp_path, image=grey, mask=mask, classes='rock\npore\n')
  dataset = read_folder(root, labelled='1')
  check(dataset)
  assert "0 is 'rock', 255 is 'pore'" in dataset.note
  np.testing.assert_array_equal(dataset.reader.mask('a'), BLACK_WHITE // 255)
  save(root / 'masks' / 'b.png', BLACK_WHITE // 255)  # one among them holds ids
  reader = read_folder(root, labelled='1').reader
  if mask.ndim == 2:
    assert reader.mask('a').max() == 255
  else:
    with pytest.raises(DataError, match=r'has the colour \(255, 255, 255\)'):
      reader.mask('a')


def test_a_list_that_names_nothing_names_nothing(tmp_path):
  root = make(tmp_path, image=grey)
  (root / 'splits' / '1' / 'labeled.txt').unlink()
  (root / 'splits' / '1').rmdir()
  (root / 'splits' / 'train.txt').write_text('')
  with pytest.raises(DataError, match='1'):
    read_folder(root, labelled='1')
  (root / 'splits' / 'train.txt').unlink()
  dataset = read_folder(root, labelled='1')
  write_lists(dataclasses.replace(dataset, unlabelled=()), tmp_path / 'lists', split='1')
  assert dataset.unlabelled
  assert read_folder(root, labelled='1', lists=tmp_path / 'lists').unlabelled == ()


def test_16_bits_where_white_is_0_are_refused(tmp_path):
  root = make(tmp_path, image=ramp, suffix='tif')
  with Image.open(root / 'images' / 'c.tif') as image:
    image.load()
    image.save(root / 'images' / 'c.tif', tiffinfo={262: 0})
  with pytest.raises(DataError, match=r'c\.tif stores white as 0'):
    check(read_folder(root, labelled='1'))


def test_masks_of_16_bits_are_ids(tmp_path):
  dataset = read_folder(make(tmp_path, image=grey, mask=IDS.astype(np.uint16)), labelled='1')
  check(dataset)
  np.testing.assert_array_equal(dataset.reader.mask('a'), IDS)


def test_what_no_list_names_is_used_and_counted(tmp_path):
  root = make(tmp_path, image=grey)
  (root / 'images' / 'x.heic').write_bytes(b'')
  dataset = read_folder(root, labelled='1')
  assert dataset.unlabelled == ('c', 'd', 'e') and dataset.test == ('f',)
  assert '3 images are in no list; they are used as unlabelled ones' in dataset.note
  assert 'Not read below images/: 1 .heic' in dataset.note
  (root / 'splits' / '1' / 'unlabeled.txt').write_text('c')
  assert '2 images are in no list; they are not used' in read_folder(root, labelled='1').note
  (root / 'splits' / '1' / 'unlabeled.txt').write_text('c\nf')
  with pytest.raises(DataError, match="'f'.*both unlabelled and test"):
    check(read_folder(root, labelled='1'))


def test_copies_that_programs_keep_for_themselves_are_no_images(tmp_path):
  root = make(tmp_path / '.data', image=grey)
  for folder in ('images', 'masks'):
    save(root / folder / '.ipynb_checkpoints' / 'a-checkpoint.png', grey(0))
  assert read_folder(root, labelled='1').unlabelled == ('c', 'd', 'e')
  assert len(find_images(root, recursive=True)) == 6 + 3
  report = convert(root, tmp_path / 'out', layout='masks')
  assert (report.images, report.masks) == (6, 3)


def test_a_suffix_that_is_not_read_is_named(tmp_path):
  root = make(tmp_path, image=grey)
  (root / 'images' / 'a.png').rename(root / 'images' / 'a.gif')
  for line in ('a', 'a.gif'):
    (root / 'splits' / '1' / 'labeled.txt').write_text(line)
    with pytest.raises(DataError, match=r'line 1: .*a\.gif has a suffix that is not read; convert'):
      read_folder(root, labelled='1')
  (root / 'images' / 'a.gif').rename(root / 'images' / 'a.png')
  (root / 'masks' / 'b.png').rename(root / 'masks' / 'b.jpg')
  with pytest.raises(DataError, match=r'b\.jpg is a mask under a suffix that is not read'):
    read_folder(root, labelled='1')


def test_lists_may_lie_elsewhere(tmp_path):
  root = make(tmp_path / 'data', image=grey)
  (root / 'splits').rename(tmp_path / 'lists')
  assert read_folder(root, labelled='1', lists=tmp_path / 'lists').labelled == ('a',)


def test_names_may_end_in_spaces_or_hold_what_cuts_lines(tmp_path):
  root = make(tmp_path / 'data', image=grey)
  for folder, suffix in (('images', 'png'), ('masks', 'png')):
    (root / folder / f'a.{suffix}').rename(root / folder / f'a .{suffix}')
  (root / 'images' / 'c.png').rename(root / 'images' / 'c\u2028d.png')
  (root / 'splits' / '1' / 'labeled.txt').write_text('\ta .png\r\n')
  (root / 'splits' / 'val.txt').write_text('  b.png \r\n\r\n')
  found = read_folder(root, labelled='1')
  assert (found.labelled, found.validation) == (('a ',), ('b',)) and 'c\u2028d' in found.unlabelled
  write_lists(found, tmp_path / 'lists', split='1')
  again = read_folder(root, labelled='1', lists=tmp_path / 'lists')
  assert (again.labelled, again.unlabelled) == (found.labelled, found.unlabelled)
  report = convert(root, tmp_path / 'out', layout='masks')
  assert not report.left_out and report.lists['1/labeled'] == 1


def test_a_class_may_be_called_ignore(tmp_path):
  (tmp_path / 'classes.txt').write_text('ignore\nb 1 2 3\n')
  found = read_classes(tmp_path / 'classes.txt')
  assert found.names == ('ignore', 'b') and found.ignored == ()


def test_names_of_classes_may_hold_a_number(tmp_path):
  (tmp_path / 'classes.txt').write_text('phase 1\nphase 2 9 9 9\n3D print\n')
  assert read_classes(tmp_path / 'classes.txt').names == ('phase 1', 'phase 2', '3D print')


def test_masks_that_nobody_looks_at_are_counted(tmp_path):
  root = make(tmp_path, image=grey)
  assert 'have a mask, which' not in read_folder(root, labelled='1').note
  save(root / 'masks' / 'd.png', IDS)
  assert '1 of them have a mask, which trains nothing' in read_folder(root, labelled='1').note


def test_a_stack_becomes_images_by_the_lines_that_the_documentation_has(tmp_path, monkeypatch):
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'how_to' / 'prepare_images.md'
  code = page.read_text().partition('<!-- stack -->\n```python\n')[2].partition('```')[0]
  volume = np.linspace(-1, 1, 3 * 12 * 16, dtype=np.float32).reshape(3, 12, 16)
  first, *others = map(Image.fromarray, volume)
  first.save(tmp_path / 'VOLUME.tif', save_all=True, append_images=others)
  monkeypatch.chdir(tmp_path)
  exec(code, {})
  found = np.array([np.asarray(Image.open(path)) for path in sorted(
    (tmp_path / 'DIR' / 'images').iterdir())])
  assert found.dtype == np.uint16 and found.shape == volume.shape
  np.testing.assert_allclose(found / 65535, (volume + 1) / 2, atol=0.002)


def test_masks_that_belong_to_no_image_are_said(tmp_path):
  root = make(tmp_path, image=grey)
  (root / 'masks' / 'f.png').rename(root / 'masks' / 'F.png')
  save(root / 'masks' / 'c.jpg', grey(0))
  note = read_folder(root, labelled='1').note
  assert '1 masks have the name of no image, such as' in note and 'F.png: a mask is called' in note
  assert '1 masks are not read, such as' in note and 'c.jpg; convert' in note
  with pytest.raises(DataError, match=r'(?s)3 labelled images are wanted, but 1 .*F\.png'):
    read_folder(root, labelled='3')
  (root / 'splits' / 'train.txt').write_text('a')
  with pytest.raises(DataError, match=r'Only the 1 of .*train\.txt are drawn from'):
    read_folder(root, labelled='3')


def test_a_missing_list_of_validation_images_is_explained(tmp_path):
  root = make(tmp_path, image=grey)
  (root / 'splits' / 'val.txt').unlink()
  with pytest.raises(DataError, match=r'val\.txt does not exist; .* such as f, .* the 3 that have'):
    read_folder(root, labelled='1')


def test_images_that_are_shown_turned_are_said(tmp_path):
  root = make(tmp_path, image=grey, suffix='jpg')
  exif = Image.Exif()
  exif[0x0112] = 3
  Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / 'images' / 'a.jpg', exif=exif)
  dataset = read_folder(root, labelled='1')
  assert '1 of 2 images with masks are to be shown turned (EXIF), such as' in dataset.note
  check(dataset)
  save(root / 'masks' / 'a.png', IDS.T)
  with pytest.raises(DataError, match='if EXIF data turn the image, .* save it upright; else exp'):
    check(read_folder(root, labelled='1'))


def test_all_bad_files_are_named_at_once(tmp_path):
  root = make(tmp_path, image=grey)
  for id in 'cd':
    (root / 'images' / f'{id}.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  with pytest.raises(DataError, match=r'(?s)2 files cannot be used:\n  .*c\.png.*\n  .*d\.png'):
    check(read_folder(root, labelled='1'))


def test_a_palette_in_another_order_than_the_classes_is_refused(tmp_path):
  root = make(tmp_path, image=grey)
  for palette in ([0, 0, 0, 255, 0, 0, 0, 0, 255], [7, 7, 7, 8, 8, 8, 9, 9, 9]):
    mask = Image.fromarray(IDS)
    mask.putpalette(palette + [6] * (768 - len(palette)))
    mask.save(root / 'masks' / 'a.png')
    np.testing.assert_array_equal(read_folder(root, labelled='1').reader.mask('a'), IDS)
  mask.putpalette([0, 0, 0, 0, 0, 255, 255, 0, 0] + [6] * 759)
  mask.save(root / 'masks' / 'a.png')
  with pytest.raises(DataError, match=r'a\.png .*index 1 the colour of class 2 in classes\.txt'):
    check(read_folder(root, labelled='1'))
  (root / 'classes.txt').write_text('a 0 0 0\nc 0 0 255\nignore 255 0 0\n')
  with pytest.raises(DataError, match=r'index 2 the colour of ignored pixels in classes\.txt'):
    check(read_folder(root, labelled='1'))


def test_a_palette_with_some_colours_of_other_classes_is_told(tmp_path):
  root = make(tmp_path, image=grey)
  mask = Image.fromarray(IDS)
  mask.putpalette([0, 0, 0, 0, 0, 255, 6, 6, 6] + [6] * 759)
  mask.save(root / 'masks' / 'a.png')
  dataset = read_folder(root, labelled='1')
  assert 'a.png has a palette that gives index 1 the colour of class 2' in dataset.note
  np.testing.assert_array_equal(dataset.reader.mask('a'), IDS)


def test_a_palette_that_tells_nothing_is_no_matter(tmp_path):
  for classes, colour in (('a\nb\nc', 128), ('a 0 0 0\nb 255 0 0\nc 0 0 255', 0)):
    root = make(tmp_path / str(colour), image=grey, classes=classes)
    mask = Image.fromarray(IDS)
    mask.putpalette([0, 0, 0, 0, colour, 0, colour, 0, 0] + [0] * 759)  # VOC's 2 and 1
    mask.save(root / 'masks' / 'a.png')
    np.testing.assert_array_equal(read_folder(root, labelled='1').reader.mask('a'), IDS)


def test_images_kept_for_the_end_stay_out_with_lists_of_another_folder(tmp_path):
  root, lists = make(tmp_path / 'data', image=grey), tmp_path / 'lists'
  (lists / '1').mkdir(parents=True)
  (lists / 'val.txt').write_text('b')
  (lists / '1' / 'labeled.txt').write_text('a')
  dataset = read_folder(root, labelled='1', lists=lists)
  assert dataset.test == ('f',) and 'f' not in dataset.unlabelled
  assert f'{lists} has no test.txt: the 1 images of {root / "splits"} stay out.' in dataset.note
  (lists / 'test.txt').write_text('')  # said to be empty
  dataset = read_folder(root, labelled='1', lists=lists)
  assert dataset.test == () and 'f' in dataset.unlabelled and 'has no test.txt' not in dataset.note


@pytest.mark.parametrize('name, meant', [
  ('unlabelled', '1/unlabeled'), ('Test', 'test'), ('validation', 'val'),
  ('labelled', '1/labeled')])
def test_lists_under_a_name_that_is_not_read_are_refused(tmp_path, name, meant):
  root = make(tmp_path, image=grey)
  right = root / 'splits' / f'{meant}.txt'
  if right.exists():
    wrong = right.rename(right.with_name(f'{name}.txt'))
  else:
    wrong = right.with_name(f'{name}.txt')
    wrong.write_text('c')
  with pytest.raises(DataError, match=f'{wrong} is no name of a list .* call it {right.name}'):
    read_folder(root, labelled='1')
  wrong.rename(right)
  read_folder(root, labelled='1')


@pytest.mark.parametrize('text', [
  '2 road\n0 sky\n1 car\n', 'road 2\nsky 0\ncar 1\n', '64 128 64\tanimal\nroad\n',
  'a #ff0000\nb #00ff00\n'])
def test_numbers_of_classes_that_would_be_ignored_are_refused(tmp_path, text):
  path = tmp_path / 'classes.txt'
  path.write_text(text)
  with pytest.raises(DataError, match='numbers its lines|has a colour that is not read'):
    read_classes(path)


def test_names_that_end_in_ascending_numbers_are_names(tmp_path):
  path = tmp_path / 'classes.txt'
  path.write_text('phase 1\nphase 2\nphase 3\n')
  assert read_classes(path).names == ('phase 1', 'phase 2', 'phase 3')


def test_files_that_are_scored_and_train_under_another_name_are_told(tmp_path):
  root = make(tmp_path, image=grey)
  dataset = read_folder(root, labelled='1')
  assert of_twins(dataset) == []  # all of one size or nearly so
  shutil.copyfile(root / 'images' / 'b.png', root / 'images' / 'd.png')
  shutil.copyfile(root / 'images' / 'f.png', root / 'images' / 'a.png')
  said, = of_twins(read_folder(root, labelled='1'))
  assert said.startswith("2 images that are scored train as well under another name: validation "
                         "image 'b' and 'd' are the same file")
