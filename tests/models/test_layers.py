"""Derivatives of single layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.models.layers import BatchNorm


@pytest.mark.slow
def test_second_derivatives_of_batch_norm_are_those_of_its_formula():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 3, 2)), jnp.float32)
  weights = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
  variables = BatchNorm().init(jax.random.key(0), x, train=True)

  def layer(x):
    y, _ = BatchNorm().apply(variables, x, train=True, mutable=['batch_stats'])
    return jnp.sum(weights * jnp.tanh(y))

  def formula(x):
    mean = x.mean((0, 1))
    return jnp.sum(weights * jnp.tanh((x - mean) / jnp.sqrt((x * x).mean((0, 1)) - mean**2 + 1e-5)))

  np.testing.assert_allclose(jax.grad(layer)(x), jax.grad(formula)(x), atol=1e-5)
  np.testing.assert_allclose(jax.hessian(layer)(x), jax.hessian(formula)(x), atol=1e-4)
  third = [jax.jvp(lambda x, f=f: jax.jvp(jax.grad(f), (x,), (weights,))[1], (x,), (x,))[1]
           for f in (layer, formula)]
  np.testing.assert_allclose(*third, atol=1e-3)
