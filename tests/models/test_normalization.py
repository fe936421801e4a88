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


def lean(x, scale, bias):
  return normalize(x, scale, bias, NEAR, 1e-3)[0]


def elsewhere(x, scale, bias):
  """As where there is no CPU."""
  with portable():
    return lean(x, scale, bias)


@pytest.mark.parametrize('lean', [lean, elsewhere])
def test_values_and_gradients(inputs, lean):
  weights = np.random.default_rng(1).standard_normal(inputs[0].shape).astype(np.float32)
  for of in (lambda f: f(*inputs), lambda f: jax.vjp(f, *inputs)[1](weights)):
    for a, b in zip(jax.tree.leaves(of(lean)), jax.tree.leaves(of(plain)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('lean', [lean, elsewhere])
def test_second_and_third_derivatives(inputs, lean):
  def third(f):
    def loss(*inputs):
      return jnp.sum(jnp.sin(f(*inputs)))

    def slope(*inputs):
      return sum(jnp.sum(jnp.square(g)) for g in jax.grad(loss, (0, 1, 2))(*inputs))

    second = jax.grad(slope, (0, 1, 2))
    return second(*inputs), jax.grad(lambda x: jnp.sum(second(x, *inputs[1:])[0] ** 2))(inputs[0])

  for a, b in zip(jax.tree.leaves(third(lean)), jax.tree.leaves(third(plain)), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * np.abs(b).max())


def test_both_kinds_of_batch_norm_agree(inputs):
  found = []
  for fast in (False, True):
    norm = BatchNorm(lean=fast, epsilon=1e-3, decay=0.99)
    variables = norm.init(jax.random.key(0), inputs[0], train=False)
    found.append(norm.apply(variables, inputs[0], train=True, mutable=['batch_stats']))
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  moved = found[1][1]['batch_stats']
  np.testing.assert_allclose(moved['mean'], 0.01 * inputs[0].mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(moved['var'], 0.99 + 0.01 * inputs[0].var((0, 1, 2), ddof=1),
                             rtol=1e-5)
