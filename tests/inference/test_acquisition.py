"""Which images are asked for first."""

import numpy as np
import pytest

from gta_jax.data.pseudo_masks import CODES, code_of_doubt
from gta_jax.evaluation.windows import Images
from gta_jax.inference import acquisition
from gta_jax.inference import model as model_module
from tests.inference.in_memory import NETWORK, VARIABLES, dataset, model


def test_a_small_unclear_part_counts_more_than_little_doubt_everywhere():
  part, everywhere = np.ones((64, 48)), np.full((64, 48), 0.9)
  part[:16, :16] = 0.2
  assert acquisition.uncertainty(part) > acquisition.uncertainty(everywhere) == pytest.approx(0.1)
  assert acquisition.uncertainty(np.full((1, 3), 0.25)) == pytest.approx(0.75)


def test_not_ten_alike_come_first():
  alike = np.tile([1.0, 0.0], (10, 1)) + np.linspace(0, 1e-3, 10)[:, None]
  features = np.concatenate([alike, [[0.0, 1.0], [-1.0, 0.0]], np.tile([1.0, 0.0], (18, 1))])
  scores = np.array([*np.linspace(0.9, 0.8, 10), 0.5, 0.4, *[0.1] * 18])
  chosen, distances = acquisition.choose(scores, features, 3)
  assert chosen == [0, 11, 10] and distances == pytest.approx((0, 2, 1), abs=1e-2)
  # Of the most uncertain ones alone: five for each that is wanted.
  assert acquisition.choose(scores, features, 2)[0][0] == 0
  assert set(acquisition.choose(scores, features, 2)[0]) <= set(range(10))
  assert sorted(acquisition.choose(scores, features, 99)[0]) == list(range(30))


@pytest.mark.parametrize('pool, count, candidates', [
  (14, 3, 7), (14, 2, 7), (5, 3, 3), (4, 9, 4), (1, 1, 1), (29, 3, 14), (30, 3, 15), (99, 3, 15)])
def test_the_clearer_half_of_a_small_pool_is_not_chosen(pool, count, candidates):
  scores, turns = np.linspace(0.9, 0.1, pool), np.linspace(0, np.pi, pool)
  # The clearest image is the farthest from the most uncertain one.
  features = np.stack([np.cos(turns), np.sin(turns)], 1)
  chosen, _ = acquisition.choose(scores, features, count)
  assert len(chosen) == min(count, pool) and max(chosen) == candidates - 1


def test_features_are_those_without_padding():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (1, 8, 16, 3), np.uint8)
  size, ratio = np.array([[5, 9]], np.int32), np.ones((1, 2), np.float32)
  found = acquisition._pooled_features(NETWORK, VARIABLES, Images(image, size, ratio))
  cut = image[:, :5, :9]
  expected = acquisition._pooled_features(NETWORK, VARIABLES, Images(cut, size, ratio))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_threshold_is_that_of_the_dropped_share(tmp_path):
  rng = np.random.default_rng(0)
  images = {f'{i}': rng.integers(0, 256, (9, 14 + i % 2, 3), np.uint8) for i in range(5)}
  data = dataset(images)
  ranking = acquisition.rank(model(), data, count=3, drop_share=0.3)
  confidence = np.concatenate([p.confidence.ravel() for _, p in model().label([*images.values()])])
  assert np.mean(confidence < ranking.threshold) == pytest.approx(0.3, abs=0.02)
  assert len(set(ranking.ids)) == 3 and ranking.uncertainty[0] == max(ranking.uncertainty)
  with pytest.raises(ValueError, match='count 0; both must be at least 1'):
    acquisition.rank(model(), data, count=0, drop_share=0.3)


def test_the_threshold_is_as_fine_as_a_sure_network_needs():
  confidence = 1 - 10.0 ** -np.random.default_rng(0).uniform(3.2, 7, 20_000).astype(np.float32)
  counts = np.bincount(code_of_doubt(confidence), minlength=CODES)
  threshold = acquisition._threshold(counts, 0.2)
  assert np.mean(confidence < threshold) == pytest.approx(0.2, abs=0.005) and threshold > 0.999
  assert acquisition._threshold(counts, 0.0) < confidence.min()
  two = np.bincount(code_of_doubt(np.repeat([0.5, 0.75], [20, 80])), minlength=CODES)
  assert 0.5 < acquisition._threshold(two, 0.2) < 0.75  # both are codes to the last digit


def test_large_images_are_cut_into_tiles_as_their_masks_are(monkeypatch):
  rng = np.random.default_rng(0)
  images = {'small': rng.integers(0, 256, (9, 14, 3), np.uint8),
            'large': rng.integers(0, 256, (40, 24, 3), np.uint8)}
  seen = []
  monkeypatch.setattr(model_module, '_WHOLE_PIXELS', 500)
  for name, value in (('TILE', 16), ('OVERLAP', 8)):
    monkeypatch.setattr(model_module, name, value)
  make = acquisition.make_batches

  def make_batches(mean, reader, ids, *args, **options):
    seen.extend(reader.size(id) for id in ids)
    return make(mean, reader, ids, *args, **options)

  monkeypatch.setattr(acquisition, 'make_batches', make_batches)
  found = acquisition.rank(model(), dataset(images), count=2, drop_share=0.3)
  assert seen == [(9, 14), (16, 10)]  # a smaller copy, for its features
  confidences = [next(model().label([image]))[1].confidence.ravel() for image in images.values()]
  below = (np.concatenate(confidences) < found.threshold).mean()
  assert set(found.ids) == {*images} and below == pytest.approx(0.3, abs=0.02)
