"""Sums of a program that are added up in bfloat16, where they stop growing early."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

_SUMS = ('reduce_sum', 'cumsum', 'reduce_window_sum', 'scatter-add')


def narrow_sums(jaxpr: Any) -> Iterator[str]:
  """Each as text: the kind, the shape, and where it comes from."""
  for equation in jaxpr.eqns:
    found = equation.invars[0].aval if equation.invars else None
    if equation.primitive.name in _SUMS and found.dtype == jnp.bfloat16:
      yield f'{equation.primitive.name} {found.shape} {equation.source_info.name_stack}'
  for inner in jax.extend.core.subjaxprs(jaxpr):
    yield from narrow_sums(inner)
