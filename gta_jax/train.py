"""The host loop of a run: steps, evaluations, checkpoints, results. No mathematics."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gta_jax import sharding
from gta_jax.checkpoint import Checkpoints
from gta_jax.data.skipping import Skipped
from gta_jax.evaluate import Evaluation, evaluate
from gta_jax.metrics import Scores
from gta_jax.run import Run, ids_sha256, to_json
from gta_jax.state import TrainState
from gta_jax.stepping import Steps
from gta_jax.visualize import write_picture
from gta_jax.writers import MetricWriter, Progress, final_table

# Fields that may differ when a run goes on: they change its speed or its log, not its result.
_FREE_FIELDS = ('data.dir', 'data.threads', 'data.workers', 'data.prefetch', 'data.cache',
                'data.skip_limit', 'train.log_steps', 'evaluate.batch', 'evaluate.pictures')


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
    DataError: more files became unreadable than data.skip_limit allows, or a validation file.
    WorkerError: a process that reads data was killed.
    NotFiniteError: with the step and the last good checkpoint.
  """
  mesh = sharding.make_mesh()
  state = run.initial_state()  # first, as it refuses weights that do not fit
  _write_config(run, workdir, allow_config_change=allow_config_change)
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
      skipped = Skipped(run.config.data.skip_limit, note=progress.note, path=(
        workdir / 'skipped.json' if jax.process_index() == 0 else None))
      steps = Steps(run, mesh, first_step, writer, progress, checkpoints, skipped)
      for stop in _evaluation_steps(run, first_step):
        state = steps.run(state, stop)
        _evaluate_and_save(run, state, stop, writer, progress, checkpoints)
      steps.close()
    results = _results(run, checkpoints, first_step, time.monotonic() - started)
    results |= {'skipped': skipped.reasons} if skipped.reasons else {}
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
