import numpy as np
import pytest

from gta_jax.evaluation.bootstrap import miou_difference
from gta_jax.evaluation.metrics import iou


def confusions(rng, images, right):
  """Of two classes; a share of the pixels is right, more or less so in each image."""
  counts = np.zeros((images, 2, 2), np.int64)
  for one in counts:
    hits = rng.binomial(100, np.clip(right + rng.normal(0, 0.05), 0, 1), 2)
    one[[0, 1], [0, 1]], one[[0, 1], [1, 0]] = hits, 100 - hits
  return counts


def test_the_interval_is_that_of_draws_of_whole_images():
  rng = np.random.default_rng(0)
  first, second = confusions(rng, 30, 0.8), confusions(rng, 30, 0.7)
  found = miou_difference(first, second, resamples=400)
  value = iou(first.sum(0))[1] - iou(second.sum(0))[1]
  draws = [(rng.integers(30, size=30)) for _ in range(400)]
  slow = [iou(first[d].sum(0))[1] - iou(second[d].sum(0))[1] for d in draws]
  assert found.value == pytest.approx(value)
  wider = 2.045 / 1.960 * np.sqrt(30 / 29)  # Student's t of 29 degrees of freedom
  expected = value + wider * (np.percentile(slow, (2.5, 97.5)) - value)
  assert [found.low, found.high] == pytest.approx(expected, abs=0.01)
  assert found.shown and found == miou_difference(first, second, resamples=400)


def test_pairs_count_and_nothing_is_shown_where_nothing_differs():
  rng = np.random.default_rng(1)
  one = confusions(rng, 20, 0.6)
  same = miou_difference(one, one)
  assert same == (0, 0, 0) and not same.shown
  assert not miou_difference(one, confusions(rng, 20, 0.6)).shown
  with pytest.raises(ValueError, match='not of the same images'):
    miou_difference(one, one[:5])


def test_few_images_claim_no_difference_between_equals():
  claims = 0
  for seed in range(60):
    rng = np.random.default_rng(seed)
    pair = confusions(rng, 3, 0.8), confusions(rng, 3, 0.8)
    claims += miou_difference(*pair, resamples=200).shown
  assert claims <= 6  # 5 % of 60 are 3; quantiles of three images alone claim in every third case
  one = confusions(rng, 1, 0.8)
  assert not miou_difference(one, confusions(rng, 1, 0.2)).shown


def test_images_without_a_label_change_nothing():
  rng = np.random.default_rng(2)
  first, second = confusions(rng, 4, 0.8), confusions(rng, 4, 0.7)
  blank = np.zeros((20, 2, 2), np.int64)
  assert miou_difference(*(np.concatenate([blank, of]) for of in (first, second))) == (
    miou_difference(first, second))
  found = miou_difference(*(np.concatenate([blank, of[:1]]) for of in (first, second)))
  assert np.isinf([found.low, found.high]).all()
