"""Sums of shifted products against XLA's grouped convolution, which other platforms use."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.models import depthwise as module
from gta_jax.models.depthwise import depthwise, same_padding


def case(size, kernel, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((2, *size, channels)).astype(np.float32)
  return x, rng.standard_normal((kernel, kernel, 1, channels)).astype(np.float32)


@pytest.mark.parametrize('side, stride, expected', [(6, 2, (0, 1)), (7, 2, (1, 1)), (6, 1, (1, 1))])
def test_an_odd_pixel_of_padding_is_at_the_end(side, stride, expected):
  assert same_padding((side,), 3, stride=stride) == [expected]


@pytest.mark.parametrize('kernel, stride, dilation', [
  (3, 1, 1), (3, 2, 1), (5, 1, 1), (5, 2, 1), (5, 1, 2), (3, 1, 4)])
@pytest.mark.parametrize('size', [
  (8, 19), pytest.param((5, 4), marks=pytest.mark.slow), (1, 2)])
def test_values_and_gradients_are_those_of_the_grouped_convolution(size, kernel, stride, dilation):
  x, weights = case(size, kernel)
  grouped = functools.partial(module._grouped, stride=stride, dilation=dilation)
  expected, expected_gradients = jax.vjp(grouped, x, weights)
  found, gradients = jax.vjp(lambda x, k: depthwise(x, k, stride, dilation), x, weights)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  given = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
  for a, b in zip(gradients(given), expected_gradients(given), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_second_derivatives_are_those_of_the_grouped_convolution():
  x, weights = case((4, 5), 3, channels=2)

  def of(convolution):
    def loss(x, weights):
      return jnp.sum(jnp.sin(convolution(x, weights)))

    def slope(x, weights):
      return sum(jnp.sum(jnp.square(g)) for g in jax.grad(loss, (0, 1))(x, weights))

    return jax.grad(slope, (0, 1))(x, weights)

  for a, b in zip(of(lambda x, k: depthwise(x, k, 2, 1)),
                  of(functools.partial(module._grouped, stride=2, dilation=1)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('platform, grouped', [('cpu', 0), ('cuda', 3), ('tpu', 3)])
def test_other_platforms_convolve(platform, grouped):
  """Convolutions in the program that is lowered for a platform: none, or forward and gradients."""
  x, weights = case((8, 8), 3)

  def step(x, weights):
    y, gradients = jax.vjp(lambda x, k: depthwise(x, k, 1, 1), x, weights)
    return y, gradients(x)

  text = jax.jit(step).trace(x, weights).lower(lowering_platforms=(platform,)).as_text()
  assert text.count('stablehlo.convolution') == grouped
