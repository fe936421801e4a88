"""Dilated convolutions by phases, as GPUs take their kernels' gradients, against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.models.dilated_conv import convolve, convolve_phases, dilated_conv


def case(size, kernel=(3, 3), seed=0):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((2, *size, 3)).astype(np.float32)
  return x, rng.standard_normal((*kernel, 3, 4)).astype(np.float32)


@pytest.fixture
def phases(monkeypatch):
  """What GPUs do, on a CPU."""
  def choose(*arguments, cpu, default):
    del cpu
    return default(*arguments)

  monkeypatch.setattr(jax.lax, 'platform_dependent', choose)


@pytest.mark.parametrize('dilation', [2, 3, 12])
@pytest.mark.parametrize('size, kernel', [((9, 8), (3, 3)), ((13, 4), (5, 1)), ((1, 2), (1, 3))])
def test_values_and_gradients_are_those_of_the_convolution(phases, size, kernel, dilation):
  x, weights = case(size, kernel)
  own = functools.partial(convolve, dilation=dilation)
  expected, expected_gradients = jax.vjp(own, x, weights)
  given = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
  np.testing.assert_allclose(convolve_phases(x, weights, dilation), expected, atol=1e-5)
  found, gradients = jax.vjp(lambda x, k: dilated_conv(x, k, dilation), x, weights)
  np.testing.assert_array_equal(found, expected)
  for a, b in zip(gradients(given), expected_gradients(given), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_forward_mode_and_second_derivatives_are_those_of_the_convolution(phases):
  x, weights = case((5, 4))

  def of(function):
    def loss(x, weights):
      # A prediction's change along a direction, as virtual adversarial training takes it.
      y, pushed = jax.jvp(lambda x: function(x, weights), (x,), (jnp.cos(x),))
      return jnp.sum(jnp.sin(y) * pushed)

    def slope(x, weights):
      return sum(jnp.sum(jnp.square(g)) for g in jax.grad(loss, (0, 1))(x, weights))

    return jax.jvp(loss, (x, weights), (x, weights)), jax.grad(slope, (0, 1))(x, weights)

  found = of(lambda x, k: dilated_conv(x, k, 2))
  expected = of(functools.partial(convolve, dilation=2))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('platform, dilated', [('cpu', 3), ('cuda', 2), ('tpu', 2)])
def test_other_platforms_have_no_dilation_in_the_gradient_by_the_kernel(platform, dilated):
  """Of forward pass, gradient by the input and gradient by the kernel."""
  x, weights = case((9, 9))

  def step(x, weights):
    y, gradients = jax.vjp(lambda x, k: dilated_conv(x, k, 2), x, weights)
    return y, gradients(jnp.sin(y))

  text = jax.jit(step).trace(x, weights).lower(lowering_platforms=(platform,)).as_text()
  convolutions = [line for line in text.splitlines() if 'stablehlo.convolution' in line]
  assert len(convolutions) == 3
  assert sum('dilate = [2, 2]' in line or 'stride = [2, 2]' in line
             for line in convolutions) == dilated
