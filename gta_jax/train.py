"""The host loop: streams, steps, evaluations, checkpoints. No mathematics."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gta_jax import sharding
from gta_jax.checkpoint import Checkpoints
from gta_jax.data.pipeline import training_stream
from gta_jax.diagnostics import CollapseWatch, distances
from gta_jax.evaluate import Evaluation, evaluate
from gta_jax.metrics import Scores
from gta_jax.run import Run, ids_sha256, to_json
from gta_jax.state import TrainState
from gta_jax.step import Step, make_train_step, make_warmup_step
from gta_jax.visualize import write_picture
from gta_jax.writers import MetricWriter, Progress, final_table

# Fields that may differ when a run goes on: they change its speed or its log, not its result.
_FREE_FIELDS = ('data.dir', 'data.threads', 'data.workers', 'data.prefetch', 'data.cache',
                'train.log_steps', 'evaluate.batch', 'evaluate.pictures')


class NotFiniteError(RuntimeError):
  """A loss became infinite or NaN."""


def train(run: Run, workdir: Path, *, allow_config_change: bool = False) -> dict[str, Any]:
  """Trains from the newest checkpoint in `workdir`, or from the start, to the end.

  Args:
    run: everything that has been checked.
    workdir: made if need be; holds config.json, dataset.json, metrics.jsonl, TensorBoard events,
      checkpoints, picture.png and results.json afterwards.
    allow_config_change: go on although the config differs from the one that started the run.
  Returns: what results.json holds.
  Raises:
    ValueError: the config differs from the one that started the run.
    NotFiniteError: with the step and the last good checkpoint.
  """
  _write_config(run, workdir, allow_config_change=allow_config_change)
  mesh = sharding.make_mesh()
  state = run.initial_state()
  started = time.monotonic()
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    if checkpoints.last_step is not None:
      state = checkpoints.restore(checkpoints.last_step, state)
    first_step = int(state.step)
    with (
      MetricWriter(workdir, start_step=first_step) as writer,
      Progress(
        run.total_steps, start_step=first_step,
        images_per_step=run.config.train.labelled_batch + run.config.train.unlabelled_batch,
      ) as progress,
    ):
      if run.dataset.note:
        progress.note(run.dataset.note)
      if first_step:
        progress.note(f'goes on from step {first_step}')
      steps = _Steps(run, mesh, first_step, writer, progress, checkpoints)
      for stop in _evaluation_steps(run, first_step):
        state = steps.run(state, stop)
        _evaluate_and_save(run, state, stop, writer, progress, checkpoints)
      steps.close()
    results = _results(run, checkpoints, first_step, time.monotonic() - started)
  (workdir / 'results.json').write_text(json.dumps(results, indent=2) + '\n')
  write_picture(
    workdir / 'picture.png', run.network, state.networks, run.dataset,
    count=run.config.evaluate.pictures, batch_size=run.config.evaluate.batch,
    image_scale=run.config.data.image_scale)
  print(final_table(results))
  return results


def _write_config(run: Run, workdir: Path, *, allow_config_change: bool) -> None:
  """Writes config.json and dataset.json, or refuses to go on with another config."""
  path = workdir / 'config.json'
  text = to_json(run.config)
  if path.exists() and not allow_config_change:
    old, new = (_flatten(json.loads(t)) for t in (path.read_text(), text))
    changed = [
      f'  {key}: {old.get(key)!r} -> {new.get(key)!r}'
      for key in sorted(old.keys() | new.keys())
      if old.get(key) != new.get(key) and key not in _FREE_FIELDS
    ]
    if changed:
      raise ValueError(
        f'{path} started this run with another config:\n' + '\n'.join(changed) +
        '\nUse another --workdir, the old values, or --allow_config_change.')
  workdir.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  dataset = {'name': run.dataset.name, 'classes': list(run.dataset.classes),
             'palette': np.asarray(run.dataset.palette).tolist(), 'note': run.dataset.note}
  (workdir / 'dataset.json').write_text(json.dumps(dataset, indent=2) + '\n')


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    inner = isinstance(value, Mapping)
    flat |= _flatten(value, f'{prefix}{key}.') if inner else {f'{prefix}{key}': value}
  return flat


def _evaluation_steps(run: Run, first_step: int) -> list[int]:
  """The steps after which networks are scored and saved; the last step is always one."""
  every = max(1, round(run.config.train.evaluate_epochs * run.epoch_steps))
  stops = [*range(every, run.total_steps, every), run.total_steps]
  return [stop for stop in stops if stop > first_step]


class _Steps:
  """Runs training steps and logs them; holds the streams, which run ahead of the device."""

  def __init__(
    self, run: Run, mesh: jax.sharding.Mesh, first_step: int, writer: MetricWriter,
    progress: Progress, checkpoints: Checkpoints,
  ):
    self._run, self._mesh, self._writer = run, mesh, writer
    self._progress, self._checkpoints = progress, checkpoints
    self._warmup, self._semi = _compiled_steps(run, mesh)
    self._labelled = _stream(run, 'labelled', first_step)
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
          self._unlabelled = self._unlabelled or _stream(self._run, 'unlabelled', step)
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


def _stream(run: Run, stream: str, start_step: int) -> Iterator[dict[str, np.ndarray]]:
  data, processes = run.config.data, jax.process_count()
  low, high = data.scale
  return training_stream(
    run.dataset, stream=stream, batch_size=run.config.train[f'{stream}_batch'] // processes,
    crop_size=data.crop, scale=(low * data.image_scale, high * data.image_scale), flip=data.flip,
    fill=tuple(round(255 * m) for m in run.network.mean), padding_label=data.padding_label,
    label_sampling=data.label_sampling, oracle=data.oracle, seed=run.config.seed,
    start_step=start_step, process_index=jax.process_index(), process_count=processes,
    threads=data.threads, workers=data.workers, prefetch=data.prefetch)


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


def _evaluate_and_save(
  run: Run, state: TrainState, step: int, writer: MetricWriter, progress: Progress,
  checkpoints: Checkpoints,
) -> None:
  progress.note_phase('evaluates')
  found = evaluate(
    run.network, state.networks, run.dataset, batch_size=run.config.evaluate.batch,
    image_scale=run.config.data.image_scale, threads=run.config.data.threads)
  scores = _scores_by_network(found, run.dataset.classes)
  writer.write(step, {f'val/{key}': value for key, value in found.scalars().items()})
  progress.note('  '.join(
    [f'step {step}: mIoU'] + [f'{name} {100 * s.miou:.2f}' for name, s in found.scores.items()]))
  checkpoints.save(step, state, scores)


def _scores_by_network(found: Evaluation, classes: tuple[str, ...]) -> dict[str, Any]:
  return {name: plain_scores(scores, classes) for name, scores in found.scores.items()}


def plain_scores(scores: Scores, classes: tuple[str, ...]) -> dict[str, Any]:
  """Scores as JSON; what is undefined, as a class that never occurs, is null."""
  def plain(value: float) -> float | None:
    return None if math.isnan(value) else value

  iou = {name: plain(value) for name, value in zip(classes, scores.iou, strict=True)}
  accuracy = plain(scores.pixel_accuracy)
  return {'miou': plain(scores.miou), 'pixel_accuracy': accuracy, 'iou': iou}


def _results(
  run: Run, checkpoints: Checkpoints, first_step: int, seconds: float
) -> dict[str, Any]:
  """Last and best scores. The best is chosen by the teacher's mIoU on the validation images."""
  def record(step: int) -> dict[str, Any]:
    return {'step': step, **checkpoints.scores(step)}

  return {
    'method': run.config.method.name,
    'recipe': run.config.method.recipe,
    'seed': run.config.seed,
    'labelled': len(run.dataset.labelled),
    'labelled_sha256': ids_sha256(run.dataset.labelled),
    'unlabelled': len(run.dataset.unlabelled),
    'unlabelled_sha256': ids_sha256(run.dataset.unlabelled),
    'seconds': round(seconds, 1),
    'seconds_from_step': first_step,
    'last': record(checkpoints.last_step),
    'best': record(checkpoints.best_step),
  }
