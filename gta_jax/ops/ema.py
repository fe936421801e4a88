"""Exponential moving averages of whole networks and of chosen keys (Eq. 5, 9 and 12)."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from gta_jax.ops import trees

Array = jax.Array
Tree = Any


def ema(old: Tree, new: Tree, decay: Array | float) -> Tree:
  """The exponential moving average, leaf by leaf (Eq. 12).

      old' = decay old + (1 - decay) new

  Args:
    old, new: trees of one structure.
    decay: in [0,1]; 0 copies `new`, 1 keeps `old`.
  Returns: a tree like `old`, dtypes kept.
  """
  def average(a: Array, b: Array) -> Array:
    return (decay * a + (1 - decay) * b).astype(a.dtype)

  return jax.tree.map(average, old, new)


def transmit(student: dict, assistant: dict, decay: Array | float, *, keys: Iterable[str]) -> dict:
  """Moves the chosen keys of the student's parameters towards the assistant's (Eq. 9).

      theta_f^student' = decay theta_f^student + (1 - decay) theta_f^assistant

  Args:
    student, assistant: parameters with the same top-level keys.
    decay: alpha in [0,1].
    keys: the top-level keys that make up f, ('backbone', 'decoder') by default in the method.
  Returns: the student's parameters; keys that are not named are the student's own, untouched.
  """
  keys = tuple(keys)
  averaged = ema(trees.select(student, keys), trees.select(assistant, keys), decay)
  return trees.replace(student, averaged)


def ema_decay(step: Array, *, decay: float, ramp: bool) -> Array:
  """The decay at a step, counted from the end of the warm-up.

  Args:
    step: int32 [], k = 0 at the first step after the warm-up.
    decay: alpha.
    ramp: False for the constant alpha of the paper; True for min(1 - 1/(k+1), alpha) of the
      published code, which copies at k = 0 and averages all networks so far equally until the
      bound is reached.
  Returns: [] float32.
  """
  if not ramp:
    return jnp.float32(decay)
  return jnp.minimum(1.0 - 1.0 / (step.astype(jnp.float32) + 1.0), decay)
