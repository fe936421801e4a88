"""Aligned-corner resizing against a loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.ops.resizing import resize_bilinear, resize_nearest


def _resize_slowly(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  batch, height, width, channels = x.shape
  out = np.zeros((batch, *size, channels))
  for i in range(size[0]):
    for j in range(size[1]):
      row = i * (height - 1) / (size[0] - 1) if size[0] > 1 else 0.0
      column = j * (width - 1) / (size[1] - 1) if size[1] > 1 else 0.0
      top, left = int(row), int(column)
      bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
      above = x[:, top, left] * (1 - column + left) + x[:, top, right] * (column - left)
      below = x[:, bottom, left] * (1 - column + left) + x[:, bottom, right] * (column - left)
      out[:, i, j] = above * (1 - row + top) + below * (row - top)
  return out


@pytest.mark.parametrize('source', [(1, 1), (3, 5), (4, 2)])
@pytest.mark.parametrize('target', [(1, 1), (3, 5), (7, 2), (9, 12)])
def test_resizing_agrees_with_a_loop(source, target):
  x = np.random.default_rng(0).standard_normal((2, *source, 3)).astype(np.float32)
  resized = resize_bilinear(jnp.asarray(x), target)
  np.testing.assert_allclose(resized, _resize_slowly(x, target), atol=1e-5)


def test_resizing_keeps_corners_and_dtype():
  x = jnp.arange(12, dtype=jnp.bfloat16).reshape(1, 3, 4, 1)
  resized = resize_bilinear(x, (10, 11))
  assert resized.dtype == jnp.bfloat16
  assert resized[0, ::9, ::10, 0].tolist() == [[0, 3], [8, 11]]


@pytest.mark.parametrize('size', [(3, 4), (2, 2), (7, 5), (1, 9)])
def test_nearest_is_torchs(size):
  torch = pytest.importorskip('torch')
  labels = np.arange(2 * 7 * 9).reshape(2, 7, 9)
  theirs = torch.nn.functional.interpolate(torch.tensor(labels)[None].float(), size=size)[0]
  np.testing.assert_array_equal(resize_nearest(labels, size), theirs)
