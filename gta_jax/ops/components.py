"""Connected components of masks, on the device, and the boxes around them."""

import jax
import jax.numpy as jnp

Array = jax.Array


def connected_components(mask: Array) -> Array:
  """Numbers the 8-connected components of every mask.

  Each pixel takes the least number in its neighbourhood, and then the number of the pixel that this
  number names, until nothing changes. The second half makes long ways short, so that a component
  takes about as many rounds as the logarithm of its length.

  Args:
    mask: [B,H,W] bool.
  Returns: [B,H,W] int32, the position in the flattened mask of the first pixel of the component;
    H W outside of the mask.
  """
  height, width = mask.shape[1:]
  outside = height * width
  own = jnp.arange(outside, dtype=jnp.int32).reshape(height, width)

  def spread(numbers: Array) -> Array:
    least = jax.lax.reduce_window(
      numbers, jnp.int32(outside), jax.lax.min, (1, 3, 3), (1, 1, 1), 'SAME')
    return jnp.where(mask, least, outside)

  def jump(numbers: Array) -> Array:
    flat = numbers.reshape(len(mask), -1)
    named = jnp.take_along_axis(flat, jnp.minimum(flat, outside - 1), axis=1)
    return jnp.where(mask, named.reshape(mask.shape), outside)

  def round_of(numbers_before: tuple[Array, Array]) -> tuple[Array, Array]:
    numbers, _ = numbers_before
    return jump(spread(numbers)), numbers

  first = jnp.where(mask, own, outside)
  numbers, _ = jax.lax.while_loop(
    lambda pair: jnp.any(pair[0] != pair[1]), round_of, (spread(first), first))
  return numbers


def choose_component(mask: Array, priority: Array, *, least: float) -> Array:
  """Of every mask one component with more than so many pixels.

  Args:
    mask: [B,H,W] bool.
    priority: [B,H,W] float32 >= 0; the component whose first pixel, row by row, has the highest one
      is taken. Uniform numbers choose a component at random.
    least: pixels that a component must have more than.
  Returns: [B,H,W] bool, true on the component; false everywhere where none is large enough.
  """
  numbers = connected_components(mask).reshape(len(mask), -1)
  pixels = numbers.shape[1]
  own = jnp.arange(pixels)
  area = jax.vmap(lambda row: jnp.zeros(pixels + 1, jnp.int32).at[row].add(1))(numbers)
  large = (numbers == own) & (area[:, :-1] > least)
  score = jnp.where(large, priority.reshape(len(mask), -1), -1.0)
  chosen = jnp.argmax(score, axis=1, keepdims=True)
  found = jnp.any(large, axis=1, keepdims=True)
  return ((numbers == chosen) & found).reshape(mask.shape)


def bounding_boxes(mask: Array) -> Array:
  """The box around the true pixels of every mask [B,H,W], as bool [B,H,W]; empty around nothing."""
  inside = True
  for axis in (1, 2):
    line = jnp.any(mask, axis=3 - axis)
    begun = jnp.cumsum(line, axis=1) > 0
    not_ended = jnp.cumsum(line[:, ::-1], axis=1)[:, ::-1] > 0
    inside &= jnp.expand_dims(begun & not_ended, 3 - axis)
  return inside
