"""Training steps between two stops of the host loop: streams, log, losses that are not finite."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from gta_jax import sharding
from gta_jax.checkpoint import Checkpoints
from gta_jax.data.pipeline import training_stream
from gta_jax.data.skipping import Skipped
from gta_jax.diagnostics import CollapseWatch, distances
from gta_jax.run import Run
from gta_jax.state import TrainState
from gta_jax.step import Step, make_train_step, make_warmup_step
from gta_jax.writers import MetricWriter, Progress


class NotFiniteError(RuntimeError):
  """A loss became infinite or NaN."""


class Steps:
  """Runs training steps and logs them; holds the streams, which run ahead of the device."""

  def __init__(
    self, run: Run, mesh: jax.sharding.Mesh, first_step: int, writer: MetricWriter,
    progress: Progress, checkpoints: Checkpoints, skipped: Skipped,
  ):
    self._run, self._mesh, self._writer = run, mesh, writer
    self._progress, self._checkpoints, self._skipped = progress, checkpoints, skipped
    self._warmup, self._semi = _compiled_steps(run, mesh)
    self._labelled = _stream(run, 'labelled', first_step, skipped)
    self._unlabelled: Iterator | None = None
    self._waiting: list[tuple[int, dict]] = []
    self._watch = CollapseWatch(run.dataset.classes)

  def run(self, state: TrainState, stop: int) -> TrainState:
    """Steps until `stop` steps are done; all their losses have then been looked at."""
    for step in range(int(state.step), stop):
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
      if (step + 1) % self._run.config.train.log_steps == 0:
        self._log(state)
    self._log(state)
    return state

  def close(self) -> None:
    for stream in (self._labelled, self._unlabelled):
      if hasattr(stream, 'close'):
        stream.close()

  def _log(self, state: TrainState) -> None:
    """Waits for the steps since the last log, checks their losses and writes their means."""
    if not self._waiting:
      return
    steps, metrics = zip(*jax.device_get(self._waiting), strict=True)
    self._waiting = []
    for step, of_step in zip(steps, metrics, strict=True):
      bad = [k for k, v in of_step.items() if k.endswith('_loss') and not np.isfinite(v)]
      if bad:
        last = self._checkpoints.last_step
        raise NotFiniteError(
          f'{", ".join(bad)} is not finite at step {step}; the last good checkpoint is '
          f'{f"that of step {last}" if last else "none"}. Lower optim.rate, or look at the data.')
    phase = [m for m in metrics if m.keys() == metrics[-1].keys()]
    means = {k: np.mean([m[k] for m in phase], axis=0) for k in phase[-1]}
    means['skipped_images'] = len(self._skipped.reasons)
    if 'kept_share_by_class' in means:
      means |= jax.device_get(distances(state))
      for warning in self._watch.observe(means['kept_share_by_class']):
        self._progress.note(warning)
    self._writer.write(steps[-1], _scalars('train', means, self._run.dataset.classes))
    shown = [k for k in means if k.endswith('_loss') or k == 'student_rate']
    self._progress.show({k: means[k] for k in shown})


def _compiled_steps(run: Run, mesh: jax.sharding.Mesh) -> tuple[Step, Step]:
  warmup = make_warmup_step(run.network, run.method, run.optimizers, loss=run.loss)
  semi = make_train_step(
    run.network, run.method, run.optimizers, loss=run.loss, warmup_steps=run.warmup_steps,
    handover_steps=run.handover_steps)
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
