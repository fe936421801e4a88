"""Dilated convolutions whose gradient by the kernel has no dilation on GPUs.

XLA turns that gradient into a convolution of the activations with the cotangent as its kernel. For
GPUs this becomes a forward convolution with a window of the whole feature map (65 x 65 for images
of 513 pixels) and the batch as channels, which cuDNN has no good kernel for. On CPUs XLA's own is
as fast. The choice is made here, when a program is lowered for a platform.
"""

import functools

import jax
import jax.numpy as jnp

from gta_jax.ops.platforms import by_platform

Array = jax.Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def dilated_conv(x: Array, kernel: Array, dilation: int) -> Array:
  """Convolves with stride 1, padded so that the size stays.

      y[b, i, j, d] = sum_uvc x[b, i + dilation (u - k // 2), j + dilation (v - k' // 2), c]
                              kernel[u, v, c, d]

  Args:
    x: [B,H,W,C].
    kernel: [k,k',C,D] of x's dtype, k and k' odd.
    dilation: of both axes.
  Returns: [B,H,W,D]. Derivatives of any order can be taken in both modes.
  """
  return convolve(x, kernel, dilation)


def convolve(x: Array, kernel: Array, dilation: int) -> Array:
  """dilated_conv with XLA's own gradients."""
  padding = [(size // 2 * dilation, size // 2 * dilation) for size in kernel.shape[:2]]
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), padding, rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _tangent(dilation: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
  """dy = dx * k + x * dk, in which only the second part has a gradient by the kernel."""
  (x, kernel), (dx, dkernel) = primals, tangents
  parts = []
  if not isinstance(dx, jax.custom_derivatives.SymbolicZero):
    parts.append(dilated_conv(dx, kernel, dilation))
  if not isinstance(dkernel, jax.custom_derivatives.SymbolicZero):
    parts.append(by_platform(
      x, dkernel, cpu=functools.partial(convolve, dilation=dilation),
      default=functools.partial(convolve_phases, dilation=dilation)))
  y = dilated_conv(x, kernel, dilation)
  return y, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(y)


dilated_conv.defjvp(_tangent, symbolic_zeros=True)


def convolve_phases(x: Array, kernel: Array, dilation: int) -> Array:
  """dilated_conv, computed without dilation.

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
