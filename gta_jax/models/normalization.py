"""Batch normalisation with gradients of its own, two to three times faster on CPUs."""

import jax
import jax.numpy as jnp

from gta_jax.ops.platforms import by_platform

Array = jax.Array


def channel_sums(x: Array) -> Array:
  """[...,C] -> [C].

  On a CPU a product with ones: XLA fuses a reduction over leading axes with all that comes before
  it, and then walks the memory in strides.
  """
  def product(x: Array) -> Array:
    flat = x.reshape(-1, x.shape[-1])
    return (jnp.ones((1, len(flat)), x.dtype) @ flat)[0]

  return by_platform(x, cpu=product, default=lambda x: x.sum(tuple(range(x.ndim - 1))))


def normalize(
  x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, Array, Array]:
  """Normalises by the batch's own statistics over all axes but the last.

      y = (x - mean) / sqrt(var + epsilon) scale + bias

  Args:
    x: [...,C] float32.
    scale, bias: [C] float32.
    epsilon: > 0.
  Returns: y, and mean and biased variance, [C] each, which are for running statistics and have no
    gradient. Gradients of any order can be taken in reverse mode, and forward mode on top of it;
    forward mode alone is refused by jax.
  """
  return _normalize(x, scale, bias, epsilon)


def _forward(
  x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
  count = x.size // x.shape[-1]
  mean = channel_sums(x) / count
  var = channel_sums(jnp.square(x - mean)) / count  # two passes: E[x^2] - E[x]^2 loses digits
  inverse = jax.lax.rsqrt(var + epsilon)
  slope = scale * inverse
  # Stopped, so that no order of gradient takes a wrong part of them.
  still_mean, still_var = jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)
  y = x * slope + (bias - mean * slope)
  return (y, still_mean, still_var), (x, scale, mean, inverse)


def _backward(epsilon: float, saved: tuple[Array, ...], gradients: tuple[Array, ...]) -> tuple:
  """With x^ = (x - mean) inverse and means over the batch:

      dx = scale inverse (dy - mean(dy) - x^ mean(dy x^))     dscale = sum(dy x^)    dbias = sum(dy)
  """
  del epsilon
  x, scale, mean, inverse = saved
  gradient, count = gradients[0], x.size // x.shape[-1]
  of_bias = channel_sums(gradient)
  of_scale = (channel_sums(gradient * x) - of_bias * mean) * inverse
  slope = scale * inverse
  of_x = -slope * inverse * of_scale / count
  return gradient * slope + x * of_x - (slope * of_bias / count + mean * of_x), of_scale, of_bias


def _value(
  x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, Array, Array]:
  return _forward(x, scale, bias, epsilon)[0]


_normalize = jax.custom_vjp(_value, nondiff_argnums=(3,))
_normalize.defvjp(_forward, _backward)
