"""One run at a time in a workdir: two would remove each other's checkpoints."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from gta_jax.data.locking import claim
from gta_jax.devices import sharding
from gta_jax.training.logs import note

_NAME = '.lock'


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Holds the workdir, which is made if missing, for this run; of several processes the first does.

  The system lets go of the lock when the process ends, however it ends; the file stays.

  Raises: ValueError, with the other run's process id, where one trains in the folder.
  """
  if not sharding.is_first_process():
    yield
    return
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / _NAME
  with path.open('a+', encoding='utf-8') as file:
    try:
      refused = claim(file)
    except BlockingIOError as error:
      file.seek(0)
      raise ValueError(
        f'{workdir} is in use by another run ({file.read().strip() or "it has just begun"}); wait '
        'for it, stop it, or use another --workdir. If that machine is down, remove '
        f'{path}.') from error
    if refused:  # A run there is worth more than the guard.
      note(f'{path} cannot be locked ({refused}): start no second run in {workdir}')
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    yield
