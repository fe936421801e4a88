import csv
import dataclasses
import errno
import os
import time

import jax
import numpy as np
import pytest
from PIL import Image

from gta_jax.data import locking
from gta_jax.data.files import IMAGE_SUFFIXES, DataError, decode_image, decode_mask
from gta_jax.inference import begun_prediction, image_folder, predict
from gta_jax.inference.image_folder import ImageFolder, find_images
from gta_jax.inference.model import Model
from gta_jax.inference.predict import predict_folder
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


MODEL = Model(NETWORK, {'one': VARIABLES, 'other': NETWORK.init(jax.random.key(1), (8, 8))},
              **OPTIONS)


def run(images, out, **options):
  return predict_folder(MODEL, images=images, out=out, **options).written


def test_masks_of_all_formats_and_sizes_have_their_images_names_and_sizes(tmp_path):
  images, out = tmp_path / 'in', tmp_path / 'deep' / 'out'
  for i, suffix in enumerate((*IMAGE_SUFFIXES, '.JPG')):
    write(images / f'{i}.v2{suffix}', size=(9 + i % 2, 14), seed=i)
  (images / 'notes.txt').write_text('not an image')
  written = run(images, out)
  assert sorted(path.name for path in written) == [
    f'{i}.v2.png' for i in range(len(IMAGE_SUFFIXES) + 1)]
  reader = ImageFolder(find_images(images))
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
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a.png', 'areas.csv']


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


def test_results_never_take_the_place_of_data(tmp_path):
  for name in ('images', 'masks', 'splits', 'new'):
    write(tmp_path / 'data' / name / 'a.png')
  (tmp_path / 'data' / 'classes.txt').write_text('rock\nvein\n')
  write(tmp_path / 'in' / 'a.png')
  before = (tmp_path / 'data' / 'masks' / 'a.png').read_bytes()
  for out in ('data', 'data/masks', 'data/masks/more', 'data/splits'):
    with pytest.raises(DataError, match='the data folder'):
      run(tmp_path / 'in', tmp_path / out, overwrite=True)
  assert (tmp_path / 'data' / 'masks' / 'a.png').read_bytes() == before
  run(tmp_path / 'data' / 'images', tmp_path / 'data' / 'predicted')


def test_what_is_passed_over_or_lies_turned_is_said(tmp_path):
  write(tmp_path / 'in' / 'a.png')
  (tmp_path / 'in' / 'b.heic').touch()
  write(tmp_path / 'in' / 'more' / 'c.png')
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.new('RGB', (9, 6)).save(tmp_path / 'in' / 'd.jpg', exif=exif)
  found = image_folder.check_folders(tmp_path / 'in', tmp_path / 'out')
  turned, others, below = image_folder.remarks(found, tmp_path / 'in', recursive=False)
  assert '1 images are to be shown turned (EXIF)' in turned and 'd.jpg' in turned
  assert '1 .heic' in others and '1 images in folders' in below and '--recursive' in below
  found = image_folder.check_folders(tmp_path / 'in', tmp_path / 'out', recursive=True)
  assert len(image_folder.remarks(found, tmp_path / 'in', recursive=True)) == 2


def test_refuses_a_missing_folder(tmp_path):
  with pytest.raises(DataError, match='nowhere is not a folder'):
    run(tmp_path / 'nowhere', tmp_path / 'out')


def test_what_cannot_be_read_is_left_out_and_told(tmp_path):
  images, out = tmp_path / 'in', tmp_path / 'out'
  for name in 'abcd':
    write(images / f'{name}.bmp', size=(40, 40))
  whole = (images / 'b.bmp').read_bytes()
  (images / 'b.bmp').write_bytes(whole[: len(whole) // 2])
  (images / 'c.bmp').write_text('no image')
  written, skipped = predict_folder(MODEL, images=images, out=out)
  assert [path.name for path in written] == ['a.png', 'd.png']
  assert list(skipped) == ['b', 'c'] and 'c.bmp is no JPEG' in skipped['c']
  assert not list(out.rglob('*.partial'))


def test_what_is_no_matter_of_the_file_ends_the_prediction_after_what_could_be_read(
  tmp_path, monkeypatch
):
  def fail(data, path, pixel_range):
    if path.endswith('b.png'):
      raise MemoryError('no room')
    return decode_image(data, path, pixel_range)

  for name in 'abcdefgh':
    write(tmp_path / 'in' / f'{name}.png')
  monkeypatch.setattr(image_folder, 'decode_image', fail)
  with pytest.raises(MemoryError, match='no room'):
    run(tmp_path / 'in', tmp_path / 'out')
  assert [path.name for path in (tmp_path / 'out').glob('*.png')] == ['a.png']


def test_an_interrupted_prediction_keeps_what_is_done_and_goes_on(tmp_path, monkeypatch):
  def interrupt(out, id, *rest):
    if id == 'd':
      raise KeyboardInterrupt
    write_pictures(out, id, *rest)

  for name in 'abcde':
    write(tmp_path / 'in' / f'{name}.png')
  write_pictures = predict._write_pictures
  monkeypatch.setattr(predict, '_write_pictures', interrupt)
  out = tmp_path / 'out'
  with pytest.raises(KeyboardInterrupt, match='3 of 5 images are done, .* the same command goes'):
    run(tmp_path / 'in', out)
  rows = list(csv.reader((out / 'areas.csv').read_text().splitlines()))
  assert [row[0] for row in rows] == ['image', 'a', 'b', 'c']
  assert sorted(path.name for path in out.glob('*.png')) == ['a.png', 'b.png', 'c.png']
  for other in ({'network': 'other'}, {'confidence': True}):
    with pytest.raises(DataError, match='there already'):
      run(tmp_path / 'in', out, **other)
  again = []
  monkeypatch.setattr(predict, '_write_pictures', lambda out, id, *rest: (
    again.append(id), write_pictures(out, id, *rest)))
  write(tmp_path / 'in' / 'b.png', seed=7)  # after its mask
  assert [path.stem for path in run(tmp_path / 'in', out)] == list('abcde')
  assert again == list('abcde')  # b has changed, of c and d one was missing.
  monkeypatch.undo()
  run(tmp_path / 'in', tmp_path / 'new')
  for path in (tmp_path / 'new').rglob('*.*'):
    assert (out / path.relative_to(tmp_path / 'new')).read_bytes() == path.read_bytes()
  with pytest.raises(DataError, match='there already'):
    run(tmp_path / 'in', out)


def test_batches_that_are_done_are_left_out_and_old_results_do_not_count(tmp_path, monkeypatch):
  for name in 'abcde':
    write(tmp_path / 'in' / f'{name}.png')
  out, seen = tmp_path / 'out', []
  write_pictures = predict._write_pictures

  def interrupt(out, id, *rest):
    if id == 'd' and 'd' not in seen:
      seen.append(id)
      raise KeyboardInterrupt
    seen.append(id)
    write_pictures(out, id, *rest)

  run(tmp_path / 'in', out, network='other')
  monkeypatch.setattr(predict, '_write_pictures', interrupt)
  with pytest.raises(KeyboardInterrupt, match='the same command without --overwrite goes on'):
    run(tmp_path / 'in', out, overwrite=True)
  seen[:] = ['d']
  run(tmp_path / 'in', out)
  assert seen == ['d', 'c', 'd', 'e']  # a, b is a batch, which was written anew before.


def test_folders_maps_probabilities_and_areas(tmp_path):
  images, out = tmp_path / 'in', tmp_path / 'out'
  write(images / 'a.png')
  write(images / 'deep' / 'a.png', seed=1)
  assert len(run(images, tmp_path / 'flat')) == 1
  options = {'recursive': True, 'confidence': True, 'probabilities': True, 'network': 'other'}
  run(images, out, **options)
  image = ImageFolder(find_images(images, recursive=True)).image('deep/a')
  expected = MODEL.probabilities(image, network='other')
  stored = np.load(out / 'probabilities' / 'deep' / 'a.npy')
  np.testing.assert_allclose(stored, expected, atol=1e-3)
  with Image.open(out / 'confidence' / 'deep' / 'a.png') as picture:
    np.testing.assert_allclose(np.asarray(picture), 255 * expected.max(-1), atol=0.51)
  labels = decode_mask((out / 'deep' / 'a.png').read_bytes(), '')
  rows = list(csv.reader((out / 'areas.csv').read_text().splitlines()))
  assert rows[0] == ['image', 'pixels', 'a', 'b', 'c'] and [row[0] for row in rows[1:]] == [
    'a', 'deep/a']
  assert list(map(int, rows[2][2:])) == np.bincount(labels.ravel(), minlength=3).tolist()


def test_nothing_is_overwritten_unless_asked(tmp_path):
  write(tmp_path / 'in' / 'a.png')
  out = tmp_path / 'out'
  run(tmp_path / 'in', out)
  (out / 'a.png').write_text('mine')
  with pytest.raises(DataError, match='there already.*--overwrite'):
    run(tmp_path / 'in', out)
  assert (out / 'a.png').read_text() == 'mine'
  run(tmp_path / 'in', out, overwrite=True)
  assert decode_mask((out / 'a.png').read_bytes(), '').shape == (9, 14)


def test_deep_pixels_are_refused_and_shallow_ones_converted(tmp_path):
  Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(tmp_path / 'deep.tif')
  Image.fromarray(np.full((4, 5), 40, np.uint8)).save(tmp_path / 'grey.bmp')
  reader = ImageFolder(find_images(tmp_path))
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
  model = Model(network, {'one': VARIABLES}, image_scale=0.5, **OPTIONS)
  (path,), _ = predict_folder(model, images=tmp_path / 'in', out=tmp_path / 'out')
  assert seen == [(1, 16, 24, 3)]  # One image is not padded to a batch.
  assert decode_mask(path.read_bytes(), '').shape == (32, 48)


def test_old_results_are_written_anew_whatever_their_time_and_damaged_ones_too(
  tmp_path, monkeypatch
):
  for name in 'abc':
    write(tmp_path / 'in' / f'{name}.png')
  out, expected = tmp_path / 'out', tmp_path / 'expected'
  run(tmp_path / 'in', out, network='other')
  run(tmp_path / 'in', expected)
  for path in out.rglob('*.*'):  # of a machine whose clock is ahead
    os.utime(path, (2**32, 2**32))
  write_pictures = predict._write_pictures

  def interrupt(out, id, *rest):
    if id == 'c':
      raise KeyboardInterrupt
    write_pictures(out, id, *rest)

  monkeypatch.setattr(predict, '_write_pictures', interrupt)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / 'in', out, overwrite=True)
  monkeypatch.undo()
  assert (out / 'a.png').read_bytes() == (expected / 'a.png').read_bytes()
  (out / 'a.png').write_bytes(b'')
  (out / 'c.png').unlink()
  run(tmp_path / 'in', out)
  for name in 'abc':
    assert (out / f'{name}.png').read_bytes() == (expected / f'{name}.png').read_bytes()


def test_one_prediction_at_a_time_in_a_folder(tmp_path):
  write(tmp_path / 'in' / 'a.png')
  out = tmp_path / 'out'
  out.mkdir()
  with begun_prediction.recorded(out, {}, anew=True), pytest.raises(
      DataError, match='out is in use by another prediction; wait'):
    run(tmp_path / 'in', out)
  assert [path.name for path in run(tmp_path / 'in', out)] == ['a.png']


def test_a_folder_that_cannot_be_locked_is_said_and_used(tmp_path, monkeypatch, capsys):
  def refuse(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  write(tmp_path / 'in' / 'a.png')
  monkeypatch.setattr(locking.fcntl, 'flock', refuse)
  assert len(run(tmp_path / 'in', tmp_path / 'out')) == 1
  assert 'cannot be locked (No locks available): start no second' in capsys.readouterr().err


def test_images_of_one_padded_size_share_batches(tmp_path, monkeypatch):
  images = tmp_path / 'in'
  # Padded to 16 x 16, and one to 16 x 24 whose size lies between theirs.
  for i, size in enumerate([(9, 12), (10, 11), (9, 14), (9, 20), (10, 16), (11, 9)]):
    write(images / f'{i}.png', size=size)
  reader = ImageFolder(find_images(images))
  chunks = predict._chunks(reader, MODEL, lambda *_: None)
  assert [len(ids) for ids in chunks] == [2, 2, 1, 1] and {MODEL.padded(reader.size(id))
                                                           for id in chunks[-1]} == {(16, 24)}
  assert {id for ids in chunks for id in ids} == {*reader.paths}


def test_a_mask_there_that_is_of_another_model_is_written_anew(tmp_path, monkeypatch):
  images, out = tmp_path / 'in', tmp_path / 'out'
  for i in range(3):
    write(images / f'{i}.png', seed=i)
  done = run(images, out)
  done[0].write_bytes(done[0].read_bytes())
  Image.fromarray(np.full((9, 14), 255, np.uint8)).save(done[0])  # void, by hand
  areas = predict._areas(out, {'0', '1'}, MODEL)
  assert list(areas) == ['1'] and len(areas['1']) == 3


def test_what_cannot_be_opened_is_not_called_damaged(tmp_path):
  images = tmp_path / 'in'
  write(images / 'a.png')
  (images / 'b.png').symlink_to('nowhere.png')
  skipped = predict_folder(MODEL, images=images, out=tmp_path / 'out').skipped
  assert 'b.png cannot be read (No such file' in skipped['b']


def test_links_without_a_file_and_links_set_anew_are_not_done(tmp_path):
  out, images = tmp_path / 'out', {id: tmp_path / f'{id}.png' for id in ('kept', 'lost', 'moved')}
  out.mkdir()
  for name in ('one', 'two'):
    (tmp_path / name).write_text(name)
  results = {id: [out / f'{id}.png'] for id in images}
  with pytest.raises(KeyboardInterrupt), begun_prediction.recorded(out, {}, anew=True):
    for id, path in images.items():
      path.symlink_to(tmp_path / ('nowhere' if id == 'lost' else 'one'))
    time.sleep(0.02)  # of files that a clock tells apart
    for id in images:
      (out / f'{id}.png').touch()
    raise KeyboardInterrupt
  assert begun_prediction.done(out, images, results) == {'kept', 'moved'}
  time.sleep(0.02)
  images['moved'].unlink()
  images['moved'].symlink_to(tmp_path / 'two')
  assert begun_prediction.done(out, images, results) == {'kept'}
