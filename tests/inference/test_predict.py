import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from gta_jax.data.files import IMAGE_SUFFIXES, DataError, decode_mask
from gta_jax.inference.predict import ImageReader, find_images, predict_folder
from gta_jax.ops.resizing import resize_bilinear
from tests import tiny

NETWORK = tiny.linear_network()
VARIABLES = NETWORK.init(jax.random.key(0), (8, 8))
OPTIONS = {'classes': ('a', 'b', 'c'), 'palette': np.eye(3, dtype=np.uint8) * 200,
           'batch_size': 2, 'multiple': 8, 'crop': 8}


def write(path, size=(9, 14), seed=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(path)


def run(images, out, **options):
  return predict_folder(NETWORK, VARIABLES, images=images, out=out, **OPTIONS | options)


def test_masks_of_all_formats_and_sizes_have_their_images_names_and_sizes(tmp_path):
  images, out = tmp_path / 'in', tmp_path / 'deep' / 'out'
  for i, suffix in enumerate((*IMAGE_SUFFIXES, '.JPG')):
    write(images / f'{i}.v2{suffix}', size=(9 + i % 2, 14), seed=i)
  (images / 'notes.txt').write_text('not an image')
  written = run(images, out)
  assert sorted(path.name for path in written) == [
    f'{i}.v2.png' for i in range(len(IMAGE_SUFFIXES) + 1)]
  reader = ImageReader(find_images(images))
  for path in written:
    image = reader.image(path.stem)
    logits = resize_bilinear(tiny.low_logits(NETWORK, VARIABLES, image[None]), image.shape[:2])
    labels = decode_mask(path.read_bytes(), str(path))
    np.testing.assert_array_equal(labels, logits.argmax(-1)[0])
    with Image.open(out / 'overlays' / f'{path.stem}.jpg') as overlay:
      assert overlay.size[::-1] == image.shape[:2]
  assert (out / 'overlays' / 'legend.png').exists()


def test_without_overlays_there_are_masks_only(tmp_path):
  write(tmp_path / 'in' / 'a.png')
  run(tmp_path / 'in', tmp_path / 'out', overlays=False)
  assert [path.name for path in (tmp_path / 'out').iterdir()] == ['a.png']


@pytest.mark.parametrize(('files', 'out', 'message'), [
  ([], 'out', 'holds no images'),
  (['a.png', 'a.jpg'], 'out', 'a.jpg and a.png .* rename one'),
  (['a.png'], 'in', 'outside'),
  (['a.png'], 'in/out', 'outside'),
  (['a.png'], '', 'outside'),
  (['a.png'], 'file', 'file is no folder'),
  (['a.png'], 'file/out', 'file is no folder'),
])
def test_refuses_before_any_work(tmp_path, files, out, message):
  images = tmp_path / ('overlays' if not out else 'in')
  images.mkdir()
  (tmp_path / 'file').touch()
  for name in files:
    write(images / name)
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(DataError, match=message):
    run(images, tmp_path / out)
  assert sorted(tmp_path.rglob('*')) == before


def test_refuses_a_missing_folder(tmp_path):
  with pytest.raises(DataError, match='nowhere is not a folder'):
    run(tmp_path / 'nowhere', tmp_path / 'out')


def test_a_damaged_image_is_named_and_what_was_written_stays(tmp_path):
  images, out = tmp_path / 'in', tmp_path / 'out'
  for name in 'abcd':
    write(images / f'{name}.bmp', size=(40, 40))
  whole = (images / 'd.bmp').read_bytes()
  (images / 'd.bmp').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(DataError, match=r'd\.bmp'):
    run(images, out)
  assert sorted(path.name for path in out.glob('*.png')) == ['a.png', 'b.png']


def test_a_file_that_is_no_image_is_refused_before_work(tmp_path):
  write(tmp_path / 'in' / 'a.png')
  (tmp_path / 'in' / 'b.jpg').write_text('no image')
  with pytest.raises(DataError, match=r'b\.jpg is damaged and cannot be decoded'):
    run(tmp_path / 'in', tmp_path / 'out')
  assert not list((tmp_path / 'out').glob('*.png'))


def test_deep_pixels_are_refused_and_shallow_ones_converted(tmp_path):
  Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(tmp_path / 'deep.tif')
  Image.fromarray(np.full((4, 5), 40, np.uint8)).save(tmp_path / 'grey.bmp')
  reader = ImageReader(find_images(tmp_path))
  with pytest.raises(DataError, match='8 bits'):
    reader.image('deep')
  assert (reader.image('grey') == np.full((4, 5, 3), 40)).all()


def test_scale_reaches_the_network(tmp_path):
  seen = []

  def encode(variables, images, **options):
    seen.append(images.shape)
    return NETWORK.encode(variables, images, **options)

  write(tmp_path / 'in' / 'a.png', size=(32, 48))
  network = dataclasses.replace(NETWORK, encode=encode)
  (path,) = predict_folder(network, VARIABLES, images=tmp_path / 'in', out=tmp_path / 'out',
                           image_scale=0.5, **OPTIONS)
  assert seen == [(2, 16, 24, 3)]
  assert decode_mask(path.read_bytes(), '').shape == (32, 48)
