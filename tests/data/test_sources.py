import io
import os
import pathlib
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
from gta_jax.data.sources import DataError, check

CLASSES = 'road 128 64 128\ntraffic light\ncar 64 0 128\n'


def jpeg(path, size=(12, 16), colour=(200, 30, 60)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size[::-1], colour).save(path, quality=95)


def mask(path, ids, size=(12, 16), palette=False):
  path.parent.mkdir(parents=True, exist_ok=True)
  array = np.resize(np.array(ids, np.uint8), size)
  image = Image.fromarray(array)
  if palette:
    image.putpalette([7] * 768)  # One colour for all: only indices can tell the classes apart.
  image.save(path)


def write_list(root, name, ids, end='\n'):
  path = root / 'splits' / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(end.join(ids).encode())


@pytest.fixture
def folder(tmp_path):
  """Eight images: a, b labelled, c and h validation, g test, the others without masks but d."""
  for id in 'abcdefgh':
    jpeg(tmp_path / 'images' / f'{id}.jpg')
  for id in 'abcdh':
    mask(tmp_path / 'masks' / f'{id}.png', [0, 1, 2, 255])
  (tmp_path / 'classes.txt').write_text(CLASSES)
  write_list(tmp_path, 'val.txt', 'ch')
  write_list(tmp_path, 'test.txt', 'g')
  write_list(tmp_path, '2/labeled.txt', 'ab')
  return tmp_path


def test_folder_gives_every_image_its_role(folder):
  dataset = read_folder(folder, labelled='2')
  check(dataset)
  assert dataset.labelled == ('a', 'b')
  assert dataset.unlabelled == ('d', 'e', 'f')
  assert dataset.validation == ('c', 'h')
  assert dataset.classes == ('road', 'traffic light', 'car')
  assert dataset.test == ('g',) and '3 images are in no list; they are used' in dataset.note
  assert dataset.palette[[0, 2]].tolist() == [[128, 64, 128], [64, 0, 128]]
  assert dataset.reader.has_mask('a') and not dataset.reader.has_mask('e')
  assert dataset.reader.size('a') == (12, 16) == dataset.reader.image('a').shape[:2]


def test_an_unlabelled_list_is_kept_to(folder):
  write_list(folder, '2/unlabeled.txt', 'fd')
  assert read_folder(folder, labelled='2').unlabelled == ('f', 'd')


def test_lists_may_have_extensions_blank_lines_and_crlf(folder):
  jpeg(folder / 'images' / 'city' / 'x.1.JPG')
  mask(folder / 'masks' / 'city' / 'x.1.png', [0])
  write_list(folder, '2/labeled.txt', ['\ufeffa.jpg', '', ' city/x.1 ', 'b.png', ''], end='\r\n')
  dataset = read_folder(folder, labelled='2')
  check(dataset)
  assert dataset.labelled == ('a', 'city/x.1', 'b')


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


def broken(folder, name, data):
  (folder / name).write_bytes(data)


def cut(path, end):
  path.write_bytes(path.read_bytes()[:end])


def deep_mask(folder):
  cv2.imwrite(str(folder / 'masks' / 'a.png'), np.full((12, 16), 256, np.uint16))


def one_bit_mask(folder):
  Image.new('1', (16, 12)).save(folder / 'masks' / 'a.png')


@pytest.mark.parametrize(('damage', 'message'), [
    (lambda f: cut(f / 'images' / 'f.jpg', -40), r'f\.jpg is truncated.*copy'),
    (lambda f: cut(f / 'images' / 'f.jpg', 0), r'f\.jpg is no JPEG'),
    (lambda f: cut(f / 'masks' / 'a.png', -20), r'a\.png is truncated.*copy'),
    (lambda f: broken(f, 'images/e.jpg', b'hello'), r'e\.jpg is no JPEG.*convert'),
    (lambda f: broken(f, 'images/e.jpg', b'\xff\xd8\xff\xda\xff\xd9'), r'e\.jpg is damaged'),
    (lambda f: broken(f, 'masks/a.png', b'hello'), r'a\.png is no JPEG'),
    (lambda f: (f / 'images' / 'f.jpg').unlink(), r'f\.jpg cannot be read.*restore'),
    (lambda f: jpeg(f / 'images' / 'b.jpg', size=(11, 16)), r'b\.png has height.*export'),
    (lambda f: mask(f / 'masks' / 'c.png', [0, 3, 77]), r"'c' holds \[3, 77\].*0 to 2.*renumber"),
    (deep_mask, r'a\.png holds 256; a mask holds class ids'),
    (one_bit_mask, r'a\.png is grey with 1 bits.*export'),
])
def test_check_refuses_damaged_files(folder, damage, message):
  dataset = read_folder(folder, labelled='2')
  check(dataset)
  damage(folder)
  with pytest.raises(DataError, match=message):
    check(dataset)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda f: write_list(f, 'val.txt', ['c', 'a']), "'a'.*both labelled and validation.*remove"),
    (lambda f: write_list(f, '2/unlabeled.txt', 'bd'), "'b'.*both labelled and unlabelled"),
    (lambda f: write_list(f, '2/unlabeled.txt', 'dc'), "'c'.*both unlabelled and validation"),
    (lambda f: write_list(f, '2/labeled.txt', ['', '']), 'labelled split.*is empty'),
    (lambda f: write_list(f, 'val.txt', []), 'validation split.*is empty'),
    (lambda f: write_list(f, '2/labeled.txt', 'ae'), r"'e'.*no mask; add masks/e\.png"),
])
def test_check_refuses_wrong_roles(folder, change, message):
  change(folder)
  with pytest.raises(DataError, match=message):
    check(read_folder(folder, labelled='2'))


def all_masks(folder, ids, of='abcdh'):
  for id in of:
    mask(folder / 'masks' / f'{id}.png', ids)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda f: all_masks(f, [255], of='ab'), r'All pixels of the 2 labelled masks.*255 \(ignore\)'),
    (lambda f: all_masks(f, [0, 255]), r"the 2 labelled masks of .* hold 'road' alone.*0 and 255"),
    (lambda f: all_masks(f, [0], of='ch'), r"the 2 validation masks of .* hold 'road' alone"),
    (lambda f: all_masks(f, [0, 1]), r"No labelled or validation mask .* 'car' \(class 2\)"),
])
def test_masks_from_which_nothing_can_be_learnt_are_refused(folder, change, message):
  change(folder)
  dataset = read_folder(folder, labelled='2')
  with pytest.raises(DataError, match=message):
    sources.check_classes(dataset, check(dataset))


def test_masks_that_are_odd_and_possible_are_named(folder):
  dataset = read_folder(folder, labelled='2')
  assert sources.check_classes(dataset, check(dataset)) == []
  all_masks(folder, [255], of='a')
  all_masks(folder, [0, 1], of='b')
  all_masks(folder, [0, 2], of='ch')
  notes = sources.check_classes(dataset, check(dataset))
  assert [note.partition(' of ')[0] for note in notes] == [
    '1', "No validation mask holds 'traffic light': it is not scored.",
    "No labelled mask holds 'car': it is never learnt."]
  assert "such as 'a'" in notes[0]


@pytest.mark.parametrize(('change', 'message'), [
    (lambda f: (f / 'splits' / 'val.txt').unlink(), r'val\.txt cannot be read.*write it'),
    (lambda f: (f / 'splits' / '2' / 'labeled.txt').unlink(), r'labeled\.txt cannot be read'),
    (lambda f: (f / 'classes.txt').unlink(), r'classes\.txt cannot be read'),
    (lambda f: (f / 'images').rename(f / 'pictures'), r'images does not exist.*holds images/'),
    (lambda f: (f / 'masks').rename(f / 'labels'), r'masks does not exist'),
    (lambda f: write_list(f, 'val.txt', ['c', 'nobody']), r"val\.txt, line 2.*'nobody'.*remove"),
    (lambda f: write_list(f, 'val.txt', ['../images/c']), r"val\.txt, line 1: no image below"),
    (lambda f: write_list(f, 'val.txt', [str(f / 'images' / 'c.jpg')]), r'line 1: no image below'),
    (lambda f: write_list(f, 'val.txt', 'chc'), r"line 3: 'c' is on line 1 already"),
    (lambda f: broken(f, 'splits/val.txt', b'\xff\xfe\x00c'), r'val\.txt is not UTF-8'),
    (lambda f: jpeg(f / 'images' / 'c.jpeg'), r"c\.jpeg and .*c\.jpg have the same id 'c'"),
    (lambda f: broken(f, 'classes.txt', b''), 'names 0 classes'),
    (lambda f: broken(f, 'classes.txt', b'sky\nsky'), "line 2: 'sky' is named twice"),
    (lambda f: broken(f, 'classes.txt', b'sky 1 2 256'), 'colour above 255'),
])
def test_reading_refuses_wrong_lists(folder, change, message):
  change(folder)
  with pytest.raises(DataError, match=message):
    read_folder(folder, labelled='2')


def test_unknown_split_names_the_known(folder):
  with pytest.raises(DataError, match=r'half does not exist; name one of.*\(2\)'):
    read_folder(folder, labelled='half')
  with pytest.raises(DataError, match='does not exist'):
    read_folder(folder, labelled='../splits/2')


def test_truncation_is_seen_while_training(folder):
  dataset = read_folder(folder, labelled='2')
  cut(folder / 'images' / 'a.jpg', -30)
  with pytest.raises(DataError, match=r'a\.jpg is truncated'):
    dataset.reader.image('a')


def test_a_thumbnail_does_not_hide_truncation():
  whole = b'\xff\xd8' + b'\xff\xda thumbnail \xff\xd9' + b'\xff\xda image \xff\xd9 camera trailer'
  files.check_whole(whole, whole, 'x.jpg')
  with pytest.raises(DataError, match='truncated'):
    files.check_whole(whole, whole[:whole.index(b'image')], 'x.jpg')


@pytest.fixture
def many(tmp_path):
  """Forty images; class 1 in five of them, class 2 in one, class 3 in none."""
  for index in range(40):
    jpeg(tmp_path / 'images' / f'{index:02}.jpg', size=(4, 4))
    ids = [0] + [1] * (index % 8 == 0) + [2] * (index == 17)
    mask(tmp_path / 'masks' / f'{index:02}.png', ids, size=(4, 4))
  (tmp_path / 'classes.txt').write_text('zero\none\ntwo\n')
  write_list(tmp_path, 'val.txt', ['38', '39'])
  return tmp_path


@pytest.mark.parametrize('seed', range(4))
def test_drawn_subset_covers_the_classes_and_says_so(many, seed):
  dataset = read_folder(many, labelled='3', seed=seed)
  check(dataset)
  assert len(dataset.labelled) == 3 and '17' in dataset.labelled
  assert any(int(id) % 8 == 0 for id in dataset.labelled)
  assert len(dataset.unlabelled) == 35 and dataset.validation == ('38', '39')
  assert 'Drew 3 of 38' in dataset.note and f'seed {seed}' in dataset.note
  assert 'not among them' not in dataset.note


def test_drawn_subsets_are_seeded_and_nested(many):
  draw = lambda count, seed: read_folder(many, labelled=count, seed=seed).labelled  # noqa: E731
  assert draw('10', 1) == draw('10', 1) != draw('10', 2)
  assert draw('10', 1)[:4] == draw('4', 1)


def test_drawing_names_what_it_cannot_cover_and_keeps_to_the_training_list(many):
  (many / 'classes.txt').write_text('zero\none\ntwo\nthree\n')
  assert 'not among them: three.' in read_folder(many, labelled='9').note
  write_list(many, 'train.txt', ['01', '02', '17', '39'])
  dataset = read_folder(many, labelled='2')
  assert set(dataset.labelled) <= {'01', '02', '17'} and '17' in dataset.labelled
  assert 'not among them: one, three.' in dataset.note
  with pytest.raises(DataError, match='4 labelled images are wanted, but 3'):
    read_folder(many, labelled='4')


def test_default_palette_is_vocs():
  assert sources.default_palette(5).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0],
                                                 [0, 0, 128]]
  assert sources.default_palette(20)[15].tolist() == [192, 128, 128]


def test_camvid_is_sound():
  camvid = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'camvid'
  if not camvid.exists():
    pytest.skip('CamVid is not at hand.')
  dataset = read_folder(camvid, labelled='46')
  check(dataset)
  assert [len(ids) for ids in (dataset.labelled, dataset.unlabelled, dataset.validation)] == [
      46, 321, 101]
  assert len(dataset.classes) == 11 and dataset.classes[3] == 'road'


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
