"""Process-wide settings that must be in the environment before jax starts a backend."""

import importlib.metadata
import os

# jaxlib 0.10.2 fuses reductions through YNNPACK on the CPU: two to three times slower here, and
# known to return wrong values (jax issues 39103, 39257, 40412). An empty value turns it off. Other
# jaxlib versions abort on a flag they do not know, so the version must match exactly.
_YNN_FLAG = '--xla_cpu_experimental_ynn_fusion_type='
_YNN_JAXLIB = '0.10.2'


def set_cpu_flags() -> None:
  """Turns the faulty CPU fusion of jaxlib 0.10.2 off; does nothing on any other version.

  A user's own choice of the same flag in XLA_FLAGS stands.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  if importlib.metadata.version('jaxlib') == _YNN_JAXLIB and _YNN_FLAG not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} {_YNN_FLAG}'.strip()
