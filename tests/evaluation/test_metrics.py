import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gta_jax.evaluation.metrics import Scores, confusion_matrix, iou


def count_by_hand(prediction, label, classes, ignore):
  counts = np.zeros((classes, classes), int)
  for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
    if t != ignore:
      counts[t, p] += 1
  return counts


@pytest.mark.parametrize('ignore', [255, 0])
def test_counts_as_a_loop_over_pixels_does(ignore):
  rng = np.random.default_rng(0)
  prediction = rng.integers(0, 4, (2, 5, 7)).astype(np.uint8)
  label = rng.integers(0, 4, (2, 5, 7)).astype(np.uint8)
  label[rng.random(label.shape) < 0.3] = ignore
  count = jax.jit(lambda p, t: confusion_matrix(p, t, num_classes=4, ignore=ignore))
  counts = count(prediction, label)
  assert counts.dtype == np.int32
  np.testing.assert_array_equal(counts, count_by_hand(prediction, label, 4, ignore))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2, 255])), min_size=6,
                max_size=6))
def test_total_is_the_number_of_valid_pixels(pairs):
  prediction, label = np.array(pairs, np.uint8).T
  assert confusion_matrix(prediction, label, num_classes=3).sum() == (label != 255).sum()


def test_many_classes_stay_apart_in_uint8():
  prediction, label = np.array([199, 3], np.uint8), np.array([198, 199], np.uint8)
  counts = np.asarray(confusion_matrix(prediction, label, num_classes=200))
  assert counts[198, 199] == counts[199, 3] == 1
  assert counts.sum() == 2


def test_refuses_two_shapes():
  with pytest.raises(ValueError, match=r'\(2, 2\).*\(2, 3\).*equal'):
    confusion_matrix(np.zeros((2, 2)), np.zeros((2, 3)), num_classes=2)


def test_two_by_two_by_hand():
  label, prediction = np.array([[0, 0], [1, 1]]), np.array([[0, 1], [1, 1]])
  scores = Scores.from_confusion(np.asarray(confusion_matrix(prediction, label, num_classes=2)))
  assert scores.iou == pytest.approx((1 / 2, 2 / 3))
  assert scores.miou == pytest.approx(7 / 12)
  assert scores.pixel_accuracy == pytest.approx(3 / 4)


def test_absent_classes_are_left_out_and_missed_ones_are_not():
  # Class 0 is right, class 1 is missed, class 2 appears nowhere, class 3 is only predicted.
  by_class, miou = iou(np.array([[3, 0, 0, 0], [0, 0, 0, 2], [0] * 4, [0] * 4]))
  np.testing.assert_array_equal(by_class, [1, 0, np.nan, 0])
  assert miou == pytest.approx(1 / 3)


def test_nothing_valid_has_no_score():
  scores = Scores.from_confusion(np.zeros((2, 2), np.int64))
  assert np.isnan([scores.miou, scores.pixel_accuracy, *scores.iou]).all()


def test_a_second_library_finds_the_same():
  library = pytest.importorskip('sklearn.metrics')
  rng = np.random.default_rng(1)
  label, prediction = rng.integers(0, 5, (2, 40, 30)).astype(np.uint8)
  label[rng.random(label.shape) < 0.2] = 255
  scores = Scores.from_confusion(np.asarray(confusion_matrix(prediction, label, num_classes=5)))
  pair = label[label != 255], prediction[label != 255]
  np.testing.assert_array_equal(scores.confusion, library.confusion_matrix(*pair))
  np.testing.assert_allclose(scores.iou, library.jaccard_score(*pair, average=None))
  assert scores.miou == pytest.approx(library.jaccard_score(*pair, average='macro'))
  assert scores.pixel_accuracy == pytest.approx(library.accuracy_score(*pair))
