"""Filters at several scales that tell what is around a pixel; the input of the baseline."""

import numpy as np
from scipy import ndimage

REACH = 32  # pixels, how far the widest filter looks: four deviations
_SMOOTH = (1.0, 2.0, 4.0, 8.0)
_DERIVED = (1.0, 2.0, 4.0)  # of gradient, Laplacian and Hessian
_LOCAL = (5, 11)  # sides of the windows of the deviation


def pixel_features(image: np.ndarray, *, grey: bool) -> np.ndarray:
  """Grey level, Gaussians, gradient, Laplacian, eigenvalues of the Hessian, local deviation.

  Args:
    image: uint8 [H,W,3] RGB.
    grey: leave out the colours, which follow otherwise: each channel, plain and smoothed.
  Returns: float32 [H,W,F], 19 features of a grey image, 25 of a coloured one.
  """
  pixels = image.astype(np.float32)
  level = pixels.mean(-1)
  features = [level, *(ndimage.gaussian_filter(level, sigma) for sigma in _SMOOTH)]
  for sigma in _DERIVED:
    features.append(ndimage.gaussian_gradient_magnitude(level, sigma))
    across, down, mixed = (_derivative(level, sigma, order) for order in ((0, 2), (2, 0), (1, 1)))
    features.append(across + down)
    # Of [[a, c], [c, b]]: (a + b) / 2 ± sqrt((a - b)^2 / 4 + c^2).
    spread = np.sqrt((across - down)**2 / 4 + mixed**2)
    features += [(across + down) / 2 + spread, (across + down) / 2 - spread]
  for side in _LOCAL:
    mean = ndimage.uniform_filter(level, side)
    variance = ndimage.uniform_filter(level * level, side) - mean * mean
    features.append(np.sqrt(np.maximum(variance, 0)))
  if not grey:
    features += [pixels[..., channel] for channel in range(3)]
    features += [ndimage.gaussian_filter(pixels[..., channel], 2.0) for channel in range(3)]
  return np.stack(features, -1).astype(np.float32)


def _derivative(level: np.ndarray, sigma: float, order: tuple[int, int]) -> np.ndarray:
  """A derivative of the smoothed levels, of so many orders downwards and across."""
  down = ndimage.gaussian_filter1d(level, sigma, axis=0, order=order[0])
  return ndimage.gaussian_filter1d(down, sigma, axis=1, order=order[1])
