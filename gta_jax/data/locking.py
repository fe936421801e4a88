"""One process at a time, by a lock that the system lets go of when the process ends."""

import fcntl
from typing import IO


def claim(file: IO) -> str:
  """Locks an open file for this process, without waiting.

  Returns: '' where it is locked, or why it cannot be, as on some shared file systems.
  Raises: BlockingIOError where another process has locked it.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise
  except OSError as error:
    return error.strerror or str(error)
  return ''
