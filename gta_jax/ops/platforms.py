"""Code that is written twice: for CPUs, and for everything else."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

_portable = contextvars.ContextVar('portable', default=False)


def by_platform(*args: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
  """What `cpu` gives where the program is lowered for a CPU, and `default` anywhere else."""
  if _portable.get():
    return default(*args)
  return jax.lax.platform_dependent(*args, cpu=cpu, default=default)


@contextlib.contextmanager
def portable() -> Iterator[None]:
  """What is traced inside has no choice left in it and is the same for all platforms.

  For exporters that do not know jax's own way to choose. jax remembers what it has traced: a
  function that was traced outside must come as another one.
  """
  token = _portable.set(True)
  try:
    yield
  finally:
    _portable.reset(token)
