"""Convolution, batch normalisation, pooling and dropout as torch defines them, in NHWC.

Every layer computes in the dtype of its input and keeps its parameters in float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gta_jax.models.convolution import convolution
from gta_jax.models.normalization import normalize

Array = jax.Array


def scaled(channels: int, width: float) -> int:
  """channels x width, rounded to a multiple of 8, at least 8."""
  return max(8, int(channels * width / 8 + 0.5) * 8)


def conv(x: Array, kernel: Array, *, stride: int = 1, dilation: int = 1) -> Array:
  """The convolution that all layers use, padded as torch's padding = dilation (k - 1) / 2.

  Args:
    x: [B,H,W,C].
    kernel: [k,k,C,D] with odd k, cast to x's dtype.
    stride: of both axes.
    dilation: of both axes.
  Returns: [B,ceil(H/stride),ceil(W/stride),D].
  """
  kernel = kernel.astype(x.dtype)
  for axis in (0, 1):
    # Taps that lie further out than the image is wide see only padding, as ASPP's do in small
    # images: leave them out.
    taps = min(kernel.shape[axis] // 2, (x.shape[axis + 1] - 1) // dilation)
    centre = kernel.shape[axis] // 2
    kernel = jax.lax.slice_in_dim(kernel, centre - taps, centre + taps + 1, axis=axis)
  dilation = dilation if max(kernel.shape[:2]) > 1 else 1
  if stride == 1 and max(kernel.shape[:2]) > 1:
    return convolution(x, kernel, dilation)
  padding = [(size // 2 * dilation, size // 2 * dilation) for size in kernel.shape[:2]]
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def max_pool(x: Array, *, ceil_mode: bool) -> Array:
  """3x3 maximum with stride 2 and padding 1.

  [B,H,W,C] -> [B,h,w,C] with h = ceil(H / 2), or floor(H / 2) + 1 with ceil_mode: torch then lets
  the last window start on an even size's last pixel.
  """
  padding = [(1, 2 if ceil_mode and size % 2 == 0 else 1, 0) for size in x.shape[1:3]]
  x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
  # Maxima of slices: the gradient of a window maximum is a scatter, fifteen times slower on a CPU.
  for axis in (1, 2):
    end = (x.shape[axis] - 3) // 2 * 2 + 1
    taps = [jax.lax.slice_in_dim(x, tap, tap + end, 2, axis) for tap in range(3)]
    x = jnp.maximum(jnp.maximum(taps[0], taps[1]), taps[2])
  return x


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
  """x [...,C] + bias [C] float32, in x's dtype; the bias's gradient is added up in float32.

  It is a sum over all pixels, and in bfloat16 a sum stops growing at some 256 times what is added
  to it. Adding in float32 instead would do the same and keep arrays of that size: 3.2 GB more in a
  step of DINOv2-B.
  """
  return x + bias.astype(x.dtype)


def _add_bias(x: Array, bias: Array) -> tuple[Array, None]:
  return add_bias(x, bias), None


def _of_bias(_: None, gradient: Array) -> tuple[Array, Array]:
  wide = gradient.astype(jnp.float32)
  return gradient, wide.sum(tuple(range(gradient.ndim - 1)))


add_bias.defvjp(_add_bias, _of_bias)


class Conv(nn.Module):
  """`conv` with its parameters: kernel [size,size,C,features] and perhaps bias [features].

  A fresh kernel is zero: `make_segmenter` draws all of them at once.
  """

  features: int
  size: int = 3
  stride: int = 1
  dilation: int = 1
  bias: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.zeros, shape)
    x = conv(x, kernel, stride=self.stride, dilation=self.dilation)
    if self.bias:
      x = add_bias(x, self.param('bias', nn.initializers.zeros, (self.features,)))
    return x


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last, as torch's.

  The batch is normalised with its biased variance; the running variance takes the unbiased one.
  Statistics are float32. Inside jit over a sharded batch they are those of the whole batch.

  Attributes:
    epsilon: added to the variance.
    decay: of the running statistics.
  """

  epsilon: float = 1e-5
  decay: float = 0.9  # torch calls this momentum 0.1

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    shape = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape)
    wide = x.astype(jnp.float32)
    if not train:
      slope = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
      return (wide * slope + (bias - running_mean.value * slope)).astype(x.dtype)
    y, mean, var = normalize(wide, scale, bias, running_mean.value, self.epsilon)
    if not self.is_initializing():
      count = x.size // x.shape[-1]
      running_mean.value = _towards(running_mean.value, mean, self.decay)
      running_var.value = _towards(running_var.value, var * (count / max(count - 1, 1)), self.decay)
    return y.astype(x.dtype)


def _towards(running: Array, new: Array, decay: float) -> Array:
  return decay * running + (1 - decay) * new


def call(module: nn.Module, *inputs: Array, train: bool, remat: bool) -> Array:
  """module(*inputs, train=train); with remat its inner values are computed again for gradients.

  Parameters, their names and all results stay the same; the backward pass costs another forward.
  """
  def forward(module: nn.Module, *inputs: Array) -> Array:
    return module(*inputs, train=train)

  return (nn.remat(forward) if remat else forward)(module, *inputs)


def without_gradient(x: Array, frozen: bool) -> Array:
  """x; no gradient passes if frozen."""
  return jax.lax.stop_gradient(x) if frozen else x


def dropout(x: Array, rate: float, *, active: bool) -> Array:
  """Drops whole channels of [B,H,W,C] with the module's 'dropout' key, if active."""
  return nn.Dropout(rate, broadcast_dims=(1, 2), deterministic=not active)(x)
