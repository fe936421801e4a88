"""How far colours tell classes, on images where it is known."""

import numpy as np
import pytest

from gta_jax.data import colour_lookup
from gta_jax.data.colour_lookup import count_colours, told_by_colour


def told(images, masks, num_classes, *, grey=True):
  return told_by_colour([count_colours(image, mask, num_classes, grey=grey)
                         for image, mask in zip(images, masks, strict=True)])


def drawn(levels, *, channel=None, count=3):
  """Images whose halves, classes 0 and 1, have grey levels drawn at random from a range each."""
  rng = np.random.default_rng(0)
  mask = np.zeros((8, 8), np.uint8)
  mask[:, 4:] = 1
  images = []
  for _ in range(count):
    image = np.full((8, 8, 3), 100, np.uint8)
    drawn = np.choose(mask, [rng.integers(*of, mask.shape) for of in levels])
    image[..., slice(None) if channel is None else channel] = (
      drawn[..., None] if channel is None else drawn)
    images.append(image)
  return images, [mask] * count


def test_levels_apart_tell_everything_and_equal_ones_nothing():
  assert told(*drawn(((0, 64), (128, 192))), 2) == 1
  assert abs(told(*drawn(((0, 64), (0, 64)), count=20), 2)) < 0.15
  # Half of the first class's levels are the second's alone: half of it is told, 0.75 on average.
  half = told(*drawn(((0, 128), (64, 128)), count=40), 2)
  assert half == pytest.approx(0.5, abs=0.1)


def test_a_channel_of_its_own_tells_what_grey_levels_would_not():
  images, masks = drawn(((0, 64), (128, 192)), channel=2)
  assert told(images, masks, 2, grey=False) == 1
  greys = [np.repeat(image[..., :1], 3, -1) for image in images]
  assert told(greys, masks, 2) == 0


def test_an_image_does_not_tell_itself():
  """Levels that mean another class in the other image tell nothing of it."""
  images, masks = drawn(((0, 64), (128, 192)), count=1)
  assert told([*images, 255 - images[0]], [masks[0], masks[0]], 2) < 0.1


def test_too_few_masks_say_nothing_and_void_is_left_out():
  images, masks = drawn(((0, 64), (128, 192)), count=12)
  assert told(images[:1], masks[:1], 2) is None
  assert told_by_colour([]) is None
  assert told(images, [np.zeros_like(mask) for mask in masks], 2) is None
  other = masks[0].copy()
  other[:4] = 255
  assert told(images, [other] * 12, 5) == 1  # of the two classes that occur


def test_rare_classes_weigh_as_much_as_frequent_ones():
  """Each level of the rare class is more often the other's, but a larger share of its own."""
  images, masks = drawn(((0, 128), (0, 64)), count=40)
  for mask in masks:
    mask[:, 4:7] = 255
  assert told(images, masks, 2) == pytest.approx(0.5, abs=0.1)  # half of the first, all of the rare


def test_of_large_images_every_nth_row_and_column_is_counted(monkeypatch):
  (image,), (mask,) = drawn(((0, 64), (128, 192)), count=1)
  counts = count_colours(image, mask, 2, grey=True)
  assert counts.sum() == 64
  larger = (np.repeat(np.repeat(of, 3, 0), 3, 1) for of in (image, mask))
  monkeypatch.setattr(colour_lookup, '_PIXELS', 64)  # of 24 x 24: every third
  np.testing.assert_array_equal(count_colours(*larger, 2, grey=True), counts)
