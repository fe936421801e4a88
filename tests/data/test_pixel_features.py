import numpy as np
import pytest

from gta_jax.data.pixel_features import pixel_features


def test_features_of_a_parabola_are_its_derivatives():
  y, x = np.mgrid[:41, :41].astype(float)
  image = np.repeat(np.round((x - 20)**2 / 2)[..., None], 3, -1).astype(np.uint8)
  grey = pixel_features(image, grey=True)
  assert grey.shape == (41, 41, 19) and grey.dtype == np.float32
  # level, four Gaussians, then gradient, Laplacian and eigenvalues at scales 1, 2 and 4
  assert grey[20, 28, 0] == 32
  gradient, laplacian, largest, least = grey[20, 28, 9:13]
  assert gradient == pytest.approx(8, abs=0.1)
  assert (laplacian, largest, least) == pytest.approx((1, 1, 0), abs=0.05)
  assert pixel_features(image, grey=False).shape[-1] == 25
  assert np.isfinite(pixel_features(image[:1, :1], grey=False)).all()
