import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.ops.ramps import sigmoid_ramp


def test_ramp_by_hand():
  ramp = jax.jit(lambda step: sigmoid_ramp(step, 10))
  for step, expected in ((-3, np.exp(-5)), (0, np.exp(-5)), (5, np.exp(-1.25)), (10, 1), (99, 1)):
    assert float(ramp(jnp.int32(step))) == pytest.approx(expected, rel=1e-6)


def test_no_ramp():
  assert float(sigmoid_ramp(jnp.int32(0), 0)) == 1
