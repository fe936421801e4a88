"""Perturbations of a feature map that leave its meaning: dropped, masked, noisy, adversarial.

All are constants to a gradient. What is random for an image takes a key of its own, so that it does
not depend on the images beside it.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gta_jax.ops.components import connected_components

Array = jax.Array


def channel_dropout(keys: Array, channels: int) -> Array:
  """Factors [B,F] of whole channels: 0 or 2, each with probability 1/2, from keys [B]."""
  kept = jax.vmap(lambda key: jax.random.bernoulli(key, shape=(channels,)))(keys)
  return 2.0 * kept


def weak_activations(features: Array, valid: Array, share: Array) -> Array:
  """Where the mean over channels is below a share of its largest value in the image.

      a = mean_c f;  a < share * max(a)

  Args:
    features: [B,h,w,F] float32.
    valid: [B,h,w] bool, among which the largest value is looked for.
    share: [] float32.
  Returns: [B,h,w] bool.
  """
  attention = jnp.mean(features, axis=-1)
  largest = jnp.max(attention, (1, 2), keepdims=True, where=valid, initial=-jnp.inf)
  return attention < share * largest


def component_boxes(mask: Array, *, count: int, least: float) -> Array:
  """The boxes around the connected components with the longest borders, at most `count` an image.

  Pixels are connected with their eight neighbours. A component's border are its pixels that have
  one of four neighbours outside of it, at holes too.

  Args:
    mask: [B,h,w] bool.
    count: N; further components are left out.
    least: pixels of border that a component must exceed.
  Returns: [B,N,4] int32 (top, left, height, width); height and width are 0 where there is none.
  """
  height, width = mask.shape[1:]
  count = min(count, height * width)
  named = jnp.where(mask, connected_components(mask) + 1, 0)  # 0 is outside

  def of_image(mask: Array, named: Array) -> Array:
    around = jnp.pad(mask, 1)
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    border = jnp.zeros(height * width + 1, jnp.int32).at[named].add(mask & ~inner)
    lengths, chosen = jax.lax.top_k(border.at[0].set(0), count)
    members = (named == chosen[:, None, None]) & (lengths > least)[:, None, None]
    return jnp.concatenate([_extent(members.any(2)), _extent(members.any(1))], 1)[:, (0, 2, 1, 3)]

  return jax.vmap(of_image)(mask, named)


def _extent(occupied: Array) -> Array:
  """[N,n] bool -> [N,2]: the first true one, and the distance to just behind the last one."""
  length = occupied.shape[1]
  first = jnp.argmax(occupied, 1)
  last = length - jnp.argmax(occupied[:, ::-1], 1)
  return jnp.stack([first, jnp.where(occupied.any(1), last - first, 0)], 1)


def cut_out(keys: Array, boxes: Array, size: Sequence[int], *, share: float = 0.4) -> Array:
  """What is left after a smaller box has been erased at a random place in each box.

  Args:
    keys: [B].
    boxes: [B,N,4] as of component_boxes.
    size: (h, w).
    share: of a box's height and of its width, rounded down.
  Returns: [B,h,w] bool, false where erased.
  """
  def of_image(key: Array, boxes: Array) -> Array:
    starts, lengths = boxes[:, :2], boxes[:, 2:]
    erased = jnp.floor(share * lengths)
    places = jax.random.uniform(key, lengths.shape)
    starts = starts + jnp.floor(places * (lengths - erased + 1))
    rows, columns = (
      (jnp.arange(n) >= starts[:, i, None]) & (jnp.arange(n) < (starts + erased)[:, i, None])
      for i, n in enumerate(size))
    return ~jnp.any(rows[:, :, None] & columns[:, None], axis=0)

  return jax.vmap(of_image)(keys, boxes)


def adversarial_direction(
  decode: Callable[[Array], Array], features: Array, direction: Array, valid: Array, *,
  radius: float,
) -> Array:
  """The direction in which a decoder's prediction changes most (virtual adversarial training).

      r = radius g / ||g||,  g = J^T (diag p - p p^T) J d,  p = softmax decode(f),  J its Jacobian

  g is half the gradient by xi of KL(p || softmax decode(f + xi d)) / xi in the limit of a small xi.

  Args:
    decode: [B,h,w,F] features -> [B,...,K] logits, image by image.
    features: [B,h,w,F] float32.
    direction: [B,h,w,F] float32, random; its length does not matter.
    valid: [B,h,w] bool; elsewhere direction and result are 0.
    radius: of the result in each image.
  Returns: [B,h,w,F] float32; 0 in images where g is 0.
  """
  masked = jnp.where(valid[..., None], direction, 0.0)
  logits, back = jax.vjp(decode, features)
  # J as the transpose of its transpose: our layers refuse forward mode.
  pushed, = jax.linear_transpose(lambda cotangent: back(cotangent)[0], logits)(masked)
  p = jax.nn.softmax(logits)
  moved = p * (pushed - jnp.sum(p * pushed, axis=-1, keepdims=True))
  gradient, = back(moved)
  return radius * _unit(jnp.where(valid[..., None], gradient, 0.0))


def adversarial_as_shipped(
  decode: Callable[[Array], Array], features: Array, direction: Array, valid: Array, *,
  radius: float, xi: float = 1e-6,
) -> Array:
  """The published code's direction: a difference of xi, lost in the rounding of float32.

  The gradient at xi d, d of norm 1, is of order xi^2 and divided by its norm + 1e-8, so that next
  to nothing is left of the radius. Args and Returns: as of adversarial_direction.
  """
  direction = _unit(jnp.where(valid[..., None], direction, 0.0))
  p = jax.nn.softmax(decode(features))

  def divergence(direction: Array) -> Array:
    moved = jax.nn.log_softmax(decode(features + xi * direction))
    return jnp.sum(p * (jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny)) - moved)) / len(features)

  gradient = jnp.where(valid[..., None], jax.grad(divergence)(direction), 0.0)
  norm = jnp.sqrt(jnp.sum(jnp.square(gradient), (1, 2, 3), keepdims=True))
  return radius * gradient / (norm + 1e-8)


def _unit(x: Array) -> Array:
  """[B,...] scaled to norm one in each image, or left at 0."""
  axes = tuple(range(1, x.ndim))
  largest = jnp.max(jnp.abs(x), axes, keepdims=True)
  # First by the largest value: squares of small ones would vanish.
  x = x / jnp.where(largest > 0, largest, 1.0)
  norm = jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True))
  return x / jnp.where(norm > 0, norm, 1.0)
