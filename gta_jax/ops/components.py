"""Connected components of masks, on the device, and the boxes around them."""

import jax
import jax.numpy as jnp

Array = jax.Array


def connected_components(mask: Array) -> Array:
  """Numbers the 8-connected components of every mask.

  Each pixel starts with its own position. In a round it finds the least number in its
  neighbourhood, takes it, hands it on to the pixel that its own number names, and then takes the
  number of the pixel that it now names; until nothing changes. Handing on and looking up join
  whole pieces at a time: rounds grow as the logarithm of the way through a component, 16 for one
  that winds through 257 x 257 pixels.

  Args:
    mask: [B,H,W] bool.
  Returns: [B,H,W] int32, the position in the flattened mask of the first pixel of the component;
    H W outside of the mask.
  """
  batch, height, width = mask.shape
  outside = height * width

  def least_around(numbers: Array) -> Array:
    least = jax.lax.reduce_window(
      numbers[:, :-1].reshape(mask.shape), jnp.int32(outside), jax.lax.min, (1, 3, 3), (1, 1, 1),
      'SAME')
    return flatten(jnp.where(mask, least, outside))

  def flatten(numbers: Array) -> Array:
    # One more place, whose number is its own: what is outside of the mask names it.
    return jnp.pad(numbers.reshape(batch, -1), ((0, 0), (0, 1)), constant_values=outside)

  def a_round(pair: tuple[Array, Array]) -> tuple[Array, Array]:
    numbers, _ = pair
    least = least_around(numbers)
    handed = jax.vmap(lambda own, found: own.at[own].min(found))(numbers, least)
    joined = jnp.minimum(handed, least)
    return jax.vmap(lambda own: own[own])(joined), numbers

  own = jnp.arange(outside, dtype=jnp.int32).reshape(height, width)
  first = flatten(jnp.where(mask, own, outside))
  numbers, _ = jax.lax.while_loop(
    lambda pair: jnp.any(pair[0] != pair[1]), a_round, a_round((first, first)))
  return numbers[:, :-1].reshape(mask.shape)


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
