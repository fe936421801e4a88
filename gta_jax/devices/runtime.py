"""Process-wide settings of jax and XLA."""

import ctypes
import importlib.metadata
import os
import platform
import socket
import sys
import time
from pathlib import Path

_YNN_FLAG = '--xla_cpu_experimental_ynn_fusion_type='
_YNN_JAXLIB = '0.10.2'

# Numbers of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

# How long a process that has finished, or failed, waits for the others before it leaves.
_SHUTDOWN_SECONDS = 120


def disable_faulty_cpu_fusion() -> None:
  """Turns a faulty CPU optimisation of jaxlib 0.10.2 off, in XLA_FLAGS; nothing on other versions.

  That version fuses reductions through YNNPACK on the CPU: two to three times slower here, and
  known to return wrong values (jax issues 39103, 39257, 40412). An empty value of its flag turns
  that off. Only for exactly this version, as XLA ends a process whose XLA_FLAGS hold a flag that it
  does not know, and other versions, older and newer, do not know this one.

  Call it before anything asks jax for a device: XLA reads its flags once. The command does;
  notebooks, tests and benchmarks do it themselves, as importing the package changes no environment
  variable. A user's own choice of the same flag in XLA_FLAGS stands.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  if importlib.metadata.version('jaxlib') == _YNN_JAXLIB and _YNN_FLAG not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} {_YNN_FLAG}'.strip()


def keep_freed_memory() -> None:
  """Lets this process keep memory that it frees, for its next use; nothing outside of glibc.

  A step's temporaries are one buffer, allocated anew each time. From 32 MB on glibc's malloc maps
  it and gives it back to the system afterwards, so that each step touches every page for the first
  time: 7 % of the step of `configs/shapes.py:,recipe=released` (docs/performance.md). The process
  then stays as large as it ever was. The user's MALLOC_MMAP_MAX_ or MALLOC_TRIM_THRESHOLD_ stand.
  """
  if {'MALLOC_MMAP_MAX_', 'MALLOC_TRIM_THRESHOLD_'} & os.environ.keys():
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # not in other C libraries
  if mallopt is not None:
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


def keep_compiled_programs() -> None:
  """Lets the next process start without compiling: programs are kept in ~/.cache/gta_jax/xla.

  At most 2 GB; the least recently used go first. JAX_COMPILATION_CACHE_DIR names another folder,
  JAX_ENABLE_COMPILATION_CACHE=false turns it off. Starts the backend: jax.distributed comes before.
  """
  import jax  # noqa: PLC0415  It takes seconds, which setting flags is spared.

  # jax makes attributes of its options at run time, where a type checker does not see them.
  if jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
    return
  try:
    folder = Path('~/.cache/gta_jax/xla').expanduser()
  except RuntimeError:  # a user without a home folder, as in some containers
    return
  if jax.default_backend() == 'cpu':
    # Programs for one processor's instructions may stop another one that shares the home folder.
    folder /= platform.node()
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_compilation_cache_max_size', 2 * 10**9)


def join_processes(address: str, count: int, index: int, *, seconds: int = 300) -> None:
  """Makes this process one of several that train together; before anything asks for a device.

  Args:
    address: HOST:PORT of process 0, which all the others reach.
    count: of processes.
    index: of this one, from 0.
    seconds: to wait for the others.
  Raises:
    ValueError: a bad address or index, or nobody answers. jax itself would end the process from
      C++, with a stack and no word of the address.
  """
  host, _, port = address.rpartition(':')
  if not (host and port.isdecimal() and 0 < int(port) < 2**16 and 0 <= index < count):
    raise ValueError(
      f'--coordinator {address}, --process_count {count}, --process_index {index}: give the first '
      "process's HOST:PORT, and indices from 0 to the count less one.")
  if index:
    _wait_for(host, int(port), seconds)
  else:
    _check_free(int(port))
    print(f'waits up to {seconds} s at {address} for {count - 1} more processes', file=sys.stderr)
  import jax  # noqa: PLC0415  It takes seconds; bad addresses are refused before.

  jax.distributed.initialize(
    address, count, index, cluster_detection_method='deactivate', initialization_timeout=seconds,
    shutdown_timeout_seconds=_SHUTDOWN_SECONDS)


def join_detected_processes() -> None:
  """The same where SLURM, Open MPI or Kubernetes tells address, count and index.

  Raises:
    ValueError: none of them has started this process.
  """
  import jax  # noqa: PLC0415

  try:
    jax.distributed.initialize(shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
  except (KeyError, RuntimeError, ValueError) as error:
    raise ValueError(
      f'--distributed auto: no SLURM step, Open MPI or Kubernetes job to join ({error}) Start with '
      'srun, mpirun or an indexed job, or give --coordinator, --process_count and --process_index.'
    ) from error


def _wait_for(host: str, port: int, seconds: float) -> None:
  """Returns as soon as somebody listens."""
  until = time.monotonic() + seconds
  while True:
    try:
      with socket.create_connection((host, port), timeout=5):
        return
    except OSError as error:
      if time.monotonic() > until:
        raise ValueError(
          f'--coordinator {host}:{port} does not answer after {seconds} s ({error}); start process '
          '0 there, and let this host reach that port.') from error
      time.sleep(0.2)


def _check_free(port: int) -> None:
  try:
    with socket.create_server(('', port)):
      return
  except OSError as error:
    raise ValueError(
      f'--coordinator: port {port} of this host cannot be used ({error}); choose another.'
    ) from error
