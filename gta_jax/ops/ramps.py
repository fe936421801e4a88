"""Ramps: factors that grow from about 0 to 1 at the start of a run."""

import jax
import jax.numpy as jnp

Array = jax.Array


def sigmoid_ramp(step: Array, steps: float) -> Array:
  """The ramp of Laine and Aila's temporal ensembling, of the factor of a consistency loss.

      exp(-5 (1 - t)^2),  t = min(step / steps, 1)

  Args:
    step: [] integer or float, since the start of the ramp; below 0 counts as 0.
    steps: its length; 0 for no ramp.
  Returns: [] float32, exp(-5) = 0.0067 at step 0, 1 from `steps` on.
  """
  done = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0, 1) if steps else jnp.float32(1)
  return jnp.exp(-5 * jnp.square(1 - done))
