"""Single layers and their derivatives."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.models.layers import BatchNorm, Conv, conv, dropout, max_pool
from gta_jax.models.normalization import _two_passes, normalize, one_pass
from gta_jax.ops.feature_perturbations import adversarial_direction


@pytest.mark.parametrize('far, digits', [(0.0, 6), (3.0, 5), (30.0, 3)])
def test_one_pass_is_two_passes_but_for_rounding(far, digits):
  """A guess of the mean that is `far` deviations off costs log10(1 + far^2) of 7 digits."""
  x = jnp.asarray(np.random.default_rng(0).normal(5, 2, (2, 9, 8, 3)), jnp.float32)
  mean, var = _two_passes(x, jnp.zeros(3))
  near_mean, near_var = one_pass(x, mean + far * jnp.sqrt(var))
  np.testing.assert_allclose(near_mean, mean, rtol=10.0 ** -digits)
  np.testing.assert_allclose(near_var, var, rtol=10.0 ** -digits)
  assert jnp.all(one_pass(jnp.full((4, 3), 0.1), jnp.zeros(3))[1] >= 0)


def test_gpus_read_the_input_once():
  x, function = jnp.ones((2, 9, 8, 3)), functools.partial(normalize, epsilon=1e-3)

  def text(platform):
    traced = jax.jit(function).trace(x, *[jnp.zeros(3)] * 3)
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


class _Dropout(nn.Module):
  @nn.compact
  def __call__(self, x):
    return dropout(x, 0.5, active=True)


@pytest.mark.parametrize('size', [5, 6, 7, 8])
@pytest.mark.parametrize('ceil_mode', [False, True])
def test_max_pool_counts_windows_as_torch(size, ceil_mode):
  x = np.random.default_rng(0).standard_normal((1, size, size + 1, 2)).astype(np.float32)

  def starts(length):
    # torch: the last window may lack pixels on the right, but must start on or before the last.
    count = (length - 1 + ceil_mode) // 2 + 1
    return [2 * i - 1 for i in range(count) if 2 * i - 1 < length]

  expected = [[x[0, max(i, 0):i + 3, max(j, 0):j + 3].max((0, 1)) for j in starts(size + 1)]
              for i in starts(size)]
  np.testing.assert_array_equal(max_pool(jnp.asarray(x), ceil_mode=ceil_mode)[0], expected)


def test_max_pool_sends_the_gradient_to_the_maximum():
  x = jnp.array([[0.0, 1.0, 2.0], [3.0, 9.0, 4.0], [5.0, 6.0, 7.0]]).reshape(1, 3, 3, 1)
  gradient = jax.grad(lambda x: max_pool(x, ceil_mode=True).sum())(x)
  np.testing.assert_array_equal(gradient.ravel(), [0, 0, 0, 0, 4, 0, 0, 0, 0])


@pytest.mark.parametrize('stride,dilation,size', [(1, 1, 3), (2, 1, 3), (2, 1, 7), (1, 2, 3),
                                                  (2, 2, 3), (1, 5, 3), (1, 6, 3), (1, 12, 3)])
def test_convolution_agrees_with_a_loop(stride, dilation, size):
  rng = np.random.default_rng(0)
  x, kernel = rng.standard_normal((2, 6, 9, 3)), rng.standard_normal((size, size, 3, 4))
  pad = dilation * (size // 2)
  padded = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
  expected = np.zeros((2, -(-6 // stride), -(-9 // stride), 4))
  for i in range(size):
    for j in range(size):
      window = padded[:, i * dilation:, j * dilation:][:, :6:stride, :9:stride]
      expected += window @ kernel[i, j]
  result = conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32),
                stride=stride, dilation=dilation)
  np.testing.assert_allclose(result, expected, atol=1e-4)


def test_dropout_drops_whole_channels():
  x = jnp.ones((2, 4, 4, 64))
  dropped = _Dropout().apply({}, x, rngs={'dropout': jax.random.key(0)})
  np.testing.assert_array_equal(dropped, jnp.broadcast_to(dropped[:, :1, :1], x.shape))
  assert set(np.unique(dropped)) == {0, 2}


class _Decoder(nn.Module):
  @nn.compact
  def __call__(self, x):
    return Conv(3)(nn.relu(BatchNorm()(Conv(5)(x), train=True)))


@pytest.mark.slow
def test_virtual_adversarial_training_goes_through_layers_without_forward_mode():
  x, d = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 2))
  variables = _Decoder().init(jax.random.key(1), x)
  # Kernels begin as zeros.
  params = jax.tree.map(lambda leaf: leaf + jax.random.normal(jax.random.key(2), leaf.shape),
                        variables['params'])

  def decode(x):
    return _Decoder().apply({**variables, 'params': params}, x, mutable=['batch_stats'])[0]

  with pytest.raises(TypeError, match='forward-mode'):
    jax.jvp(decode, (x,), (d,))
  valid = jnp.ones(x.shape[:3], bool).at[:, :, 3].set(False)
  found = adversarial_direction(decode, x, d, valid, radius=1.0)
  jacobian = jax.jacrev(decode)(x).reshape(x.size // 2 * 3, x.size)
  p = jax.nn.softmax(decode(x))
  pushed = (jacobian @ (d * valid[..., None]).ravel()).reshape(p.shape)
  moved = p * (pushed - (p * pushed).sum(-1, keepdims=True))
  expected = (moved.ravel() @ jacobian).reshape(x.shape) * valid[..., None]
  expected /= jnp.sqrt(jnp.square(expected).sum((1, 2, 3), keepdims=True))
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
