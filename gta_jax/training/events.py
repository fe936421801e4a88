"""TensorBoard's events of a run."""

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import summary

# These modules make their classes when they are imported, which a type checker does not see.
from tensorboardX.proto.event_pb2 import (
  Event,  # pyright: ignore[reportAttributeAccessIssue]
  SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import masked_crc32c

from gta_jax.training.logs import AppendedFile


class EventWriter:
  """Writes events where they are made.

  tensorboardX's own writer does so in a thread, which ends where the disk is full, and then waits
  for it without end.
  """

  def __init__(self, directory: Path, *, start_step: int):
    """Begins a file; what earlier files hold after `start_step` is hidden."""
    # Names of seconds: a run that resumes within one must not overwrite.
    self._file = AppendedFile(directory / '.'.join([
      'events.out.tfevents', str(int(time.time())), socket.gethostname(), str(time.time_ns())]))
    self._write(Event(file_version='brain.Event:2'))
    self._write(Event(step=start_step + 1, session_log=SessionLog(status=SessionLog.START)))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Adds numbers by their names."""
    of_each = [summary.scalar(name, value).value[0] for name, value in values.items()]
    self._write(Event(step=step, summary=Summary(value=of_each)))

  def text(self, step: int, name: str, text: str) -> None:
    """Adds a markdown text."""
    self._write(Event(step=step, summary=summary.text(name, text)))

  def picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """Adds a picture, uint8 [H,W,3] RGB."""
    self._write(Event(step=step, summary=summary.image(name, picture, dataformats='HWC')))

  def close(self) -> None:
    self._file.close()

  def _write(self, event: Event) -> None:
    event.wall_time = time.time()
    data = event.SerializeToString()
    length = struct.pack('<Q', len(data))
    self._file.write(b''.join([length, _checksum(length), data, _checksum(data)]))


def _checksum(data: bytes) -> bytes:
  """Of a record of TensorFlow's, as its readers check it."""
  return struct.pack('<I', masked_crc32c(data))
