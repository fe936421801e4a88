import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gta_jax.data.transforms import ColourJitter, RandomCrop, block_side, resize_image


def tagged(height, width):
  """An image whose red and green channels are the label, which varies slowly."""
  label = (np.arange(height)[:, None] // 4 * 16 + np.arange(width) // 4).astype(np.uint8) % 250
  return np.stack([label, label, np.full_like(label, 9)], axis=-1), label


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 50), st.floats(0.1, 3),
       st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 8]))
def test_shapes_and_padding_hold_for_every_size(height, width, size, factor, seed, block):
  image = np.full((height, width, 3), 200, np.uint8)
  label = np.full((height, width), 3, np.uint8)
  crop = RandomCrop(size, scale=(factor, factor), fill=(1, 2, 3), block=block)
  image, label, valid = crop(image, label, np.random.default_rng(seed))
  assert image.shape == (size, size, 3) and label.shape == valid.shape == (size, size)
  assert image.dtype == label.dtype == np.uint8 and valid.dtype == bool
  assert (image[valid] == 200).all() and (image[~valid] == (1, 2, 3)).all()
  assert (label[valid] == 3).all() and (label[~valid] == 255).all()
  inside = [min(size, max(1, round(length * factor))) for length in (height, width)]
  assert valid.sum() == inside[0] * inside[1]
  rows, columns = np.nonzero(valid)  # A centred rectangle.
  assert abs(rows.min() - (size - 1 - rows.max())) <= 1
  assert abs(columns.min() - (size - 1 - columns.max())) <= 1


def test_without_scaling_a_crop_is_a_window_or_its_mirror():
  image, label = tagged(40, 50)
  seen, mirrors = set(), 0
  for seed in range(80):
    cropped, cropped_label, valid = RandomCrop(16, scale=(1, 1))(
        image, label, np.random.default_rng(seed))
    np.testing.assert_array_equal(cropped[..., 0], cropped_label)
    windows = np.lib.stride_tricks.sliding_window_view(label, (16, 16))
    plain = (windows == cropped_label).all(axis=(2, 3))
    mirrored = (windows == cropped_label[:, ::-1]).all(axis=(2, 3))
    assert valid.all() and (plain.any() or mirrored.any())
    mirrors += not plain.any()
    seen.update(zip(*np.nonzero(plain | mirrored), strict=True))
  assert 20 < mirrors < 60 and len(seen) > 40
  assert {row for row, _ in seen} >= {0, 24} and max(column for _, column in seen) == 34


@pytest.mark.parametrize('factor, block, blob', [
  (0.5, 1, 16), (0.73, 1, 16), (1.6, 1, 16), (2.0, 1, 16), (0.11, 2, 96)])
def test_image_and_label_share_their_geometry(factor, block, blob):
  """Blobs of one value: away from their borders, the bilinear image must equal the label."""
  rng = np.random.default_rng(3)
  label = np.kron(rng.integers(0, 250, (8, 8)), np.ones((blob, blob))).astype(np.uint8)
  image = np.repeat(label[..., None], 3, axis=2)
  for seed in range(20):
    cropped, cropped_label, valid = RandomCrop(48, scale=(factor, factor), block=block)(
        image, label, np.random.default_rng(seed))
    flat = np.ones_like(valid)
    for axis in (0, 1):
      for step in (-1, 1):
        flat &= cropped_label == np.roll(cropped_label, step, axis)
    flat[[0, -1]] = flat[:, [0, -1]] = False
    assert flat.mean() > 0.5
    np.testing.assert_array_equal(cropped[flat][:, 0], cropped_label[flat])


def test_labels_are_not_shifted_against_the_image():
  """Shrunk by two, a bilinear pixel averages two source pixels; the label is one of them."""
  label = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
  image = np.repeat(label[..., None], 3, axis=2)
  cropped, cropped_label, _ = RandomCrop(32, scale=(0.5, 0.5), flip=False)(
      image, label, np.random.default_rng(0))
  shift = cropped[..., 0].astype(int) - cropped_label
  assert np.abs(shift).max() <= 1


def test_what_shrinks_below_a_quarter_is_averaged_and_what_does_not_is_left_as_it_was():
  sides = {0.3: 1, 0.25: 1, 0.13: 1, 0.125: 2, 0.1: 2, 0.0625: 4, 0.03: 8, 2.0: 1}
  assert {scale: block_side(scale) for scale in sides} == sides
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (96, 160, 3), dtype=np.uint8)
  small = resize_image(image, (6, 10), block=block_side(1 / 16))
  means = image.reshape(24, 4, 40, 4, 3).mean((1, 3))
  expected = cv2.resize(means, (10, 6), interpolation=cv2.INTER_LINEAR)
  assert np.abs(small - expected).max() <= 1
  assert small.std() < 0.6 * resize_image(image, (6, 10)).std()  # chance
  crop = RandomCrop(6, scale=(1 / 16, 1 / 16), flip=False, block=4)
  np.testing.assert_array_equal(crop(image[:, :96], None, rng)[0], small[:, :6])


def test_a_crop_equals_cutting_the_resized_image():
  image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
  whole = cv2.resize(image, (60, 60), interpolation=cv2.INTER_LINEAR)
  crop, _, _ = RandomCrop(20, scale=(2.0, 2.0), flip=False)(image, None, np.random.default_rng(1))
  windows = np.lib.stride_tricks.sliding_window_view(whole, (18, 18), axis=(0, 1))[..., 0, :, :]
  # The outermost pixel looks beyond the window's border in one and not in the other.
  assert (windows == crop[1:-1, 1:-1, 0]).all(axis=(2, 3)).any()


def test_the_scale_is_uniform_and_options_hold():
  image, label = tagged(20, 20)
  crop = RandomCrop(50, scale=(0.5, 2.0))
  sides = [np.sqrt(crop(image, None, np.random.default_rng(seed))[2].sum()) for seed in range(400)]
  assert 10 <= min(sides) < 12 and 38 < max(sides) <= 40 and 23.5 < np.mean(sides) < 26.5
  halves = RandomCrop(50, scale=(0.5, 1.0, 2.0))
  rngs = map(np.random.default_rng, range(400))
  sides = np.sqrt([halves(image, None, rng)[2].sum() for rng in rngs])
  assert 10 <= min(sides) < 12 and 38 < max(sides) <= 40 and 0.44 < np.mean(sides <= 20) < 0.56
  assert 14 < sides[sides <= 20].mean() < 16 and 28 < sides[sides > 20].mean() < 32
  padded = RandomCrop(50, scale=(1, 1), flip=False)
  _, label_out, valid = padded(image, label, np.random.default_rng(0))
  assert (label_out[~valid] == 255).all()
  np.testing.assert_array_equal(label_out[valid], label.ravel())


def test_padding_with_a_label_is_a_pixel_like_any_other():
  image, label = tagged(20, 20)
  crops = [RandomCrop(50, scale=(1, 1), flip=False, padding_label=value)(
      image, label, np.random.default_rng(0)) for value in (255, 0)]
  padding = ~crops[0][2]
  assert padding.any() and (crops[1][1][padding] == 0).all() and crops[1][2].all()


def test_wrong_options_are_refused():
  with pytest.raises(ValueError, match='crop size 0 is not positive'):
    RandomCrop(0)
  with pytest.raises(ValueError, match=r'scale \(2.0, 0.5\)'):
    RandomCrop(8, scale=(2.0, 0.5))
  with pytest.raises(ValueError, match=r'scale \(0.5, 3.0, 2.0\)'):
    RandomCrop(8, scale=(0.5, 3.0, 2.0))


def test_jitter_changes_brightness_contrast_and_saturation_as_its_equations_say():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (6, 7, 3), np.uint8)
  b, c, s = np.random.default_rng(5).uniform(0.6, 1.4, 3)
  luma = np.array([0.299, 0.587, 0.114])
  x = np.clip(b * image, 0, 255)
  middle = (x @ luma).mean()
  x = np.clip(middle + c * (x - middle), 0, 255)
  grey = (x @ luma)[..., None]
  wanted = np.clip(grey + s * (x - grey), 0, 255)
  found = ColourJitter(0.4)(image, np.random.default_rng(5))
  assert found.dtype == np.uint8 and np.abs(found - wanted).max() <= 0.51
  assert np.abs(found - image.astype(float)).mean() > 5


def test_jitter_of_zero_draws_nothing_and_one_of_a_grey_image_stays_grey():
  image, _ = tagged(8, 9)
  rng = np.random.default_rng(1)
  assert ColourJitter(0.0)(image, rng) is image
  assert rng.random() == np.random.default_rng(1).random()
  grey = np.repeat(image[..., :1], 3, axis=2)
  found = ColourJitter(0.5)(grey, rng)
  assert (found == found[..., :1]).all()
  with pytest.raises(ValueError, match=r'jitter 1 is not in \[0, 1\)'):
    ColourJitter(1.0)
