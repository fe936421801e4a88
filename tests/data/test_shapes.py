import pickle

import cv2
import numpy as np
import pytest

from gta_jax.data.shapes import CLASSES, PALETTE, make_shapes
from gta_jax.data.sources import DataError, check


def shapes(**options):
  return make_shapes(**{'labelled': 5, 'unlabelled': 60, 'validation': 9, 'size': 64} | options)


def test_splits_are_disjoint_and_pass_the_checks():
  dataset = shapes()
  check(dataset)
  assert [len(ids) for ids in (dataset.labelled, dataset.unlabelled, dataset.validation)] == [
      5, 60, 9]
  assert len({*dataset.labelled, *dataset.unlabelled, *dataset.validation}) == 74
  assert dataset.labelled[-1] == 'train/000004' and dataset.validation[3] == 'val/000003'
  assert len(PALETTE) == len(CLASSES) == len({tuple(colour) for colour in PALETTE.tolist()})


def test_an_image_depends_on_seed_and_id_alone():
  reader, ids = shapes().reader, shapes().labelled + shapes().validation
  forward = [reader.image(id) for id in ids]
  reader = pickle.loads(pickle.dumps(shapes(labelled=1, size=65).reader))
  assert reader.image(ids[0]).shape == (65, 65, 3)
  reader = shapes(unlabelled=0).reader
  _ = [reader.image(f'train/{index}') for index in range(100, 140)]  # Empties the cache.
  for id, image in reversed(list(zip(ids, forward, strict=True))):
    np.testing.assert_array_equal(reader.image(id), image)
  other = shapes(seed=1).reader
  assert (other.image(ids[0]) != forward[0]).mean() > 0.5
  assert (reader.image('train/000000') != reader.image('val/000000')).mean() > 0.5


def test_images_hold_every_class_and_narrow_void_borders():
  dataset = shapes()
  masks = np.stack([dataset.reader.mask(id) for id in dataset.unlabelled])
  share = np.bincount(masks.ravel(), minlength=256) / masks.size
  assert (share[:7] > 0.01).all() and 0.4 < share[0] < 0.85 and 0.02 < share[255] < 0.15
  assert share[7:255].sum() == 0
  # A border is a pixel or two on each side of an outline: no void pixel is far from a class.
  void = (masks == 255).astype(np.float32)
  assert void[:, 8:-8, 8:-8].mean() < 0.2
  image = dataset.reader.image('train/000000')
  assert image.dtype == np.uint8 and image.shape == (64, 64, 3) and image.std() > 10


def test_hue_alone_finds_no_object_and_misleads_about_the_class():
  """The best decision by hue, even fitted on the pixels it is tested on, is a poor one."""
  dataset = shapes()
  hues = [cv2.cvtColor(dataset.reader.image(id), cv2.COLOR_RGB2HSV)[..., 0]
          for id in dataset.unlabelled]
  labels = np.stack([dataset.reader.mask(id) for id in dataset.unlabelled])
  counts, *_ = np.histogram2d(np.ravel(hues) // 6, labels.ravel(), bins=(range(32), range(8)))
  background, objects = counts[:, 0].sum(), counts[:, 1:]
  assert counts.max(axis=1).sum() < 1.02 * background
  assert 0.4 < objects.max(axis=1).sum() / objects.sum() < 0.8


def test_wrong_requests_are_refused():
  with pytest.raises(ValueError, match='size 8 at least 32'):
    shapes(size=8)
  with pytest.raises(DataError, match="'test/1' is not a shapes id"):
    shapes().reader.image('test/1')
