import numpy as np
import pytest

from gta_jax.data.structures import DIAMETERS, median_width, survivors


def width(mask):
  return median_width(survivors(mask, 1))


@pytest.mark.parametrize('side', [1, 2, 3, 5, 7, 12])
@pytest.mark.parametrize('turned', [False, True])
def test_a_stripe_is_as_wide_as_it_is(side, turned):
  mask = np.zeros((60, 70), np.uint8)
  mask[20:20 + side] = 1
  assert width(mask.T if turned else mask) == pytest.approx(side, abs=0.51, rel=0.13)


def test_a_disc_is_about_as_wide_as_its_diameter():
  y, x = np.mgrid[:80, :80]
  assert width(((y - 40)**2 + (x - 40)**2 < 15**2).astype(np.uint8)) == pytest.approx(29, abs=3)


def test_specks_and_jagged_borders_have_no_say():
  rng = np.random.default_rng(0)
  mask = np.zeros((90, 90), np.uint8)
  mask[30:60] = 1
  mask[29] = rng.random(90) < 0.5
  mask[70:] = rng.random((20, 90)) < 0.05
  assert 20 < width(mask) < 31


def test_the_border_of_the_image_cuts_nothing_off():
  mask = np.zeros((40, 40), np.uint8)
  mask[:, :20] = 1
  assert width(mask) > 31
  assert width(np.ones((40, 40), np.uint8)) == DIAMETERS[-1]


def test_half_of_the_pixels_decide_over_masks():
  thin, thick = np.zeros((2, 50, 50), np.uint8)
  thin[10:13], thick[10:35, :20] = 1, 1
  assert width(np.zeros((9, 9), np.uint8)) is None
  counts = survivors(thin, 1)
  assert counts[:3].tolist() == [150, 150, 0]
  assert median_width(counts + survivors(thick, 1)) > 9 > median_width(4 * counts + survivors(
    thick, 1)) == pytest.approx(3.5, abs=0.8)


def test_a_window_around_a_classs_middle_stands_for_all_of_a_large_mask():
  mask = np.zeros((400, 600), np.uint8)
  mask[350:355, 100:500] = 1  # far from the image's middle
  mask[0, 0] = 1  # a speck, in whose window there is nothing else
  mask[10:30] = 2
  for id, width in ((1, 5), (2, 20)):
    counts = survivors(mask, id, most=50**2)
    assert median_width(counts) == pytest.approx(width, rel=0.13)
    assert counts[0] < survivors(mask, id)[0]
  np.testing.assert_array_equal(survivors(mask, 1, most=mask.size), survivors(mask, 1))
