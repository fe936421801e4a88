"""Training steps between two stops of the host loop: streams, log, losses that are not finite."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gta_jax.data.pipeline import training_stream
from gta_jax.data.skipping import Skipped
from gta_jax.devices import sharding
from gta_jax.methods.gta import Step, make_train_step, make_warmup_step
from gta_jax.methods.state import TrainState
from gta_jax.training.diagnostics import CollapseWatch, distances
from gta_jax.training.logs import MetricWriter, Progress
from gta_jax.training.not_finite import (
  NotFiniteError,
  SkipCount,
  losses_not_finite,
  skip_not_finite,
)
from gta_jax.training.setup import Run
from gta_jax.training.signals import Signals


class Steps:
  """Runs training steps and logs them; holds the streams, which run ahead of the device."""

  def __init__(
    self, run: Run, mesh: jax.sharding.Mesh, first_step: int, writer: MetricWriter,
    progress: Progress, skipped: Skipped, unlogged: Sequence = (),
  ):
    """Begins after `first_step` steps; `unlogged` is what Steps.unlogged gave there."""
    self._run, self._mesh = run, mesh
    self._writer, self._progress, self._skipped = writer, progress, skipped
    self._warmup, self._semi = _compiled_steps(run, mesh)
    self._labelled = _stream(run, 'labelled', first_step, skipped)
    self._unlabelled: Iterator | None = None
    # Steps whose losses have been looked at, then those that may still be under way.
    self._checked = [
      (step, {k: np.float32(v) for k, v in metrics.items()}) for step, metrics in unlogged]
    self._waiting: list[tuple[int, dict]] = []
    self._line: tuple[list, list, dict] | None = None  # the line that has ended, not yet written
    self._watch = CollapseWatch(run.dataset.classes)
    self._skips = SkipCount()

  def __enter__(self) -> 'Steps':
    return self

  def __exit__(self, *_: object) -> None:
    for stream in (self._labelled, self._unlabelled):
      if hasattr(stream, 'close'):
        stream.close()

  def run(self, state: TrainState, stop: int, signals: Signals) -> TrainState:
    """Steps until `stop` steps are done, or until a signal asks to leave.

    Several processes ask each other about signals at each line of the log only.
    """
    alone, log_steps = jax.process_count() == 1, self._run.config.train.log_steps
    for step in range(int(state.step), stop):
      if (alone or step % log_steps == 0) and signals.agreed():
        break
      labelled, unlabelled = next(self._labelled), {}
      compiled = self._warmup
      if step >= self._run.warmup_steps:
        compiled = self._semi
        if self._run.method.uses_unlabelled:
          self._unlabelled = self._unlabelled or _stream(
            self._run, 'unlabelled', step, self._skipped)
          unlabelled = next(self._unlabelled)
      batches = (sharding.global_batch(batch, self._mesh) for batch in (labelled, unlabelled))
      state, metrics = compiled(state, *batches)
      self._waiting.append((step + 1, metrics))
      self._progress.advance()
      if (step + 1) % log_steps == 0:
        self._end_line(state)
    return state

  def unlogged(self) -> list:
    """The metrics of the steps since the last line of the log, as JSON; NotFiniteError as log."""
    self._write_line()
    self._checked, self._waiting = self._checked + self._check(self._waiting), []
    return [
      (step, {k: np.asarray(v).tolist() for k, v in metrics.items()})
      for step, metrics in self._checked]

  def log(self, state: TrainState) -> None:
    """Waits for the steps since the last line of the log and writes one with their means.

    Raises:
      NotFiniteError: a loss is not finite, with the step; or too many steps were skipped.
    """
    self._end_line(state)
    self._write_line()

  def _end_line(self, state: TrainState) -> None:
    """Ends a line of the log, and writes the one before, whose steps are done by now.

    So the host never waits for the step that it has just given to the device.
    """
    self._write_line()
    if steps := self._checked + self._waiting:
      moved = distances(state) if 'kept_share_by_class' in steps[-1][1] else {}
      self._line = self._checked, self._waiting, moved
      self._checked, self._waiting = [], []

  def _write_line(self) -> None:
    """Writes the line that was ended last, once; NotFiniteError as log."""
    if self._line is None:
      return
    checked, waiting, moved = self._line
    self._line = None
    steps, metrics = zip(*checked, *self._check(waiting), strict=True)
    taken = [m for m in metrics if not m.get('skipped_steps')] or metrics[-1:]
    phase = [m for m in taken if m.keys() == taken[-1].keys()]
    means = {k: _mean(k, [m[k] for m in phase]) for k in phase[-1]}
    means['skipped_images'] = len(self._skipped.reasons)
    if 'skipped_steps' in means:
      means['skipped_steps'] = sum(m['skipped_steps'] for m in metrics)
    if 'kept_share_by_class' in means:
      means |= jax.device_get(moved)
      for warning in self._watch.observe(means['kept_share_by_class']):
        self._progress.note(warning)
    self._writer.write(steps[-1], _scalars('train', means, self._run.dataset.classes))
    shown = [k for k in means if k.endswith('_loss') or k == 'student_rate']
    self._progress.show({k: means[k] for k in shown})

  def _check(self, waiting: list[tuple[int, dict]]) -> list[tuple[int, dict]]:
    """Waits for steps under way and looks at their losses; their metrics on the host."""
    found = jax.device_get(waiting)
    for step, metrics in found:
      bad = losses_not_finite(metrics)
      if self._skips.observe(step, metrics):
        self._progress.note(
          f'step {step} was not finite ({", ".join(bad) or "its gradient"}) and skipped, '
          f'{self._skips.total} so far')
      elif bad:
        raise NotFiniteError(
          f'{", ".join(bad)} is not finite at step {step}. Lower optim.rate, look at the data, or '
          'set train.non_finite=skip.')
    return found


def _compiled_steps(run: Run, mesh: jax.sharding.Mesh) -> tuple[Step, Step]:
  warmup = make_warmup_step(
    run.network, run.method, run.optimizers, loss=run.loss, micro=run.micro)
  semi = make_train_step(
    run.network, run.method, run.optimizers, loss=run.loss, warmup_steps=run.warmup_steps,
    handover_steps=run.handover_steps, micro=run.micro)
  if run.config.train.non_finite == 'skip':
    warmup, semi = skip_not_finite(warmup), skip_not_finite(semi)
  return sharding.compile_step(warmup, mesh), sharding.compile_step(semi, mesh)


def _stream(
  run: Run, stream: str, start_step: int, skipped: Skipped
) -> Iterator[dict[str, np.ndarray]]:
  data, processes = run.config.data, jax.process_count()
  low, high = data.scale
  return training_stream(
    run.dataset, stream=stream, batch_size=run.config.train[f'{stream}_batch'] // processes,
    crop_size=data.crop, scale=(low * data.image_scale, high * data.image_scale), flip=data.flip,
    fill=tuple(round(255 * m) for m in run.network.mean), padding_label=data.padding_label,
    label_sampling=data.label_sampling, oracle=data.oracle, seed=run.config.seed,
    start_step=start_step, process_index=jax.process_index(), process_count=processes,
    threads=data.threads, workers=data.workers, prefetch=data.prefetch, skipped=skipped)


def _mean(name: str, values: Sequence) -> np.ndarray:
  """The mean over steps; of oracle_accuracy_by_class over those in which the class occurs."""
  if name != 'oracle_accuracy_by_class':
    return np.mean(values, axis=0)
  return np.ma.masked_invalid(values).mean(axis=0).filled(np.nan)


def _scalars(prefix: str, values: Mapping[str, Any], classes: tuple[str, ...]) -> dict[str, float]:
  """Plain numbers under `prefix/NAME`; those with a value for each class under NAME/CLASS."""
  scalars = {}
  for name, value in values.items():
    if np.ndim(value) == 0:
      scalars[f'{prefix}/{name}'] = float(value)
    else:
      by_class = zip(classes, value, strict=True)
      scalars |= {f'{prefix}/{name}/{label}': float(x) for label, x in by_class}
  return scalars
