"""Percentiles without a sort against numpy's."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gta_jax.ops.order_statistics import percentiles
from gta_jax.ops.pseudo_labels import entropy

COUNT = 12
VALUES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]) | st.floats(0, 8, width=16)


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, COUNT, elements=VALUES), arrays(bool, COUNT),
       st.sampled_from([0.0, 10.0, 20.0, 50.0, 80.0, 100.0]))
def test_they_are_numpys(values, valid, percent):
  found = jax.jit(percentiles)(values, valid, jnp.array([percent, 100 - percent]))
  known = values[valid].astype(float)
  expected = np.percentile(known, [percent, 100 - percent]) if valid.any() else [0, 0]
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_a_percentile_that_is_a_value_is_that_value():
  values = np.linspace(0.1, 0.9, 11, dtype=np.float32)
  assert float(percentiles(values, np.ones(11, bool), jnp.array([80.0]))[0]) == values[8]


def test_entropy():
  p = jnp.array([[1.0, 0, 0], [1 / 3] * 3, [0.5, 0.5, 0]])
  np.testing.assert_allclose(entropy(p), [0, np.log(3), np.log(2)], rtol=1e-6)
  assert not np.signbit(entropy(p)).any()
