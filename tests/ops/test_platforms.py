"""A choice by platform, and programs without one."""

import jax
import jax.numpy as jnp

from gta_jax.models.depthwise import depthwise
from gta_jax.ops.platforms import by_platform, portable


def test_what_is_traced_to_be_portable_has_no_choice_left():
  x, kernel = jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 1, 2))

  def trace():
    return str(jax.make_jaxpr(lambda x: depthwise(x, kernel, 1, 1))(x))

  assert 'platform_index' in trace()
  with portable():
    assert 'platform_index' not in trace()
  assert 'platform_index' in trace()


def test_the_choice_is_that_of_the_platform():
  chosen = jax.jit(lambda x: by_platform(x, cpu=lambda x: x + 1, default=lambda x: x - 1))(1.0)
  assert chosen == (2 if jax.default_backend() == 'cpu' else 0)
  with portable():
    assert by_platform(1.0, cpu=lambda x: x + 1, default=lambda x: x - 1) == 0
