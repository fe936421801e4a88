"""Labels of a run's own: codes of doubts, limits against the oracle, readers, and the stream."""

import contextlib
import itertools

import numpy as np
import pytest

from gta_jax.data import pseudo_masks
from gta_jax.data.files import DataError
from gta_jax.data.masks import encode_mask
from gta_jax.data.pipeline import training_stream
from gta_jax.data.pseudo_masks import (
  ConfidentMaskReader,
  PseudoMaskReader,
  decode_doubt,
  doubt_limits,
  doubt_of_code,
  encode_doubt,
  with_pseudo_masks,
)
from tests.arrays import random_dataset
from tests.oracles.dmt import class_thresholds

PALETTE = np.zeros((3, 3), np.uint8)


def write(folder, name, data):
  path = folder / name
  path.write_bytes(data)
  return str(path)


def make(folder, images=2, size=(10, 12), classes=3, seed=0):
  """Labels and confidences of images '0', '1', ..., and the paths of their files."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, (images, *size), dtype=np.uint8)
  # Of exact doubts, so that there are neither ties nor roundings.
  doubts = (rng.permutation(labels.size) + 1).reshape(labels.shape) / np.float32(2**9)
  confidence = np.float32(1) - doubts
  masks = {str(i): write(folder, f'{i}.png', encode_mask(x, PALETTE)) for i, x in enumerate(labels)}
  paths = {str(i): write(folder, f'{i}.doubt.png', encode_doubt(x))
           for i, x in enumerate(confidence)}
  return labels, confidence, masks, paths


def test_codes_have_the_order_of_doubts_and_are_fine_near_certainty():
  confidence = np.sort(1 - np.float32(2.0) ** -np.arange(23, dtype=np.float32))[None]
  codes = decode_doubt(encode_doubt(confidence), 'x')
  assert (np.diff(codes[0].astype(int)) < 0).all()
  np.testing.assert_allclose(1 - doubt_of_code(codes), confidence, atol=1e-7)
  ends = decode_doubt(encode_doubt(np.float32([[0, 1]])), 'x')
  assert ends.tolist() == [[pseudo_masks.CODES - 1, 0]]
  for damaged in (b'', encode_doubt(confidence)[:40], encode_mask(np.zeros((2, 2), np.uint8),
                                                                  PALETTE)):
    with pytest.raises(DataError, match='x is damaged'):
      decode_doubt(damaged, 'x')


@pytest.mark.parametrize('round_', [1, 2, 3, 4, 5])
def test_exactly_the_share_keeps_its_label_and_limits_agree_with_the_oracle(tmp_path, round_):
  labels, confidence, masks, doubts = make(tmp_path)
  limits = doubt_limits(masks, doubts, share=(round_, 5), num_classes=3, every=1)
  reader = ConfidentMaskReader(None, masks, doubts, limits)
  kept = np.stack([reader.mask(str(i)) for i in range(len(labels))])
  thresholds = class_thresholds(labels.ravel(), confidence.ravel(), round_ / 5, 3)
  np.testing.assert_array_equal(kept, np.where(confidence >= thresholds[labels], labels, 255))
  for j in range(3):
    n = (labels == j).sum()
    assert (kept == j).sum() == (n if round_ == 5 else round_ * n // 5 + 1)


def test_every_16th_pixel_of_each_image_is_sampled(tmp_path):
  labels, confidence, masks, doubts = make(tmp_path)
  limits = doubt_limits(masks, doubts, share=(3, 5), num_classes=3)
  flat = [x.reshape(2, -1)[:, ::16].ravel() for x in (labels, confidence)]
  expected = 1 - class_thresholds(*flat, 3 / 5, 3)
  np.testing.assert_allclose(doubt_of_code(np.array(limits, np.uint16)), expected, atol=1e-3)


def test_a_class_that_is_never_predicted_limits_nothing(tmp_path):
  *_, masks, doubts = make(tmp_path, classes=2)
  assert doubt_limits(masks, doubts, share=(5, 5), num_classes=3)[2] == pseudo_masks.CODES - 1


def test_a_stage_sees_its_images_alone_and_never_their_own_masks(tmp_path):
  data = random_dataset([(10, 12)] * 4)
  truth = data.reader.masks
  labels, _, masks, _ = make(tmp_path)
  assert not np.array_equal(labels[1], truth['1'])
  stage = with_pseudo_masks(data, PseudoMaskReader(data.reader, masks))
  assert stage.unlabelled == ('0', '1')
  np.testing.assert_array_equal(stage.reader.mask('1'), labels[1])
  np.testing.assert_array_equal(stage.reader.mask('2'), truth['2'])  # a labelled image's
  assert stage.reader.size('1') == (10, 12) and stage.reader.has_mask('1')


def test_the_stream_cuts_label_and_confidence_alike(tmp_path):
  data = random_dataset([(10, 12)] * 4)
  labels, _, masks, doubts = make(tmp_path)
  # A confidence that tells the label.
  doubts = {id: write(tmp_path, f'{id}.told.png', encode_doubt(1 - labels[int(id)] / np.float32(4)))
            for id in doubts}
  reader = ConfidentMaskReader(data.reader, masks, doubts, (pseudo_masks.CODES,) * 3)
  stage = with_pseudo_masks(data, reader)
  with contextlib.closing(training_stream(
      stage, stream='unlabelled', batch_size=2, crop_size=16, seed=0, pseudo=True,
      confidence=True)) as batches:
    for batch in itertools.islice(batches, 3):
      assert batch['confidence'].dtype == batch['label'].dtype == np.uint8
      assert batch['label'].shape == (2, 16, 16)
      valid = batch['valid']
      assert valid.any() and (batch['label'][~valid] == 255).all()
      told = np.array([255, 191, 128])[batch['label'][valid]]
      np.testing.assert_array_equal(batch['confidence'][valid], told)
