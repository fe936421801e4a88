"""What a run tells while it goes: log files, TensorBoard events, a progress line, a table."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from gta_jax.data.writing import replace_text


def note(text: str, stream: TextIO | None = None) -> None:
  """Prints a line of its own, to stderr by default, without breaking the bar if there is one."""
  out = stream or sys.stderr
  tqdm.write(text, file=out)
  out.flush()


class AppendedFile:
  """A file that only grows. What a full disk refuses is kept, and written with what comes next."""

  def __init__(self, path: Path):
    """Makes the file with the first thing that is written."""
    self._path, self._file, self._left, self._refused = path, None, b'', False

  def write(self, data: bytes) -> None:
    """Appends; that it cannot is said once, as a run does not end for want of a line."""
    self._left += data
    try:
      if self._file is None:
        self._file = self._path.open('ab', buffering=0)
      while self._left:
        self._left = self._left[self._file.write(self._left):]
    except OSError as error:
      if not self._refused:
        note(f'{self._path} cannot be written ({error}); the run goes on, and tries again')
      self._refused = True
    else:
      self._refused = False

  def flush(self) -> None:
    """Tries once more to write what is left."""
    if self._left:
      self.write(b'')

  def close(self) -> None:
    """Flushes and closes."""
    self.flush()
    if self._file:
      self._file.close()


class MetricWriter:
  """Appends scalars to `metrics.jsonl`, sentences to `notes.jsonl`, both to TensorBoard's events.

  They always tell one history: what was written after the restored step is dropped (in
  TensorBoard, hidden), since those steps are about to be taken again.
  """

  def __init__(self, directory: Path, *, start_step: int = 0, evaluated: bool = True,
               tensorboard: bool = True):
    """Opens or continues the files.

    Args:
      directory: made if missing.
      start_step: the last step that counts, that of the checkpoint restored; 0 for a new run.
      evaluated: whether that checkpoint holds scores; if not, the step's evaluation goes too.
      tensorboard: whether to write events; needs tensorboardX.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _truncate(directory / 'metrics.jsonl', start_step, evaluated=evaluated)
    _truncate(directory / 'notes.jsonl', start_step, evaluated=True)
    self._metrics = AppendedFile(directory / 'metrics.jsonl')
    self._notes = AppendedFile(directory / 'notes.jsonl')
    self._events = None
    if tensorboard:
      from gta_jax.training.events import EventWriter  # noqa: PLC0415  Inference needs none.

      self._events = EventWriter(directory, start_step=start_step)

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes one line {'step': step, **scalars}; what is not finite becomes null there."""
    values = {name: float(value) for name, value in scalars.items()}
    finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
    self._metrics.write(_line({'step': int(step), **finite}))
    if self._events:
      self._events.scalars(int(step), values)

  def note(self, step: int, text: str) -> None:
    """Writes a sentence that the user should read as {'step': step, 'note': text}."""
    self._notes.write(_line({'step': int(step), 'note': text}))
    self.text(step, 'notes', text)

  def text(self, step: int, name: str, text: str) -> None:
    """Adds a markdown text to the events alone."""
    if self._events:
      self._events.text(int(step), name, text)

  def picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """Adds a picture, uint8 [H,W,3] RGB, to the events alone."""
    if self._events:
      self._events.picture(int(step), name, picture)

  def flush(self) -> None:
    """Tries once more to write the lines that a full disk has refused."""
    for file in (self._metrics, self._notes):
      file.flush()

  def close(self) -> None:
    """Closes all; what a full disk has refused until then is tried once more."""
    for file in filter(None, (self._metrics, self._notes, self._events)):
      file.close()

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _line(values: Mapping[str, Any]) -> bytes:
  return json.dumps(values, allow_nan=False).encode() + b'\n'


def _truncate(path: Path, last_step: int, *, evaluated: bool) -> None:
  """Keeps the lines up to last_step; a half-written one, of a run that was killed, goes too."""
  if not path.exists():
    return

  def counts(line: str) -> bool:
    try:
      scalars = json.loads(line)
      of_validation = any(name.startswith('val/') for name in scalars)
      return scalars['step'] < last_step + (evaluated or not of_validation)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
      return False

  lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
  replace_text(path, ''.join(line + '\n' for line in lines if counts(line)))


class Progress:
  """A bar with ETA, scalars and images/s on a terminal; elsewhere a plain line now and then."""

  def __init__(self, total_steps: int, *, start_step: int = 0, every_seconds: float = 15.0,
               unit: str = 'step', stream: TextIO | None = None):
    """Begins after `start_step` of `total_steps`.

    Args:
      total_steps: of the whole run.
      start_step: steps done before.
      every_seconds: between plain lines.
      unit: what a step is called.
      stream: stderr if None.
    """
    self._stream = stream or sys.stderr
    self._plain = not self._stream.isatty()
    self._total, self._step = total_steps, start_step
    self._images: list[int] = []  # of each step that was begun and not shown yet
    self._every, self._last_line = every_seconds, -math.inf
    self._unit = unit
    self._bar = tqdm(total=total_steps, initial=start_step, file=self._stream, disable=self._plain,
                     dynamic_ncols=True, unit=unit)
    self._first: tuple[int, float] | None = None  # step and time of the stage's first show
    self._since: float | None = None  # when the images of images/s began
    self._shown = -1  # steps that had been begun at the last show

  def advance(self, images: int = 0) -> None:
    """One more step has been begun, of so many images; images/s is left out at 0."""
    if self._since is None:
      self._images, self._since = [0] * len(self._images), time.monotonic()
      self._bar.set_description('', refresh=False)
    self._step += 1
    self._images.append(images)
    self._bar.update(1)

  def show(
    self, scalars: Mapping[str, Any], *, step: int | None = None, seconds_left: float | None = None
  ) -> None:
    """Shows scalars (losses, rate), and images/s of the steps that were done since the last show.

    A plain line says what is left: seconds_left, or what follows from the steps since the stage's
    first show, as the steps before it waited for compilation; nothing where neither is known.

    Args:
      scalars: by name.
      step: whose scalars these are, and the last that is done; all that were begun by default. The
        device may be that far behind.
      seconds_left: until the end.
    """
    now = time.monotonic()
    step = self._step if step is None else step
    done = max(0, len(self._images) - (self._step - step))
    images, self._images = sum(self._images[:done]), self._images[done:]
    shown = {name: f'{float(value):.4g}' for name, value in scalars.items()}
    # Two lines in a row, as at the end, say nothing of how long the second one's steps took.
    if images and self._since is not None and self._step > self._shown:
      shown['images/s'] = f'{images / max(now - self._since, 1e-9):.1f}'
    self._since, self._shown = now, self._step
    self._bar.set_postfix(shown)
    self._first = self._first or (step, now)
    if seconds_left is None and step > self._first[0]:
      pace = (now - self._first[1]) / (step - self._first[0])
      seconds_left = pace * (self._total - step)
    if self._plain and (now - self._last_line >= self._every or step == self._total):
      self._last_line = now
      said = [f'{name} {value}' for name, value in shown.items()]
      if seconds_left is not None:
        said.insert(0, f'{tqdm.format_interval(seconds_left)} left')
      self.note(', '.join([f'{self._unit} {step}/{self._total}', *said]))

  def note(self, text: str) -> None:
    """Prints a line of its own, without breaking the bar."""
    note(text, self._stream)

  def note_phase(self, text: str) -> None:
    """Says in the bar what happens until the next step; its time does not count for images/s."""
    self._since = None
    self._bar.set_description(text)

  def note_stage(self, name: str) -> None:
    """A stage begins: its first step may be compiled, and the pace before says nothing of it."""
    self.note_phase(f'begins {name}')
    self._first = None

  def close(self) -> None:
    self._bar.close()

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_) -> None:
    self.close()


class Silent:
  """In the place of a MetricWriter or a Progress; tells nothing, as all processes but one do."""

  def __getattr__(self, name: str) -> Callable[..., None]:
    return lambda *args, **kwargs: None

  def __enter__(self) -> 'Silent':
    return self

  def __exit__(self, *_) -> None:
    pass


def final_table(results: Mapping[str, Any]) -> str:
  """What results.json holds as plain text: a column a network, in percent, - where undefined.

  Args:
    results: 'last' and 'best', each {'step': number, NETWORK: {'miou': share, 'pixel_accuracy':
      share, 'iou': {CLASS: share or None}}}.
  """
  last, best = ({k: v for k, v in results[key].items() if k != 'step'} for key in ('last', 'best'))

  def row(title: str, values: Iterable[float | None]) -> list[str]:
    defined = (None if v is None or math.isnan(v) else v for v in values)
    return [title, *('-' if v is None else f'{100 * v:.1f}' for v in defined)]

  by_network = last.values()
  classes = next(iter(by_network))['iou']
  rows = [[f'IoU in %, step {results["last"]["step"]}', *last]]
  rows += [row(name, (scores['iou'][name] for scores in by_network)) for name in classes]
  rows.append(row('mIoU', (scores['miou'] for scores in by_network)))
  rows.append(row('pixel accuracy', (scores['pixel_accuracy'] for scores in by_network)))
  rows.append(row(f'mIoU, best step {results["best"]["step"]}', (best[n]['miou'] for n in last)))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) for cells in rows
  ]
  rule = '-' * len(lines[0])
  return '\n'.join([lines[0], rule, *lines[1:-3], rule, *lines[-3:]])


def percent(share: float | None) -> str:
  """A share as percent with two decimals; - where it is undefined."""
  return '-' if share is None or math.isnan(share) else f'{100 * share:.2f}'


def markdown_table(rows: Iterable[Iterable[str]]) -> str:
  """Rows of cells, the first one being the head; | in a cell is escaped."""
  head, *rest = ([str(cell).replace('|', r'\|') for cell in row] for row in rows)
  return ''.join(f'| {" | ".join(row)} |\n' for row in [head, ['---'] * len(head), *rest])


def evaluation_sheet(evaluations: Sequence[Mapping[str, Any]]) -> str:
  """Evaluations as markdown: mIoU and pixel accuracy of each, below it IoU by class."""
  return '# Evaluation\n\n' + '\n'.join(map(_of_evaluation, evaluations))


def _of_evaluation(evaluation: Mapping[str, Any]) -> str:
  rows = [(network, protocol, scores) for protocol, by_network in evaluation['protocols'].items()
          for network, scores in by_network.items()]
  summary = [['network', 'protocol', 'mIoU', 'pixel accuracy']]
  summary += [[network, protocol, percent(scores['miou']), percent(scores['pixel_accuracy'])]
              for network, protocol, scores in rows]
  by_class = [['class', *(f'{network}, {protocol}' for network, protocol, _ in rows)]]
  by_class += [[name, *(percent(scores['iou'][name]) for _, _, scores in rows)]
               for name in rows[0][2]['iou']]
  title = (f'{evaluation["images"]} images of {evaluation["dataset"]} ({evaluation["split"]}), '
           f'{evaluation["checkpoint"]} checkpoint, step {evaluation["step"]}; all in percent')
  return (f'## {title}\n\n{markdown_table(summary)}\nIoU by class:\n\n'
          f'{markdown_table(by_class)}')
