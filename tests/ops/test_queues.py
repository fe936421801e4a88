"""Ring buffers against Python lists."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gta_jax.ops.queues import init_queues, push, read

SIZES, MOST = (3, 5), 7
append = jax.jit(lambda queues, keys, number: push(queues, SIZES, keys, number))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, MOST), st.integers(0, MOST)), min_size=1, max_size=4))
def test_queues_are_lists_that_keep_their_newest(pushes):
  """Also with more keys at once than a queue holds; other classes stay as they are."""
  queues, lists, name = init_queues(SIZES, 2), [[], []], 0
  for number in pushes:
    keys = np.zeros((2, MOST, 2), np.float32)
    for c in range(2):
      for i in range(MOST):
        name += 1
        keys[c, i] = name
        if i < number[c]:
          lists[c].append(name)
    lists = [x[-n:] for x, n in zip(lists, SIZES, strict=True)]
    queues = append(queues, keys, jnp.array(number))
  assert queues.held.tolist() == [len(x) for x in lists]
  for c, expected in enumerate(lists):
    ages = jnp.arange(len(expected))[None]
    assert read(queues, SIZES, jnp.array([c]), ages)[0, :, 1].tolist() == expected


def test_classes_and_ages_of_any_shape():
  queues = push(init_queues(SIZES, 1), SIZES, jnp.arange(8.0).reshape(2, 4, 1), jnp.array([2, 4]))
  found = read(queues, SIZES, jnp.array([1, 0]), jnp.array([[[3, 0]], [[1, 1]]]))
  assert found[..., 0].tolist() == [[[7, 4]], [[1, 1]]]
