"""Derivatives of single layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.models.layers import BatchNorm, _moments, _one_pass, _two_passes


@pytest.mark.parametrize('far, digits', [(0.0, 6), (3.0, 5), (30.0, 3)])
def test_one_pass_is_two_passes_but_for_rounding(far, digits):
  """A guess of the mean that is `far` deviations off costs log10(1 + far^2) of 7 digits."""
  x = jnp.asarray(np.random.default_rng(0).normal(5, 2, (2, 9, 8, 3)), jnp.float32)
  mean, var = _two_passes(x, jnp.zeros(3))
  near_mean, near_var = _one_pass(x, mean + far * jnp.sqrt(var))
  np.testing.assert_allclose(near_mean, mean, rtol=10.0 ** -digits)
  np.testing.assert_allclose(near_var, var, rtol=10.0 ** -digits)
  assert jnp.all(_one_pass(jnp.full((4, 3), 0.1), jnp.zeros(3))[1] >= 0)


def test_gpus_read_the_input_once():
  x = jnp.ones((2, 9, 8, 3))

  def text(platform):
    traced = jax.jit(_moments).trace(x, jnp.zeros(3))
    return traced.lower(lowering_platforms=(platform,)).as_text()

  # Besides that of x - near (a mean on CPUs), GPUs square the mean.
  assert [text(platform).count('chlo.square') for platform in ('cpu', 'cuda')] == [1, 2]


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
