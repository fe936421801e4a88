"""Convolutions of stride 1 whose gradient by the kernel is another one than XLA's.

XLA makes of that gradient a convolution of the activations with the cotangent as its kernel, and
with the batch as channels. On a CPU its speed hangs on how many channels there are of what: it is
up to twice as fast where more images, of less height, are in the batch, and where the one with more
channels is the kernel (docs/performance.md). On GPUs XLA turns a dilation into a forward
convolution with a window of the whole feature map (65 x 65 for images of 513 pixels), which cuDNN
has no good kernel for: there the gradient is taken over phases. The choice is made here, when a
program is lowered.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gta_jax.ops.platforms import by_platform

Array = jax.Array
_IMAGES = 8  # of which multiples are fast on CPUs: Eigen reads so many channels at once


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(x: Array, kernel: Array, dilation: int) -> Array:
  """Convolves with stride 1, padded so that the size stays.

      y[b, i, j, d] = sum_uvc x[b, i + dilation (u - k // 2), j + dilation (v - k' // 2), c]
                              kernel[u, v, c, d]

  Args:
    x: [B,H,W,C].
    kernel: [k,k',C,D] of x's dtype, k and k' odd.
    dilation: of both axes.
  Returns: [B,H,W,D]. Gradients of any order can be taken in reverse mode, and forward mode on top
    of it; forward mode alone is refused by jax.
  """
  return convolve(x, kernel, dilation)


def convolve(x: Array, kernel: Array, dilation: int) -> Array:
  """convolution with XLA's own gradients."""
  padding = [(size // 2 * dilation, size // 2 * dilation) for size in kernel.shape[:2]]
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), padding, rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _forward(x: Array, kernel: Array, dilation: int) -> tuple[Array, tuple[Array, Array]]:
  return convolve(x, kernel, dilation), (x, kernel)


def _backward(dilation: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
  x, kernel = saved
  of_x, = jax.vjp(lambda x: convolve(x, kernel, dilation), x)[1](gradient)

  def by_kernel(function: Callable[..., Array]) -> Callable[[Array, Array], Array]:
    return lambda x, gradient: jax.vjp(
      lambda kernel: function(x, kernel, dilation), kernel)[1](gradient)[0]

  def correlated(x: Array, gradient: Array) -> Array:
    height, width, channels, features = kernel.shape
    if channels <= features:
      return correlate(x, gradient, (height, width))
    return correlate(gradient, x, (height, width))[::-1, ::-1].swapaxes(2, 3)

  if dilation > 1:
    on_cpu, elsewhere = by_kernel(convolve), by_kernel(convolve_phases)
  else:
    on_cpu, elsewhere = correlated, by_kernel(convolve)
  return of_x, by_platform(x, gradient, cpu=on_cpu, default=elsewhere)


convolution.defvjp(_forward, _backward)


def correlate(x: Array, y: Array, size: tuple[int, int]) -> Array:
  """r[u, v, c, d] = sum_bij x[b, i + u - k // 2, j + v - k' // 2, c] y[b, i, j, d], x zero outside.

  Args:
    x: [B,H,W,C].
    y: [B,H,W,D].
    size: (k, k'), both odd.
  Returns: [k,k',C,D].
  """
  batch, height = x.shape[:2]
  # As images of their own.
  strips = next((n for n in (1, 2, 4, 8) if not (batch * n % _IMAGES or height % n)), 1)
  rows = height // strips
  x = jnp.pad(x, [(0, 0), *((n // 2, n // 2) for n in size), (0, 0)])
  x = jnp.stack([x[:, i * rows:(i + 1) * rows + size[0] - 1] for i in range(strips)], 1)
  return jax.lax.conv_general_dilated(
    x.reshape(-1, *x.shape[2:]), y.reshape(-1, rows, *y.shape[2:]), (1, 1), 'VALID',
    dimension_numbers=('CHWN', 'IHWO', 'HWNC'))


def convolve_phases(x: Array, kernel: Array, dilation: int) -> Array:
  """convolution, computed without dilation.

  Pixels that are `dilation` apart never meet the others, so that they make up an image of their
  own. Each of the dilation^2 images is convolved by itself.
  """
  phases = convolve(_to_phases(x, dilation), kernel, 1)
  return _from_phases(phases, (x.shape[1], x.shape[2]), dilation)


def _to_phases(x: Array, dilation: int) -> Array:
  """[B,H,W,C] -> [B dilation^2, ceil(H / dilation), ceil(W / dilation), C], zeros where x ends."""
  batch, *sides, channels = x.shape
  height, width = (-(-side // dilation) for side in sides)
  lacking = [(0, n * dilation - side) for n, side in zip((height, width), sides, strict=True)]
  x = jnp.pad(x, [(0, 0), *lacking, (0, 0)])
  x = x.reshape(batch, height, dilation, width, dilation, channels).transpose(0, 2, 4, 1, 3, 5)
  return x.reshape(-1, height, width, channels)


def _from_phases(x: Array, size: tuple[int, int], dilation: int) -> Array:
  """The [B,H,W,C] of size (H, W) that _to_phases made x of."""
  _, height, width, channels = x.shape
  x = x.reshape(-1, dilation, dilation, height, width, channels).transpose(0, 3, 1, 4, 2, 5)
  x = x.reshape(-1, height * dilation, width * dilation, channels)
  return x[:, :size[0], :size[1]]
