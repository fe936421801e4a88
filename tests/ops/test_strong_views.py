"""The strong view: hue, random order, shares; and that without a hue nothing has changed."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.ops import photometric
from gta_jax.ops.photometric import augment, strong_view
from tests import tiny

KEY = jax.random.key(0)
NETWORK = tiny.linear_network()  # of mean 0 and deviation 1: images are RGB in [0,1]


def draw(shape=(4, 5, 6, 3), seed=0):
  return jax.random.uniform(jax.random.key(seed), shape)


@pytest.mark.parametrize('turns', [-0.25, 0.0, 0.1, 0.5])
def test_hue_agrees_with_colorsys(turns):
  special = jnp.array([[0, 0, 0], [1, 1, 1], [.3, .3, .3], [1, 0, 0], [0, 1, 0], [0, 0, 1],
                       [1, 1, 0], [0, 1, 1], [1, 0, 1]], jnp.float32)
  rgb = jnp.concatenate([special, draw((200, 3))])
  shifted = np.asarray(photometric._shift_hue(rgb[None, None], turns))[0, 0]
  for before, after in zip(np.asarray(rgb, float), shifted, strict=True):
    hue, saturation, value = colorsys.rgb_to_hsv(*before)
    expected = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
    np.testing.assert_allclose(after, expected, atol=2e-6)


def test_order_is_random_and_is_the_images_own():
  """Changes that append digits to an image show in which order they came."""
  images = jnp.zeros((300, 1, 1, 3))

  def appends(digit):
    return lambda rgb, amount: 10 * rgb + digit

  with pytest.MonkeyPatch.context() as patch:
    for digit, name in enumerate(('_brighten', '_contrast', '_saturate', '_shift_hue'), start=1):
      patch.setattr(photometric, name, appends(digit))
    result = photometric._jitter_with_hue(KEY, images, largest=0.25)
  orders = [str(int(x)) for x in np.asarray(result)[:, 0, 0, 0]]
  assert all(sorted(order) == ['1', '2', '3', '4'] for order in orders)
  counts = {order: orders.count(order) for order in orders}
  assert len(counts) == 24 and max(counts.values()) < 35  # 12.5 expected of each


def test_factors_and_shifts_have_their_ranges():
  seen = {}
  with pytest.MonkeyPatch.context() as patch:
    for name in ('_brighten', '_contrast', '_saturate', '_shift_hue'):
      patch.setattr(photometric, name, lambda rgb, amount, name=name: (
        seen.setdefault(name, np.asarray(amount)), rgb)[1])
    photometric._jitter_with_hue(KEY, jnp.zeros((500, 1, 1, 3)), largest=0.25)
  for name, (low, high) in {'_brighten': (0.5, 1.5), '_contrast': (0.5, 1.5),
                            '_saturate': (0.5, 1.5), '_shift_hue': (-0.25, 0.25)}.items():
    assert low <= seen[name].min() < low + 0.02 and high - 0.02 < seen[name].max() <= high
    assert seen[name].size == 500


@pytest.mark.parametrize('shares, expected', [
  ({'greyscale': 0.0, 'blur': 0.0}, 0.8), ({'jitter': 0.0, 'blur': 0.0}, 0.2),
  ({'jitter': 0.0, 'greyscale': 0.0}, 0.5)])
def test_each_part_is_for_its_share_of_images(shares, expected):
  images = draw((400, 4, 4, 3))
  result = jax.jit(lambda key: strong_view(key, images, NETWORK, **shares))(KEY)
  moved = np.abs(np.asarray(result - images)).max(axis=(1, 2, 3)) > 1e-4
  assert moved.mean() == pytest.approx(expected, abs=0.07)


def test_strong_view_stays_in_the_range_of_images_and_comes_last_to_grey():
  images = draw((64, 6, 6, 3))
  result = np.asarray(jax.jit(lambda key: strong_view(key, images, NETWORK))(KEY))
  assert result.dtype == np.float32 and result.min() > -1e-6 and result.max() < 1 + 1e-6
  grey = np.ptp(result, axis=-1).max(axis=(1, 2)) < 1e-5
  assert 4 < grey.sum() < 24  # of 64 a fifth


def test_without_hue_the_jitter_is_the_fixed_order_of_three():
  images = draw()
  factors = jax.random.uniform(
    jax.random.split(jax.random.fold_in(KEY, 0))[1], (3, 4, 1, 1, 1), minval=0.5, maxval=1.5)
  luma = jnp.array([0.299, 0.587, 0.114])

  def grey(x):
    return jnp.sum(x * luma, axis=-1, keepdims=True)

  x = jnp.clip(images * factors[0], 0, 1)
  middle = jnp.mean(grey(x), axis=(1, 2), keepdims=True)
  x = jnp.clip(middle + (x - middle) * factors[1], 0, 1)
  x = jnp.clip(grey(x) + (x - grey(x)) * factors[2], 0, 1)
  np.testing.assert_array_equal(
    augment(KEY, images, NETWORK, jitter=1.0, greyscale=0.0, blur=0.0), x)


@pytest.mark.slow
def test_an_offset_of_brightness_is_added():
  """Greys stay grey under hue and saturation, and one grey has no contrast: the offset is left."""
  options = {'jitter': 1.0, 'greyscale': 0.0, 'blur': 0.0, 'hue': 0.25}
  offset, factor = (
    augment(KEY, jnp.full((400, 2, 2, 3), 0.5), NETWORK, **options, brightness=kind)[:, 0, 0, 0]
    for kind in ('offset', 'factor'))
  np.testing.assert_allclose(offset - 0.5, 2 * (factor - 0.5), atol=1e-5)
  assert offset.min() < 0.02 and offset.max() > 0.98


def test_a_hue_does_not_rest_on_a_channel_that_equals_the_largest_to_the_bit(monkeypatch):
  """A compiler that computes a channel twice may round the two otherwise."""
  images, exact = draw((1, 16, 16, 3)), jnp.max
  expected = photometric._shift_hue(images, jnp.float32(0.1))
  monkeypatch.setattr(
    photometric.jnp, 'max', lambda *args, **kw: jnp.nextafter(exact(*args, **kw), jnp.float32(2)))
  np.testing.assert_allclose(
    photometric._shift_hue(images, jnp.float32(0.1)), expected, atol=1e-6)
