"""BatchNorm with gradients of its own against the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.models.layers import BatchNorm
from gta_jax.models.normalization import normalize
from gta_jax.ops.platforms import portable


def plain(x, scale, bias):
  mean = x.mean((0, 1, 2))
  var = jnp.square(x - mean).mean((0, 1, 2))
  return (x - mean) / jnp.sqrt(var + 1e-3) * scale + bias


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(0)
  x = (rng.standard_normal((2, 3, 4, 5)) * 3 + 7).astype(np.float32)
  return x, rng.uniform(0.5, 2, 5).astype(np.float32), rng.standard_normal(5).astype(np.float32)


NEAR = np.float32([7, 6, 8, 0, 7])


def normalized(x, scale, bias):
  return normalize(x, scale, bias, NEAR, 1e-3)[0]


def elsewhere(x, scale, bias):
  """As where there is no CPU."""
  with portable():
    return normalized(x, scale, bias)


@pytest.mark.parametrize('function', [normalized, elsewhere])
def test_values_and_gradients(inputs, function):
  weights = np.random.default_rng(1).standard_normal(inputs[0].shape).astype(np.float32)
  for of in (lambda f: f(*inputs), lambda f: jax.vjp(f, *inputs)[1](weights)):
    for a, b in zip(jax.tree.leaves(of(function)), jax.tree.leaves(of(plain)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('function', [normalized, elsewhere])
def test_second_and_third_derivatives(inputs, function):
  def third(f):
    def loss(*inputs):
      return jnp.sum(jnp.sin(f(*inputs)))

    def slope(*inputs):
      return sum(jnp.sum(jnp.square(g)) for g in jax.grad(loss, (0, 1, 2))(*inputs))

    second = jax.grad(slope, (0, 1, 2))
    return second(*inputs), jax.grad(lambda x: jnp.sum(second(x, *inputs[1:])[0] ** 2))(inputs[0])

  for a, b in zip(jax.tree.leaves(third(function)), jax.tree.leaves(third(plain)), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * np.abs(b).max())


def test_running_statistics_take_the_unbiased_variance(inputs):
  norm = BatchNorm(epsilon=1e-3, decay=0.99)
  variables = norm.init(jax.random.key(0), inputs[0], train=False)
  y, state = norm.apply(variables, inputs[0], train=True, mutable=['batch_stats'])
  np.testing.assert_allclose(y, plain(inputs[0], 1.0, 0.0), rtol=1e-5, atol=1e-5)
  moved = state['batch_stats']
  np.testing.assert_allclose(moved['mean'], 0.01 * inputs[0].mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(moved['var'], 0.99 + 0.01 * inputs[0].var((0, 1, 2), ddof=1),
                             rtol=1e-5)
