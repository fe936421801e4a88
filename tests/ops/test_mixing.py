"""CutMix, ClassMix, Cutout and photometric augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.ops.losses import IGNORE
from gta_jax.ops.mixing import MIXINGS, box_masks, class_masks, mix, next_images
from gta_jax.ops.network import Network
from gta_jax.ops.photometric import augment

KEY = jax.random.key(0)
NETWORK = Network(None, None, None, None)


def batch(size=(12, 16), images=3):
  """Image i holds i everywhere; labels i; confidence (i+1)/10; every other image is kept."""
  number = np.broadcast_to(np.arange(images)[:, None, None], (images, *size))
  return (jnp.array(np.repeat(number[..., None], 3, -1), jnp.float32), jnp.array(number, jnp.int32),
          jnp.array((number + 1) / 10, jnp.float32), jnp.array(number % 2 == 0))


@pytest.mark.parametrize('kind', MIXINGS)
def test_image_label_and_confidence_go_together(kind):
  known = batch()
  mixed = jax.jit(lambda key: mix(key, *known, kind=kind, num_classes=3, probability=1.0))(KEY)
  for i in range(3):
    image, label, sure, kept = (np.asarray(x[i]) for x in mixed)
    foreign = image[..., 0] != i
    next_one = (i + 1) % 3
    if kind == 'cutout':
      foreign = label == IGNORE
      assert np.all(image[foreign] == 0) and np.all(sure[foreign] == 0)
      assert not kept[foreign].any()
    else:
      assert np.all(label[foreign] == next_one)
      assert np.all(image[foreign] == next_one)
      np.testing.assert_allclose(sure[foreign], (next_one + 1) / 10)
      assert np.all(kept[foreign] == (next_one % 2 == 0))
    assert np.all(label[~foreign] == i)
    np.testing.assert_allclose(sure[~foreign], (i + 1) / 10)
    if kind in ('cutmix', 'cutout'):
      assert 0.4 < foreign.mean() < 0.6


def test_probability_decides_for_the_batch_as_a_whole():
  known = batch()

  @jax.jit
  def mixed(key):
    return mix(key, *known, kind='cutmix', num_classes=3, probability=0.5)[1]

  found = [np.asarray(mixed(jax.random.key(i))) for i in range(40)]
  changed = [np.any(labels != known[1], axis=(1, 2)) for labels in found]
  assert all(len(set(c.tolist())) == 1 for c in changed)
  assert 8 < sum(c[0] for c in changed) < 32


def test_boxes_are_rectangles_of_the_asked_area_inside_the_image():
  masks = np.asarray(box_masks(KEY, 200, (20, 30)))
  assert len({m.tobytes() for m in masks}) > 100
  for mask in masks:
    rows, columns = mask.any(1).sum(), mask.any(0).sum()
    assert mask.sum() == rows * columns
    assert abs(mask.mean() - 0.5) < 0.05
    assert columns >= 15


def test_classmix_keeps_half_of_the_classes_rounded_up():
  labels = jnp.array([[[0, 1, 2, 4, IGNORE]], [[3, 3, 3, 3, 3]]])
  for i in range(10):
    masks = np.asarray(class_masks(jax.random.key(i), labels, num_classes=5))
    assert masks[0].sum() == 2 and not masks[0, 0, 4]
    assert masks[1].all()


def test_unknown_mixing_lists_the_known():
  with pytest.raises(ValueError, match='none, cutmix, classmix, cutout'):
    mix(KEY, *batch(), kind='mixup', num_classes=3, probability=1.0)


@pytest.mark.parametrize('name', ['jitter', 'greyscale', 'blur'])
def test_photometric_changes_about_its_share_of_images(name):
  images = jax.random.uniform(KEY, (64, 8, 8, 3))
  chances = dict.fromkeys(('jitter', 'greyscale', 'blur'), 0.0) | {name: 0.5}
  result = jax.jit(lambda key: augment(key, images, NETWORK, **chances))(KEY)
  moved = np.abs(np.asarray(result - images)).max(axis=(1, 2, 3)) > 1e-3
  assert result.shape == images.shape and 16 < moved.sum() < 48


@pytest.mark.slow
def test_greyscale_is_grey_and_blur_keeps_a_plain_image():
  rgb = jax.random.uniform(KEY, (2, 8, 8, 3))
  normalised = (rgb - jnp.array(NETWORK.mean)) / jnp.array(NETWORK.std)
  grey = augment(KEY, normalised, NETWORK, jitter=0.0, greyscale=1.0, blur=0.0)
  grey = grey * jnp.array(NETWORK.std) + jnp.array(NETWORK.mean)
  np.testing.assert_allclose(grey[..., 0], rgb @ jnp.array([0.299, 0.587, 0.114]), atol=1e-5)
  plain = jnp.ones((2, 8, 8, 3))
  np.testing.assert_allclose(
    augment(KEY, plain, NETWORK, jitter=0.0, greyscale=0.0, blur=1.0), plain, atol=1e-5)


def test_no_augmentation_is_the_identity():
  images = batch()[0]
  assert augment(KEY, images, NETWORK, jitter=0.0, greyscale=0.0, blur=0.0) is images


def test_partners_stay_within_their_group():
  x = jnp.arange(6)
  np.testing.assert_array_equal(next_images(x), [1, 2, 3, 4, 5, 0])
  np.testing.assert_array_equal(next_images(x, 3), [1, 2, 0, 4, 5, 3])
  np.testing.assert_array_equal(next_images(x, 1), x)
