"""Boxes of UniMatch and of CutMix-Seg, against their rules in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.ops import mixing
from gta_jax.ops.losses import IGNORE
from gta_jax.ops.mixing import mix, unimatch_boxes, xor_boxes

KEY = jax.random.key(0)
draw_boxes = jax.jit(unimatch_boxes, static_argnums=(1, 2), static_argnames=('probability',))


def rejected(rng, side):
  """(top, left, height, width) of a box by the rule itself: drawn until it fits."""
  pixels = rng.uniform(0.02, 0.4) * side ** 2
  while True:
    ratio = rng.uniform(0.3, 1 / 0.3)
    height, width = int((pixels * ratio) ** 0.5), int((pixels / ratio) ** 0.5)
    top, left = rng.integers(0, side, 2)
    if top + height <= side and left + width <= side:
      return top, left, height, width


def measured(masks):
  """The same of masks [B,H,W]; all of them must be whole boxes."""
  rows, columns = masks.any(2), masks.any(1)
  height, width = rows.sum(1), columns.sum(1)
  np.testing.assert_array_equal(masks.sum((1, 2)), height * width)
  return np.stack([rows.argmax(1), columns.argmax(1), height, width], axis=1)


def test_unimatch_boxes_have_the_distribution_of_the_loop():
  side, count = 24, 10_000
  ours = measured(np.asarray(draw_boxes(KEY, count, (side, side), probability=1.0)))
  rng = np.random.default_rng(0)
  theirs = np.array([rejected(rng, side) for _ in range(count)])
  for i in range(4):
    counts = [np.bincount(x[:, i], minlength=side + 1) for x in (ours, theirs)]
    # The largest distance of two cumulative histograms (Kolmogorov and Smirnov): 1.63 sqrt(2 / n)
    # is exceeded once in a hundred draws.
    assert np.abs(np.cumsum(counts[0] - counts[1])).max() / count < 1.63 * (2 / count) ** 0.5


def test_unimatch_boxes_of_the_published_crop():
  """0.208 and 1.61 were simulated with the published rule at 321 x 321."""
  boxes = np.concatenate([
    measured(np.asarray(draw_boxes(jax.random.key(i), 400, (321, 321), probability=1.0)))
    for i in range(4)])
  assert np.mean(boxes[:, 2] * boxes[:, 3]) / 321 ** 2 == pytest.approx(0.208, abs=0.008)
  assert np.mean(boxes[:, 2] / boxes[:, 3]) == pytest.approx(1.61, abs=0.06)


def test_unimatch_boxes_are_there_for_their_share_of_images():
  there = np.asarray(draw_boxes(KEY, 400, (16, 16), probability=0.3)).any((1, 2))
  assert 85 < there.sum() < 155
  assert not np.asarray(draw_boxes(KEY, 400, (16, 16), probability=0.0)).any()


def test_unimatch_boxes_of_long_images():
  measured(np.asarray(draw_boxes(KEY, 50, (12, 24), probability=1.0)))
  with pytest.raises(ValueError, match='more nearly square'):
    unimatch_boxes(KEY, 2, (10, 100))


@pytest.mark.slow
def test_xor_boxes_cancel_where_they_overlap(monkeypatch):
  size, boxes = (20, 30), []
  inside = mixing._inside

  def recorded(*box_and_size):
    boxes.append([np.asarray(x).astype(int) for x in box_and_size[:4]])
    return inside(*box_and_size)

  monkeypatch.setattr(mixing, '_inside', recorded)
  masks = np.asarray(xor_boxes(KEY, 60, size))
  assert len(boxes) == 3
  expected, shares = np.zeros((60, *size), bool), []
  for top, left, high, wide in boxes:
    for i in range(60):
      assert top[i] >= 0 and top[i] + high[i] <= size[0]
      assert left[i] >= 0 and left[i] + wide[i] <= size[1]
      expected[i, top[i]:top[i] + high[i], left[i]:left[i] + wide[i]] ^= True
      shares.append(high[i] * wide[i] / 600 * 3)
  np.testing.assert_array_equal(masks, expected)
  assert 0.21 < min(shares) < 0.28 and 0.46 < max(shares) < 0.56  # 0.25 to 0.5, and rounding
  assert np.mean(shares) == pytest.approx(0.375, abs=0.02)


def test_mixing_boxes_pastes_from_the_next_image_image_by_image():
  number = np.broadcast_to(np.arange(8)[:, None, None], (8, 16, 16))
  image, label = jnp.array(np.repeat(number[..., None], 3, -1), jnp.float32), jnp.array(number)
  sure = jnp.array(number / 10, jnp.float32)
  mixed = jax.jit(lambda key: mix(
    key, image, label, sure, label != IGNORE, kind='boxes', num_classes=8, probability=0.5))(KEY)
  foreign = np.asarray(mixed[1]) != number
  assert 0 < foreign.any((1, 2)).sum() < 8  # some of the images, not all or none
  measured(foreign[foreign.any((1, 2))])
  for now, before in zip(mixed, (image, label, sure, label != IGNORE), strict=True):
    where = foreign if now.ndim == 3 else foreign[..., None]
    np.testing.assert_array_equal(now, np.where(where, np.roll(before, -1, 0), before))
