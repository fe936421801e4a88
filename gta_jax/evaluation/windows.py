"""From a batch of padded images to labels at their own sizes, on the device.

Every protocol is the same two steps: the network sees windows (one, or a grid of them), and two
matrix products bring the logits of all windows to the original resolution at once. The matrices
hold the interpolation within a window, its place, the average where windows overlap, the way back
from a resized image, and the mirror.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gta_jax.evaluation.protocols import Protocol, View
from gta_jax.ops.network import Array, Network, Variables, check_sides
from gta_jax.ops.resizing import interpolation_matrix

Size = tuple[int, int]  # (height, width) in pixels
_EXACT = jax.lax.Precision.HIGHEST


class Prediction(NamedTuple):
  """labels: [...,H,W] uint8 classes. confidence: [...,H,W] float32, the largest probability."""

  labels: Any
  confidence: Any


class Images(NamedTuple):
  """A batch of one view.

  image: [B,h,w,3] uint8, padded at the right and at the bottom with the mean colour.
  size: [B,2] int32, each image's height and width without padding.
  ratio: [B,2] float32, size / original size; 1 if it was not resized.
  """

  image: Any
  size: Any
  ratio: Any


def check_protocols(network: Network, protocols: Sequence[Protocol]) -> None:
  """Raises: ValueError where a protocol shows images that the network's patches do not fill."""
  for protocol in protocols:
    check_sides(f'side of images in protocol {protocol.name}', protocol.sides, network.patch)


def predict_batch(
  network: Network,
  variables: Variables,
  images: Mapping[View, Images],
  protocol: Protocol,
  *,
  output_size: Size,
) -> Prediction:
  """Labels and confidence of a batch under a protocol.

  Args:
    network: static.
    variables: of one network.
    images: at least the protocol's views.
    output_size: (H,W), at least the originals' sizes.
  Returns: Prediction of [B,H,W]; what lies outside an image's own size has no meaning.
  """
  if len(protocol.views) == 1 and not protocol.flip:
    return _predict(network, variables, images[protocol.views[0]], output_size=output_size,
                    window=protocol.window)
  mean = predict_probabilities(network, variables, images, protocol, output_size=output_size)
  return Prediction(jnp.argmax(mean, -1).astype(jnp.uint8), mean.max(-1))


def predict_probabilities(
  network: Network,
  variables: Variables,
  images: Mapping[View, Images],
  protocol: Protocol,
  *,
  output_size: Size,
) -> Array:
  """Probabilities float32 [B,H,W,K] of a batch; arguments as predict_batch.

  The mean over the protocol's views and mirror images.
  """
  # Mirrored or not is a value, not a shape: the two share a program.
  flips = (False, True)[: 1 + protocol.flip]
  total: Any = sum(
    _probabilities(network, variables, images[view], mirrored, output_size=output_size,
                   window=protocol.window)
    for view in protocol.views for mirrored in flips)
  return total / (len(protocol.views) * len(flips))


@functools.partial(jax.jit, static_argnames=('network', 'output_size', 'window'))
def _predict(
  network: Network, variables: Variables, images: Images, *, output_size: Size, window: int
) -> Prediction:
  logits = _logits(network, variables, images, output_size=output_size, window=window)
  labels = jnp.argmax(logits, -1).astype(jnp.uint8)
  return Prediction(labels, 1 / jnp.exp(logits - logits.max(-1, keepdims=True)).sum(-1))


@functools.partial(jax.jit, static_argnames=('network', 'output_size', 'window'))
def _probabilities(
  network: Network, variables: Variables, images: Images, mirrored: Array, *, output_size: Size,
  window: int,
) -> Array:
  width = images.size[:, 1, None]
  column = jnp.arange(images.image.shape[2])
  # Padding stays at the right.
  source = jnp.where(mirrored & (column < width), width - 1 - column, column)
  image = jnp.take_along_axis(images.image, source[:, None, :, None], axis=2)
  logits = _logits(network, variables, images._replace(image=image), output_size=output_size,
                   window=window, mirrored=mirrored)
  return jax.nn.softmax(logits)


def _logits(
  network: Network, variables: Variables, images: Images, *, output_size: Size, window: int,
  mirrored: Array | bool = False,
) -> Array:
  """[B,H,W,K] float32 at the original resolution, mirrored back."""
  sides = images.image.shape[1:3]
  starts = [_window_starts(images.size[:, i], sides[i], window) for i in (0, 1)]
  low = _window_logits(network, variables, images.image, starts[0][0], starts[1][0], window)
  size = images.size.astype(jnp.float32)
  # The centres of pixels, as resizing an image keeps them (cv2.resize) in training and here.
  positions = [
    jnp.clip((jnp.arange(output_size[i]) + 0.5) * images.ratio[:, i, None] - 0.5,
             0, size[:, i, None] - 1) for i in (0, 1)]
  positions[1] = jnp.where(mirrored, size[:, 1, None] - 1 - positions[1], positions[1])
  rows, columns = (
    _restoring_matrices(positions[i], *starts[i], padded=sides[i], window=window or sides[i],
                        low=low.shape[3 + i])
    for i in (0, 1)
  )
  logits = jnp.einsum('bHnh,bnmhwk->bmHwk', rows, low, precision=_EXACT)
  return jnp.einsum('bWmw,bmHwk->bHWk', columns, logits, precision=_EXACT)


def _window_starts(size: Array, padded: int, window: int) -> tuple[Array, Array]:
  """Where the windows of each image start along one side, and which of them it needs.

  Args:
    size: [B] int32, of the images without padding.
    padded: of the batch; it decides on the number of windows, N.
    window: side of a window; 0 for one that is as large as the batch.
  Returns: [B,N] int32, negative where the image is smaller than the window; [B,N] bool.
  """
  if not window:
    return jnp.zeros((len(size), 1), jnp.int32), jnp.ones((len(size), 1), bool)
  stride = -(-2 * window // 3)
  number = jnp.arange(-(-max(padded - window, 0) // stride) + 1)
  last = size[:, None] - window
  inside = jnp.minimum(number * stride, last)
  return jnp.where(last > 0, inside, -(-last // 2)), (number == 0) | ((number - 1) * stride < last)


def _window_logits(
  network: Network, variables: Variables, image: Array, top: Array, left: Array, window: int
) -> Array:
  """Logits [B,N,M,h,w,K] of the windows that start at rows top [B,N] and columns left [B,M].

  A row of windows is computed at a time: all of them at once would take several times the memory
  of the whole image.
  """
  def forward(x: Array) -> Array:
    logits = network.apply(variables, network.normalize(x), train=False)[0].main
    return logits.astype(jnp.float32)

  if not window:
    return forward(image)[:, None, None]
  colour = np.round(255 * np.array(network.mean)).astype(np.uint8)

  def cut(x: Array, start: Array, axis: int) -> Array:
    index = start[:, None] + jnp.arange(window)
    inside = (index >= 0) & (index < x.shape[axis])
    inside = jnp.expand_dims(inside, [i for i in range(x.ndim + 1) if i not in (axis, axis + 1)])
    return jnp.where(inside, jnp.take(x, index, axis, mode='clip'), colour)

  def row(top: Array) -> Array:
    strip = jax.vmap(lambda x, start: cut(x, start[None], 0)[0])(image, top)
    windows = jax.vmap(lambda x, start: cut(x, start, 1))(strip, left)  # [B,window,M,window,3]
    windows = windows.swapaxes(1, 2).reshape(-1, window, window, 3)
    low = forward(windows)
    return low.reshape(*left.shape, *low.shape[1:])

  return jnp.moveaxis(jax.lax.map(row, top.T), 0, 1)


def _restoring_matrices(
  position: Array, start: Array, used: Array, *, padded: int, window: int, low: int
) -> Array:
  """[B,target,N,low]: from the logits of N windows to the padded image, and from there to `target`.

  Args:
    position: [B,target] float32, of each output in the padded image; whole numbers pick a pixel
      exactly, others interpolate. From windows' logits to the padded image corners are aligned.
    start: [B,N] int32, of the windows in the padded image.
    used: [B,N] bool, the windows that count.
  """
  taps = jnp.maximum(0, 1 - jnp.abs(position[..., None] - jnp.arange(padded)))
  within = jnp.arange(padded)[None, :, None] - start[:, None]  # [B,padded,N]
  covered = (within >= 0) & (within < window) & used[:, None]
  share = covered / jnp.maximum(covered.sum(-1, keepdims=True), 1)
  matrix = jnp.asarray(interpolation_matrix(window, low))[jnp.clip(within, 0, window - 1)]
  return jnp.einsum('btp,bpnl->btnl', taps, share[..., None] * matrix, precision=_EXACT)
