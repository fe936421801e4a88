"""Gradients of convolutions by their kernels, as CPUs and as GPUs take them, against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.models.convolution import convolution, convolve, convolve_phases


def case(size, kernel=(3, 3), *, batch=2, channels=(3, 4)):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((batch, *size, channels[0])).astype(np.float32)
  return x, rng.standard_normal((*kernel, *channels)).astype(np.float32)


@pytest.fixture
def elsewhere(monkeypatch):
  """What GPUs do, on a CPU."""
  as_elsewhere(monkeypatch)


def as_elsewhere(monkeypatch):
  def choose(*arguments, cpu, default):
    del cpu
    return default(*arguments)

  monkeypatch.setattr(jax.lax, 'platform_dependent', choose)


def assert_same_gradients(x, weights, dilation):
  own = functools.partial(convolve, dilation=dilation)
  expected, expected_gradients = jax.vjp(own, x, weights)
  given = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
  found, gradients = jax.vjp(lambda x, k: convolution(x, k, dilation), x, weights)
  np.testing.assert_array_equal(found, expected)
  for a, b in zip(gradients(given), expected_gradients(given), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('dilation', [1, 2, 3, 12])
@pytest.mark.parametrize('size, kernel', [((9, 8), (3, 3)), ((13, 4), (5, 1)), ((1, 2), (1, 3))])
def test_gradients_of_gpus(elsewhere, size, kernel, dilation):
  x, weights = case(size, kernel)
  np.testing.assert_allclose(convolve_phases(x, weights, dilation), convolve(x, weights, dilation),
                             atol=1e-5)
  assert_same_gradients(x, weights, dilation)


@pytest.mark.parametrize('channels', [(3, 4), (4, 3)])  # the wider one is the kernel
@pytest.mark.parametrize('batch, size, kernel', [
  (8, (5, 6), (3, 3)), (4, (6, 5), (3, 3)), (2, (8, 3), (5, 3)), (3, (7, 4), (3, 1)),
  (1, (2, 1), (3, 3))])  # strips: 1, 2, 4, none that fits, none that fits
def test_gradients_of_cpus(batch, size, kernel, channels):
  assert_same_gradients(*case(size, kernel, batch=batch, channels=channels), 1)


@pytest.mark.parametrize('cpu, dilation', [(True, 1), (False, 1), (False, 2)])
def test_higher_derivatives_in_reverse_mode_and_forward_mode_on_top(monkeypatch, cpu, dilation):
  if not cpu:
    as_elsewhere(monkeypatch)
  x, weights = case((4, 5))

  def of(function):
    def loss(x, weights):
      return jnp.sum(jnp.sin(function(x, weights)))

    def slope(x, weights):
      return sum(jnp.sum(jnp.square(g)) for g in jax.grad(loss, (0, 1))(x, weights))

    along = jax.jvp(jax.grad(loss, (0, 1)), (x, weights), (jnp.cos(x), weights))
    return along, jax.grad(slope, (0, 1))(x, weights)

  found = of(lambda x, k: convolution(x, k, dilation))
  expected = of(functools.partial(convolve, dilation=dilation))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('platform, dilated', [('cpu', 3), ('cuda', 2), ('tpu', 2)])
def test_other_platforms_have_no_dilation_in_the_gradient_by_the_kernel(platform, dilated):
  """Of forward pass, gradient by the input and gradient by the kernel."""
  x, weights = case((9, 9))

  def step(x, weights):
    y, gradients = jax.vjp(lambda x, k: convolution(x, k, 2), x, weights)
    return y, gradients(jnp.sin(y))

  text = jax.jit(step).trace(x, weights).lower(lowering_platforms=(platform,)).as_text()
  convolutions = [line for line in text.splitlines() if 'stablehlo.convolution' in line]
  assert len(convolutions) == 3
  assert sum('dilate = [2, 2]' in line or 'stride = [2, 2]' in line
             for line in convolutions) == dilated
