"""Depthwise convolutions with TensorFlow's padding, fast on CPUs and GPUs alike.

On a CPU XLA's grouped convolution is far slower than this module's sums of shifted products, of
which XLA makes one loop over the output: in EfficientNet-Lite0 by 12 to 20 times forwards and by 13
to 17 with the gradient (whole backbone, 8 images of 128 x 128 pixels, fastest of 7 alternating runs
on one core of a busy machine, twice; 2026-11-26). Elsewhere XLA's own is used. The choice is made
here, when a program is lowered for a platform, for the convolution and for both of its gradients.
"""

import functools

import jax
import jax.numpy as jnp

from gta_jax.ops.platforms import by_platform

Array = jax.Array
_Padding = list[tuple[int, int]]
_BLOCK = 16  # pixels: fewer are slower to run, more are slower to compile


def same_padding(
  size: tuple[int, ...], kernel: int, *, stride: int = 1, dilation: int = 1
) -> _Padding:
  """TensorFlow's 'SAME' for each side: ceil(side / stride) outputs, an odd pixel at the end."""
  padding = []
  for side in size:
    reach = (-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1
    total = max(reach - side, 0)
    padding.append((total // 2, total - total // 2))
  return padding


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x: Array, kernel: Array, stride: int, dilation: int) -> Array:
  """Convolves each channel with a kernel of its own.

      y[b, i, j, c] = sum_uv padded x[b, stride i + dilation u, stride j + dilation v, c] k[u, v, c]

  Args:
    x: [B,H,W,C].
    kernel: [k,k,1,C] of x's dtype.
    stride: of both axes.
    dilation: of both axes.
  Returns: [B,ceil(H/stride),ceil(W/stride),C]. Gradients of any order can be taken in reverse mode,
    and forward mode on top of it; forward mode alone is refused by jax.
  """
  shifted = functools.partial(_shifted, stride=stride, dilation=dilation)
  grouped = functools.partial(_grouped, stride=stride, dilation=dilation)
  return by_platform(x, kernel, cpu=shifted, default=grouped)


def _forward(x: Array, kernel: Array, stride: int, dilation: int) -> tuple:
  return depthwise(x, kernel, stride, dilation), (x, kernel)


def _backward(stride: int, dilation: int, saved: tuple[Array, Array], gradient: Array) -> tuple:
  def shifted(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    of_x = _by_input(gradient, kernel, x.shape[1:3], stride=stride, dilation=dilation)
    return of_x, _by_kernel(x, gradient, len(kernel), stride=stride, dilation=dilation)

  def grouped(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    convolution = functools.partial(_grouped, stride=stride, dilation=dilation)
    return jax.vjp(convolution, x, kernel)[1](gradient)

  return by_platform(*saved, gradient, cpu=shifted, default=grouped)


depthwise.defvjp(_forward, _backward)


def _grouped(x: Array, kernel: Array, *, stride: int, dilation: int) -> Array:
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride),
    same_padding(x.shape[1:3], len(kernel), stride=stride, dilation=dilation),
    rhs_dilation=(dilation, dilation), dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1])


def _padded(x: Array, kernel: int, stride: int, dilation: int) -> Array:
  padding = same_padding(x.shape[1:3], kernel, stride=stride, dilation=dilation)
  return jnp.pad(x, [(0, 0), *padding, (0, 0)])


def _shifted(x: Array, kernel: Array, *, stride: int, dilation: int) -> Array:
  taps, padded = len(kernel), _padded(x, len(kernel), stride, dilation)
  ends = [(-(-side // stride) - 1) * stride + 1 for side in x.shape[1:3]]

  def seen(row: int, column: int) -> Array:
    """What the tap of this place sees, one value for each output."""
    top, left = row * dilation, column * dilation
    return padded[:, top:top + ends[0]:stride, left:left + ends[1]:stride]

  products = [seen(i, j) * kernel[i, j, 0] for i in range(taps) for j in range(taps)]
  return functools.reduce(jnp.add, products)


def _by_input(
  gradient: Array, kernel: Array, size: tuple[int, ...], *, stride: int, dilation: int
) -> Array:
  """The gradient by x [B,H,W,C]: a sum for each of the stride^2 phases of x, then interleaved."""
  taps = len(kernel)
  before = [pad for pad, _ in same_padding(size, taps, stride=stride, dilation=dilation)]
  counts = [-(-side // stride) for side in size]
  reach = taps * dilation // stride + 1  # as far as any shift looks beyond the gradient
  padded = jnp.pad(gradient, [(0, 0), (reach, reach), (reach, reach), (0, 0)])

  def shifts(axis: int, phase: int) -> list[tuple[int, int]]:
    """Taps that see this phase of x, each with the place in `padded` where its outputs begin."""
    places = [(tap, phase + before[axis] - tap * dilation) for tap in range(taps)]
    return [(tap, place // stride + reach) for tap, place in places if place % stride == 0]

  def of_phase(row: int, column: int) -> Array:
    return sum(
      (padded[:, top:top + counts[0], left:left + counts[1]] * kernel[i, j, 0]
       for i, top in shifts(0, row) for j, left in shifts(1, column)),
      start=jnp.zeros((len(gradient), *counts, gradient.shape[-1]), gradient.dtype))

  phases = range(stride)
  rows = [jnp.stack([of_phase(row, column) for column in phases], axis=3) for row in phases]
  whole = jnp.stack(rows, axis=2)
  whole = whole.reshape(len(whole), counts[0] * stride, counts[1] * stride, -1)
  return whole[:, :size[0], :size[1]]


def _by_kernel(x: Array, gradient: Array, taps: int, *, stride: int, dilation: int) -> Array:
  """The gradient by the kernel, [k,k,1,C].

  A loop over small blocks of pixels whose body sums over a block in registers: XLA's reductions
  over leading axes write every product to memory first. Images have sums of their own until the
  end, so that the loop needs nothing of other devices where the batch is split.
  """
  batch, height, width, channels = gradient.shape
  columns = min(width, _BLOCK)
  rows = min(height, _BLOCK // columns)
  counts = -(-height // rows), -(-width // columns)
  # Zeros to whole blocks, in x as far as these look.
  whole = counts[0] * rows, counts[1] * columns
  gradient = jnp.pad(gradient, [(0, 0), (0, whole[0] - height), (0, whole[1] - width), (0, 0)])
  x = _padded(x, taps, stride, dilation)
  reach = (taps - 1) * dilation + 1
  lacking = [max((n - 1) * stride + reach - side, 0)
             for n, side in zip(whole, x.shape[1:3], strict=True)]
  x = jnp.pad(x, [(0, 0), (0, lacking[0]), (0, lacking[1]), (0, 0)])
  spans = [(n - 1) * stride + reach for n in (rows, columns)]

  def add_block(total: Array, number: Array) -> tuple[Array, None]:
    row, column = number // counts[1] * rows, number % counts[1] * columns
    seen = jax.lax.dynamic_slice(
      x, (0, row * stride, column * stride, 0), (batch, *spans, channels)).astype(jnp.float32)
    block = jax.lax.dynamic_slice(
      gradient, (0, row, column, 0), (batch, rows, columns, channels)).astype(jnp.float32)
    sums = [
      sum(seen[:, r * stride + i * dilation, c * stride + j * dilation] * block[:, r, c]
          for r in range(rows) for c in range(columns))
      for i in range(taps) for j in range(taps)]
    return total + jnp.stack(sums), None

  zeros = jnp.zeros((taps * taps, batch, channels), jnp.float32)
  total, _ = jax.lax.scan(add_block, zeros, jnp.arange(counts[0] * counts[1]))
  return total.sum(1).reshape(taps, taps, 1, channels).astype(x.dtype)
