"""What a run tells while it trains: console, logs, TensorBoard, report.json and a page."""

import collections
import contextlib
import json
import textwrap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from gta_jax.devices import sharding
from gta_jax.evaluation.scores import Evaluation
from gta_jax.training import verdict
from gta_jax.training.diagnostics import CollapseWatch
from gta_jax.training.logs import MetricWriter, Progress, Silent, note
from gta_jax.training.pace import Pace
from gta_jax.training.setup import Run, to_json
from gta_jax.training.snapshot import Predict, shown_ids, write_snapshot
from gta_jax.training.starts import add_start
from gta_jax.training.summary import summary


class Page:
  """A page about the files of a run, which whoever starts a run may ask for.

  Training knows no pages (imports run downwards), so it is given how to write one.
  """

  def __init__(self, write: Callable[[], Any] = lambda: None, *, command: str = ''):
    """Args: write: makes the page from the workdir's files. command: that repeats the run."""
    self._write, self.command = write, command

  def write(self) -> None:
    """Writes it; whatever goes wrong is said, as a run does not end for want of its page."""
    try:
      self._write()
    except Exception as error:  # Also of files in the folder that are not the run's.
      note(f'the page about the run could not be written: {type(error).__name__}: {error}')


class Telling(contextlib.ExitStack):
  """The writers of a run; in all processes but the first one they are silent."""

  def __init__(
    self, run: Run, workdir: Path, page: Page, evaluations: Collection[int], *, first_step: int,
    evaluated: bool,
  ):
    """Opens the logs at the step that the run goes on from.

    Args:
      evaluations: the steps of all of them.
      first_step: and `evaluated`: see MetricWriter.
    """
    super().__init__()
    self._run, self._workdir, self._page = run, workdir, page
    self._evaluations, self._first_step = evaluations, first_step
    self._pending = first_step in evaluations and not evaluated
    self._speaks, self.pace = sharding.is_first_process(), Pace(run.stages)
    silent = Silent()
    self.writer = self.enter_context(
      MetricWriter(workdir, start_step=first_step, evaluated=evaluated)
      if self._speaks else cast(MetricWriter, silent))
    self.progress = self.enter_context(
      Progress(run.total_steps, start_step=first_step)
      if self._speaks else cast(Progress, silent))
    self._watch = CollapseWatch(run.dataset.classes, self._labelled_shares())
    for shares in self._shares_before():
      self._watch.observe(shares)  # What it says of them has been told.

  def note(self, step: int, text: str) -> None:
    """A sentence for the console and for what is kept."""
    self.progress.note(text)
    self.writer.note(step, text)

  def watch(self, step: int, shares: np.ndarray) -> None:
    """Warns where the pseudo-labels collapse. shares: [K] of the kept ones by class."""
    for warning in self._watch.observe(shares):
      self.note(step, warning)

  def _labelled_shares(self) -> list[float]:
    """Those of the masks' pixels by class, of the file: a run that goes on inspects nothing."""
    try:
      found = json.loads((self._workdir / 'inspection.json').read_text(encoding='utf-8'))
      pixels = [int(count) for count in found['pixels']['labelled']]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
      return []
    known = found.get('classes') == list(self._run.dataset.classes) and len(pixels) == len(
      found['classes'])
    return [count / max(sum(pixels), 1) for count in pixels] if known else []

  def _shares_before(self) -> list[np.ndarray]:
    """The shares that the log holds, so that a run that goes on warns as one in one go."""
    path = self._workdir / 'metrics.jsonl'
    if not self._speaks or not path.is_file():
      return []
    names = [f'train/kept_share_by_class/{name}' for name in self._run.dataset.classes]
    lines = map(json.loads, path.read_text(encoding='utf-8').splitlines())
    found = [[line.get(name) for name in names] for line in lines]
    return [np.array(shares) for shares in found if None not in shares]

  def begin(self) -> None:
    """Says what is about to be done."""
    self.progress.note(summary(self._run, self._workdir, first_step=self._first_step,
                               evaluations=self._evaluations_after(self._first_step)
                               + self._pending))
    self.writer.text(
      self._first_step, 'config', textwrap.indent(to_json(self._run.config), '    '))
    changed = (add_start(self._workdir, self._first_step)
               if self._speaks and self._first_step < self._run.total_steps else '')
    for text in (*self._run.notes, *filter(None, [changed])):
      self.note(self._first_step, text)

  def done(self, step: int) -> None:
    """The steps up to this one are done; says how long the rest takes once that is known."""
    self.pace.observe(step)
    if text := self.pace.estimate(step, self._evaluations_after(step)):
      self.progress.note(text)

  def progressed(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Shows what a line of the log holds, and how long the rest takes."""
    self.progress.show(
      scalars, step=step,
      seconds_left=self.pace.seconds_left(step, self._evaluations_after(step)))

  def _evaluations_after(self, step: int) -> int:
    return sum(one > step for one in self._evaluations)

  def show(self, step: int, found: Evaluation, predict: Predict) -> None:
    """Writes scores, and what a page shows of an evaluation. predict: see write_snapshot."""
    self.writer.write(step, {f'val/{key}': value for key, value in found.scalars().items()})
    self.progress.note('  '.join(
      [f'step {step}: mIoU', *(f'{name} {100 * s.miou:.2f}' for name, s in found.scores.items())]))
    if not self._speaks:
      # The first process would be waited for in the next step, and gloo gives up after 30 s.
      collections.deque(predict(shown_ids(self._run, found)), maxlen=0)
      return
    try:
      if found.by_image:
        verdict.write_confusions(
          self._workdir, self._run.dataset.validation, dict(found.by_image))
      picture = write_snapshot(
        self._run, self._workdir, step, found, predict, command=self._page.command,
        timing=self.pace.summary())
    except OSError as error:  # Of a full disk, say; the scores go into the log and the checkpoint.
      self.progress.note(f'the page about step {step} could not be written: {error}')
      return
    if picture is not None:
      self.writer.picture(step, 'validation', picture)
    self._page.write()
