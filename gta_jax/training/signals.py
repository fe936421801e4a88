"""SIGTERM and SIGINT: finish the step, save, leave; a second one leaves at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_CAUGHT = (signal.SIGTERM, signal.SIGINT)
_Handler = Callable[[int, FrameType | None], Any] | int | None


class Interrupted(BaseException):
  """A signal ended the run; the same command goes on. Like KeyboardInterrupt no Exception, so that
  nothing that survives errors swallows it."""


class Terminated(KeyboardInterrupt):
  """SIGTERM ended what is no training."""


def _terminate(number: int, frame: FrameType | None) -> None:
  del number, frame
  raise Terminated


@contextlib.contextmanager
def terminable() -> Iterator[None]:
  """SIGTERM raises Terminated inside, so that what is under way ends in order."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = signal.signal(signal.SIGTERM, _terminate)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous)


class Signals:
  """Catches SIGTERM and SIGINT while it is entered, in the main thread only.

  The first one raises Interrupted at once, but inside `deferred` is only noted. The second one
  ends the process with status 128 + its number, whatever it is doing.
  """

  def __init__(self) -> None:
    self._received: signal.Signals | None = None
    self._deferred = False
    self._previous: dict[signal.Signals, _Handler] = {}

  def __enter__(self) -> 'Signals':
    if threading.current_thread() is threading.main_thread():
      self._previous = {number: signal.signal(number, self._handle) for number in _CAUGHT}
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    if self._received is not None:
      os._exit(128 + number)
    self._received = signal.Signals(number)
    # Not through print: a signal may arrive while a print holds its lock.
    os.write(2, f'\n{self._received.name}: stops here; once more leaves at once\n'.encode())
    if not self._deferred:
      raise Interrupted(self._received.name)

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Signals that arrive inside wait for raise_if_agreed."""
    self._deferred = True
    try:
      yield
    finally:
      self._deferred = False

  def agreed(self) -> bool:
    """Whether any process has received one; all processes must ask at the same step."""
    received = self._received is not None
    if jax.process_count() > 1:
      received = bool(np.any(multihost_utils.process_allgather(np.array(received))))
    return received

  def raise_if_agreed(self) -> None:
    """Raises Interrupted on every process if any has received a signal."""
    if self.agreed():
      raise Interrupted(self._received.name if self._received else 'another process')
