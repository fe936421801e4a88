"""Process-wide settings of jax and XLA."""

import importlib.metadata
import os
import platform
from pathlib import Path

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


def keep_compiled_programs() -> None:
  """Lets the next process start without compiling: programs are kept in ~/.cache/gta_jax/xla.

  At most 2 GB; the least recently used go first. JAX_COMPILATION_CACHE_DIR names another folder,
  JAX_ENABLE_COMPILATION_CACHE=false turns it off. Starts the backend: jax.distributed comes before.
  """
  import jax  # noqa: PLC0415  set_cpu_flags comes first.

  if jax.config.jax_compilation_cache_dir:
    return
  folder = Path('~/.cache/gta_jax/xla').expanduser()
  if jax.default_backend() == 'cpu':
    # Programs for one processor's instructions may stop another one that shares the home folder.
    folder /= platform.node()
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_compilation_cache_max_size', 2 * 10**9)
