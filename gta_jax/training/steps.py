"""Training steps between two stops of the host loop: stages, streams, log, what is not finite."""

import collections
import functools
import itertools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gta_jax.data.pipeline import training_stream
from gta_jax.data.skipping import Skipped
from gta_jax.data.sources import Dataset
from gta_jax.data.transforms import block_side
from gta_jax.devices import sharding
from gta_jax.methods.contract import Host, Stage, TrainState, same_state
from gta_jax.ops.network import Network
from gta_jax.training.diagnostics import distances
from gta_jax.training.not_finite import (
  NotFiniteError,
  SkipCount,
  losses_not_finite,
  skip_not_finite,
)
from gta_jax.training.setup import Run
from gta_jax.training.signals import Signals
from gta_jax.training.telling import Telling


def stage_borders(stages: Sequence[Stage]) -> tuple[int, ...]:
  """The steps of the run after which a stage ends."""
  return tuple(itertools.accumulate(stage.steps for stage in stages))


class Steps:
  """Takes training steps and logs them; holds the streams, which run ahead of the device."""

  def __init__(
    self, run: Run, mesh: jax.sharding.Mesh, host: Host, telling: Telling, skipped: Skipped,
    unlogged: Sequence = (),
  ):
    """Begins; `unlogged` is what Steps.unlogged gave at the step that the run goes on from."""
    self._run, self._mesh, self._host = run, mesh, host
    self._telling, self._skipped = telling, skipped
    self._stage: Stage | None = None
    self._compiled: Callable = _no_step
    # Stages that share a step share its program, which jax finds by the function.
    guarded = run.config.train.non_finite == 'skip'
    self._guard = functools.cache(skip_not_finite) if guarded else lambda step: step
    self._streams: dict[str, Generator] = {}
    self._of_stage = self._streams
    # Steps whose losses have been looked at, then those that may still be under way.
    self._checked = [
      (step, {k: np.float32(v) for k, v in metrics.items()}) for step, metrics in unlogged]
    self._waiting: list[tuple[int, dict]] = []
    # Metrics of the two steps that were sent last.
    self._sent: collections.deque[dict[str, Any]] = collections.deque(maxlen=2)
    # The line that has ended, not yet written: its metrics, what else it says, and whether its
    # stage is to log data.oracle.
    self._line: tuple[list, list, dict, bool] | None = None
    self._told_of_oracle = False
    self._skips = SkipCount()

  def __enter__(self) -> 'Steps':
    return self

  def __exit__(self, *_: object) -> None:
    self._close_streams()

  def enter_stage(self, state: TrainState) -> TrainState:
    """Begins or continues the stage that the next step belongs to, if it is not under way.

    Its preparation on the host may take long, and must not be shielded from signals.
    """
    step = int(state.step)
    borders = stage_borders(self._run.stages)
    stage, end = next(
      (stage, end) for stage, end in zip(self._run.stages, borders, strict=True) if step < end)
    if stage is self._stage:
      return state
    at_its_start = step == end - stage.steps
    before, self._stage = self._stage, None
    if stage.prepare is not None or before is None or (
        (before.dataset, before.sizes) != (stage.dataset, stage.sizes)):
      self._close_streams()  # Before a long preparation, as they hold batches on the device.
    if stage.prepare is not None:
      stage.prepare(self._host, sharding.local_copy(state) if at_its_start else None)
    if at_its_start and stage.enter is not same_state:
      state = sharding.compile_hand_over(stage.enter, self._mesh)(state)
    if before is None or before.step is not stage.step:
      self._compiled = sharding.compile_step(
        self._guard(stage.step), self._mesh,
        deterministic=self._run.config.train.deterministic)
    self._stage = stage
    self._telling.pace.enter(stage.name)
    self._telling.progress.note_stage(stage.name)
    dataset = stage.dataset(self._host) if stage.dataset else self._run.dataset
    for name in stage.streams:
      if name not in self._streams:
        stream = _stream(self._run, dataset, name, stage.sizes, step, self._skipped)
        self._streams[name] = _on_device(stream, self._mesh)
    self._of_stage = {name: self._streams[name] for name in stage.streams}
    return state

  def advance(self, state: TrainState, stop: int, signals: Signals) -> TrainState:
    """Steps until `stop` steps are done, or until a signal asks to leave; within one stage.

    Several processes ask each other about signals at each line of the log only. A transfer between
    host and device that nobody asked for is an error here, as it would make the host wait.
    """
    alone, log_steps = jax.process_count() == 1, self._run.config.train.log_steps
    for step in range(int(state.step), stop):
      if (alone or step % log_steps == 0) and signals.agreed():
        break
      if len(self._sent) == 2:
        # Steps that wait for the device hold their batches there: not more than two.
        jax.block_until_ready(self._sent[0])
      asked = time.monotonic()
      batches = {name: next(stream) for name, stream in self._of_stage.items()}
      if all(value.is_ready() for metrics in self._sent for value in metrics.values()):
        self._telling.pace.waited(time.monotonic() - asked)
      with jax.transfer_guard('disallow'):
        state, metrics = self._compiled(state, batches)
      self._sent.append(metrics)
      self._waiting.append((step + 1, metrics))
      self._telling.progress.advance(sum(len(batch['image']) for batch in batches.values()))
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
    more: dict[str, Any] = {}
    if self._checked or self._waiting:
      # Here, as the line is written later, and earlier where a run is interrupted; and before the
      # last line is written, from where the pace is measured, as it compiles the first time.
      more = distances(state, self._run.method.compared) if len(self._streams) > 1 else {}
      more['skipped_images'] = len(self._skipped.reasons)
    self._write_line()
    if self._checked or self._waiting:
      oracle = self._run.config.data.oracle and 'unlabelled' in self._of_stage
      self._line = self._checked, self._waiting, more, oracle
      self._checked, self._waiting = [], []

  def _write_line(self) -> None:
    """Writes the line that was ended last, once; NotFiniteError as log."""
    if self._line is None:
      return
    checked, waiting, more, oracle = self._line
    self._line = None
    steps, metrics = zip(*checked, *self._check(waiting), strict=True)
    self._telling.done(steps[-1])
    taken = [m for m in metrics if not m.get('skipped_steps')] or metrics[-1:]
    phase = [m for m in taken if m.keys() == taken[-1].keys()]
    means: dict[str, Any] = {k: _mean(k, [m[k] for m in phase]) for k in phase[-1]}
    if oracle and 'oracle_accuracy' not in means and not self._told_of_oracle:
      self._told_of_oracle = True
      self._telling.note(steps[-1], f'data.oracle=True has no effect here, as '
                         f'{self._run.config.method.name} does not compare its pseudo-labels')
    if 'skipped_steps' in means:
      means['skipped_steps'] = sum(m['skipped_steps'] for m in metrics)
    means |= jax.device_get(more)
    if 'kept_share_by_class' in means:
      self._telling.watch(steps[-1], means['kept_share_by_class'])
    self._telling.writer.write(steps[-1], _scalars('train', means, self._run.dataset.classes))
    shown = [k for k in means if k.endswith(('_loss', '_rate'))]
    self._telling.progressed(steps[-1], {k: means[k] for k in shown})

  def _close_streams(self) -> None:
    for stream in self._streams.values():
      stream.close()
    self._streams = {}

  def _check(self, waiting: list[tuple[int, dict]]) -> list[tuple[int, dict]]:
    """Waits for steps under way and looks at their losses; their metrics on the host."""
    found = jax.device_get(waiting)
    for step, metrics in found:
      bad = losses_not_finite(metrics)
      if self._skips.observe(step, metrics):
        self._telling.note(
          step, f'step {step} was not finite ({", ".join(bad) or "its gradient"}) and skipped, '
          f'{self._skips.total} so far')
      elif bad:
        raise NotFiniteError(
          f'{", ".join(bad)} is not finite at step {step}. Lower optim.rate, look at the data, or '
          'set train.non_finite=skip.')
    return found


def _no_step(state: TrainState, batches: dict) -> tuple[TrainState, dict]:
  raise RuntimeError('no stage has been entered; call Steps.enter_stage first.')


def _on_device(
  stream: Generator, mesh: jax.sharding.Mesh
) -> Generator[dict[str, jax.Array], None, None]:
  """The batches of a stream on the devices, the next one sent before the present one is used."""
  try:
    present = sharding.global_batch(next(stream), mesh)
    while True:
      following = sharding.global_batch(next(stream), mesh)
      yield present
      present = following
  finally:
    stream.close()


def fill_colour(network: Network) -> tuple[int, int, int]:
  """RGB of 255 that comes nearest to zero after normalising; it fills crops beyond their image."""
  red, green, blue = (round(255 * mean) for mean in network.mean)
  return red, green, blue


def _stream(
  run: Run, dataset: Dataset, name: str, sizes: Mapping[str, int], start_step: int,
  skipped: Skipped,
) -> Generator[dict[str, np.ndarray], None, None]:
  data, train, processes = run.config.data, run.config.train, jax.process_count()
  labelled, pseudo = name == 'labelled', name == 'pseudo_labelled'
  size = sizes.get(name, train.labelled_batch if labelled else train.unlabelled_batch)
  return training_stream(
    dataset, stream='labelled' if labelled else 'unlabelled', batch_size=size // processes,
    crop_size=data.crop, scale=tuple(factor * data.image_scale for factor in data.scale),
    flip=data.flip,
    fill=fill_colour(run.network), padding_label=data.padding_label,
    block=block_side(data.image_scale), jitter=data.jitter,
    label_sampling=data.label_sampling, oracle=data.oracle, pseudo=pseudo,
    confidence=pseudo and hasattr(dataset.reader, 'confidence'),
    seed=run.config.seed, start_step=start_step, process_index=jax.process_index(),
    process_count=processes, threads=data.threads, workers=data.workers, prefetch=data.prefetch,
    skipped=skipped)


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
