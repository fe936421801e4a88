"""Joined batches: every row once, taken apart again, and no device more than its own."""

import jax.numpy as jnp
import pytest

from gta_jax.ops.joining import join, separate


@pytest.mark.parametrize('counts, order', [
  ((3,), [0, 1, 2]), ((2, 2), [0, 2, 1, 3]),
  ((4, 2), [0, 1, 4, 2, 3, 5]), ((3, 2), [0, 1, 2, 3, 4]),
  ((2, 4, 2), [0, 2, 3, 6, 1, 4, 5, 7])])
def test_rows_alternate_and_come_apart_again(counts, order):
  rows = jnp.arange(sum(counts))
  starts = [sum(counts[:i]) for i in range(len(counts))]
  batches = [{'x': rows[start:start + n], 'y': (jnp.ones((n, 2, 3)) * start, None)}
             for start, n in zip(starts, counts, strict=True)]
  joined = join(*batches)
  assert joined['x'].tolist() == order and joined['y'][0].shape == (sum(counts), 2, 3)
  for batch, found in zip(batches, separate(joined, *counts), strict=True):
    assert found['x'].tolist() == batch['x'].tolist()
    assert (found['y'][0] == batch['y'][0]).all() and found['y'][1] is None


def test_rows_of_nothing_are_rows():
  joined = join(jnp.zeros((4, 0, 3)), jnp.zeros((2, 0, 3)))
  assert joined.shape == (6, 0, 3)
  assert [part.shape for part in separate(joined, 4, 2)] == [(4, 0, 3), (2, 0, 3)]


@pytest.mark.parametrize('devices', [2, 4])
def test_a_device_holds_the_rows_that_it_had(devices):
  """Whatever number of devices divides both batches; a third of 8 and 4 rows is labelled."""
  counts = 8, 4
  joined = join(*(jnp.arange(n) // (n // devices) for n in counts))
  assert joined.reshape(devices, -1).tolist() == [
    [device] * (sum(counts) // devices) for device in range(devices)]
