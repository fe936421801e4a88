"""EMA of whole trees and of chosen keys (Eq. 9 and 12)."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gta_jax.ops.ema import ema, ema_decay, transmit

decays = st.floats(0, 1, width=32)
values = st.floats(-4, 4, width=32)


def tree(value):
  return {'backbone': {'kernel': jnp.array([value, 2.0])}, 'decoder': jnp.array(value),
          'classifier': jnp.array(value)}


def test_ema_by_hand():
  np.testing.assert_allclose(ema(tree(1.0), tree(3.0), 0.75)['decoder'], 1.5)


@settings(max_examples=50, deadline=None)
@given(values, values, decays)
def test_ema_is_linear_and_lies_between(old, new, decay):
  result = float(ema(jnp.float32(old), jnp.float32(new), decay))
  assert min(old, new) - 1e-5 <= result <= max(old, new) + 1e-5
  doubled = float(ema(jnp.float32(2 * old), jnp.float32(2 * new), decay))
  np.testing.assert_allclose(doubled, 2 * result, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(values, values, decays, decays)
def test_ema_composes(old, new, a, b):
  """Twice towards the same target is once with the product of the decays."""
  twice = ema(ema(jnp.float32(old), jnp.float32(new), a), jnp.float32(new), b)
  np.testing.assert_allclose(twice, ema(jnp.float32(old), jnp.float32(new), a * b), atol=1e-5)


def test_ema_keeps_dtype():
  assert ema(jnp.ones(2, jnp.bfloat16), jnp.zeros(2, jnp.bfloat16), 0.9).dtype == jnp.bfloat16


def test_transmit_moves_the_named_keys_and_no_other():
  student, assistant = tree(1.0), tree(3.0)
  result = transmit(student, assistant, 0.5, keys=('backbone', 'decoder'))
  np.testing.assert_allclose(result['backbone']['kernel'], [2.0, 2.0])
  np.testing.assert_allclose(result['decoder'], 2.0)
  assert result['classifier'] is student['classifier']
  assert student['decoder'] == 1.0


def test_transmit_names_a_key_that_is_not_there():
  with pytest.raises(ValueError, match="'head'.*classifier"):
    transmit(tree(1.0), tree(2.0), 0.5, keys=('head',))


@pytest.mark.parametrize(
  'step, expected', [(0, 0.0), (1, 0.5), (9, 0.9), (99, 0.99), (10**6, 0.99)])
def test_ramp_averages_equally_until_its_bound(step, expected):
  assert float(ema_decay(jnp.int32(step), decay=0.99, ramp=True)) == pytest.approx(expected)
  assert float(ema_decay(jnp.int32(step), decay=0.99, ramp=False)) == pytest.approx(0.99)
