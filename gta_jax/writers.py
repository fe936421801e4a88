"""What a run tells while it goes: metrics.jsonl, TensorBoard events, a progress line, a table."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from gta_jax.metrics import Scores


class MetricWriter:
  """Appends scalars to `metrics.jsonl` and to TensorBoard events in one directory.

  The two always tell one history: what was written after the restored step is dropped (in
  TensorBoard, hidden), since those steps are about to be taken again.
  """

  def __init__(self, directory: Path, *, restored_step: int = 0, tensorboard: bool = True):
    """Opens or continues the files.

    Args:
      directory: made if missing.
      restored_step: the last step that counts, of the checkpoint restored; 0 for a new run.
      tensorboard: whether to write events; needs tensorboardX.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / 'metrics.jsonl'
    _truncate(path, restored_step)
    self._file = path.open('a', encoding='utf-8')
    self._events = None
    if tensorboard:
      from tensorboardX import SummaryWriter  # noqa: PLC0415  Inference does not need it.

      self._events = SummaryWriter(
        str(directory),
        purge_step=restored_step + 1,
        # File names are of one second's resolution; the process tells quick restarts apart.
        filename_suffix=f'.{os.getpid()}.{time.time_ns()}',
      )

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes one line {'step': step, **scalars}; what is not finite becomes null there."""
    values = {name: float(value) for name, value in scalars.items()}
    finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
    self._file.write(json.dumps({'step': int(step), **finite}, allow_nan=False) + '\n')
    self._file.flush()
    if self._events:
      for name, value in values.items():
        self._events.add_scalar(name, value, int(step))

  def close(self) -> None:
    """Flushes and closes both; call it on errors too, or the last events are lost."""
    self._file.close()
    if self._events:
      self._events.close()

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _truncate(path: Path, last_step: int) -> None:
  """Keeps the lines up to last_step; a half-written one, of a run that was killed, goes too."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      if json.loads(line)['step'] <= last_step:
        kept.append(line + '\n')
    except (json.JSONDecodeError, KeyError, TypeError):
      continue
  partial = path.with_suffix('.partial')
  partial.write_text(''.join(kept), encoding='utf-8')
  os.replace(partial, path)


class Progress:
  """A bar with ETA, scalars and images/s on a terminal; elsewhere a plain line now and then."""

  def __init__(self, total: int, *, start: int = 0, batch_size: int = 1,
               every_seconds: float = 30.0, stream: TextIO | None = None):
    """Starts at step `start` of `total`, with batch_size images a step, on stderr if no stream."""
    self._stream = stream or sys.stderr
    self._terminal = self._stream.isatty()
    self._total, self._start, self._batch_size = total, start, batch_size
    self._every, self._last_line = every_seconds, -math.inf
    self._bar = tqdm(total=total, initial=start, file=self._stream, disable=not self._terminal,
                     dynamic_ncols=True, unit='step')
    self._began = time.monotonic()

  def update(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Shows that `step` steps are done, and scalars (losses, rate) as they are given."""
    now = time.monotonic()
    rate = (step - self._start) / max(now - self._began, 1e-9)
    shown = {name: f'{float(value):.4g}' for name, value in scalars.items()}
    shown['images/s'] = f'{rate * self._batch_size:.1f}'
    if self._terminal:
      self._bar.set_postfix(shown, refresh=False)
      self._bar.update(step - self._bar.n)
    elif now - self._last_line >= self._every or step == self._total:
      self._last_line = now
      left = tqdm.format_interval((self._total - step) / rate) if rate > 0 else '?'
      text = ', '.join(f'{name} {value}' for name, value in shown.items())
      print(f'step {step}/{self._total}, {left} left, {text}', file=self._stream, flush=True)

  def say(self, text: str) -> None:
    """Prints a line without breaking the bar."""
    self._bar.write(text, file=self._stream)
    self._stream.flush()

  def close(self) -> None:
    self._bar.close()


def results_table(classes: Sequence[str], scores: Mapping[str, Scores]) -> str:
  """IoU by class, mIoU and pixel accuracy in percent, a column for each network; - where NaN."""

  def cells(values: Sequence[float]) -> list[str]:
    return ['-' if math.isnan(v) else f'{100 * v:.1f}' for v in values]

  by_network = scores.values()
  rows = [['IoU in %', *scores]]
  rows += [[name, *cells([s.iou[k] for s in by_network])] for k, name in enumerate(classes)]
  rows.append(['mIoU', *cells([s.miou for s in by_network])])
  rows.append(['pixel accuracy', *cells([s.pixel_accuracy for s in by_network])])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
  ]
  rule = '-' * len(lines[0])
  return '\n'.join([lines[0], rule, *lines[1:-2], rule, *lines[-2:]])
