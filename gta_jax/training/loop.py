"""The host loop of a run: steps, evaluations, checkpoints, results. No mathematics."""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from gta_jax.data.skipping import Skipped
from gta_jax.data.splits import ids_sha256
from gta_jax.data.writing import replace_text
from gta_jax.devices import sharding
from gta_jax.evaluation.pictures import write_picture
from gta_jax.evaluation.protocols import WHOLE, Protocol
from gta_jax.evaluation.scores import evaluate, label_images
from gta_jax.evaluation.windows import Prediction
from gta_jax.methods.contract import Host, TrainState
from gta_jax.methods.options import drop_share
from gta_jax.ops.network import Variables
from gta_jax.training import verdict
from gta_jax.training.checkpoint import Checkpoints
from gta_jax.training.init_from import first_state
from gta_jax.training.logs import final_table, note
from gta_jax.training.not_finite import NotFiniteError, check_state
from gta_jax.training.same_run import check_same, write_same
from gta_jax.training.setup import Run
from gta_jax.training.signals import Signals
from gta_jax.training.starts import read_starts
from gta_jax.training.steps import Steps, stage_borders
from gta_jax.training.telling import Page, Telling
from gta_jax.training.workdir_files import has_checkpoint
from gta_jax.training.workdir_lock import locked


def train(
  run: Run, workdir: Path, *, allow_config_change: bool = False, page: Page | None = None
) -> dict[str, Any]:
  """Trains from the newest whole checkpoint in `workdir`, or from the start, to the end.

  Args:
    run: everything that has been checked.
    workdir: made if need be; holds config.json, dataset.json, splits/, starts.json, metrics.jsonl,
      notes.jsonl, TensorBoard events, checkpoints, report.json, picture.png and results.json
      afterwards.
    allow_config_change: go on although the config or the data differ from what started the run.
    page: written after each evaluation, and at the end, by the process that writes.
  Returns: what results.json holds.
  Raises:
    ValueError: the config, the classes or the lists of images differ from those that started the
      run, or it ends before the newest checkpoint; or another run is under way in the folder.
    DataError: more files became unreadable than data.skip_limit allows, or a validation file.
    WorkerError: a process that reads data was killed.
    NotFiniteError: with the step and the last good checkpoint.
    Interrupted: SIGTERM or SIGINT; the state is saved and the same call goes on.
    OSError: the last checkpoint could not be saved; the same call tries again.
  """
  # All that can be refused comes before anything is written. A run that goes on needs no weights.
  begin = [] if has_checkpoint(workdir) else [first_state(run)]
  check_same(run, workdir, allow_config_change=allow_config_change)
  with locked(workdir):
    return _train(run, workdir, begin, page or Page())


def _train(run: Run, workdir: Path, begin: list[TrainState], page: Page) -> dict[str, Any]:
  """begin: the first state, or nothing. It is taken out: whoever held it would hold memory of the
  device to the end, as a hand-over does not use up what it does not read."""
  started = time.monotonic()
  skipped = Skipped(run.config.data.skip_limit, note=note, path=(
    workdir / 'skipped.json' if sharding.is_first_process() else None))
  with Signals() as signals, Checkpoints(workdir / 'checkpoints') as checkpoints:
    first_step = checkpoints.last_step or 0
    sharding.check_agreement(newest_checkpoint=first_step)
    if first_step:
      begin[:] = [checkpoints.restore(first_step, run.abstract_state())]
    elif not begin:  # None of the checkpoints is whole.
      begin[:] = [first_state(run)]
    if first_step < run.total_steps and sharding.is_first_process():
      (workdir / 'results.json').unlink(missing_ok=True)  # Of a shorter run that now goes on.
    write_same(run, workdir)  # Not before the state is there: what cannot go on keeps its files.
    try:
      state = _train_to_the_end(run, workdir, begin, checkpoints, signals, skipped, page)
    except NotFiniteError as error:
      checkpoints.wait()
      last = checkpoints.last_step
      raise NotFiniteError(
        f'{error} The last good checkpoint is {f"that of step {last}" if last else "none"}.'
      ) from None
    results = _results(run, checkpoints, first_step, time.monotonic() - started)
    results['starts'] = read_starts(workdir)
    results |= {'skipped': skipped.reasons} if skipped.reasons else {}
    said = verdict.over_baseline(workdir, run.method.scored[0])
    results |= {'verdict': said} if said else {}
    if sharding.is_first_process():
      replace_text(workdir / 'results.json', json.dumps(results, indent=2) + '\n')
      write_picture(
        workdir / 'picture.png', run.network, _scored(run, state), run.dataset,
        count=run.config.evaluate.pictures, place=sharding.place_locally,
        batch_size=sharding.round_up_to_devices(run.config.evaluate.batch),
        crop=run.config.data.crop, image_scale=run.config.data.image_scale,
        drop_share=drop_share(run.config.method))
      page.write()
      print(final_table(results))
      print(said)
  return results


def _train_to_the_end(
  run: Run, workdir: Path, begin: list[TrainState], checkpoints: Checkpoints, signals: Signals,
  skipped: Skipped, page: Page,
) -> TrainState:
  """Steps, saves and evaluates from where the state in `begin`, the newest checkpoint, stands."""
  state = begin.pop()
  first_step = checkpoints.last_step or 0
  evaluated = bool(first_step and checkpoints.scores(first_step))
  evaluations = _evaluation_steps(run)
  with (
    Telling(run, workdir, page, evaluations, first_step=first_step,
            evaluated=evaluated) as telling,
    Steps(run, sharding.make_mesh(), _host(run, workdir), telling, skipped,
          checkpoints.unlogged(first_step) if first_step else ()) as steps,
  ):
    telling.begin()
    saves = evaluations | _saving_steps(run)
    for stop in sorted(saves | set(stage_borders(run.stages))):
      if stop < first_step or (stop == first_step and evaluated):
        continue
      if int(state.step) < stop:
        if int(state.step) in _prepared_steps(run):
          checkpoints.wait()  # What is prepared names the state that it is made with.
        state = steps.enter_stage(state)
      with signals.deferred():
        state = steps.advance(state, stop, signals)
        step = int(state.step)
        if step == stop and stop not in saves:
          continue
        if step in evaluations:
          steps.log(state)
        unlogged = steps.unlogged()
        check_state(state, step)
        telling.writer.flush()  # Lines up to here are not written anew after it.
        checkpoints.save(step, state, unlogged=unlogged)
        signals.raise_if_agreed()
      if step in evaluations:
        # One process alone leaves at once; several would wait for the one that has left.
        alone = jax.process_count() == 1
        with contextlib.nullcontext() if alone else signals.deferred():
          _evaluate(run, state, step, telling, checkpoints)
          if not alone:
            signals.raise_if_agreed()
  return state


def _scored(run: Run, state: TrainState) -> dict[str, Variables]:
  """The networks that are evaluated, the one that decides first, for programs of this process."""
  networks = sharding.local_copy(state.networks)
  return {name: networks[name] for name in run.method.scored}


def _host(run: Run, workdir: Path) -> Host:
  """What stages may use on the host."""
  said = note if sharding.is_first_process() else lambda text: None
  return Host(workdir, run.dataset, _predictor(run), said,
              (jax.process_index(), jax.process_count()))


def _predictor(run: Run) -> Callable[..., Iterator[tuple[str, dict[str, Prediction]]]]:
  """Predictions as in the evaluation; see Host.predict."""
  def predict(
    networks: Mapping[str, Variables], ids: Sequence[str], protocol: Protocol = WHOLE, *,
    done: Collection[str] = (),
  ) -> Iterator[tuple[str, dict[str, Prediction]]]:
    return label_images(
      run.network, networks, run.dataset.reader, ids, protocol=protocol, done=done,
      crop=run.config.data.crop,
      batch_size=sharding.round_up_to_devices(run.config.evaluate.batch),
      image_scale=run.config.data.image_scale, threads=run.config.data.threads,
      place=sharding.place_locally)

  return predict


def _evaluation_steps(run: Run) -> set[int]:
  """The steps after which networks are scored; the last step always, none just before it."""
  every = max(1, round(run.config.train.evaluate_epochs * run.tools.epoch_steps))
  return {*range(every, run.total_steps - every // 2 + 1, every), run.total_steps}


def _saving_steps(run: Run) -> set[int]:
  """The steps after which the state is saved besides: on demand, and before a prepared stage."""
  every = run.config.train.checkpoint_steps
  on_demand = set(range(every, run.total_steps, every)) if every else set()
  return on_demand | (_prepared_steps(run) - {0})


def _prepared_steps(run: Run) -> set[int]:
  """The steps after which a stage begins that is prepared on the host."""
  starts = (0, *stage_borders(run.stages))
  return {start for start, stage in zip(starts, run.stages, strict=False) if stage.prepare}


def _evaluate(
  run: Run, state: TrainState, step: int, telling: Telling, checkpoints: Checkpoints
) -> None:
  """Scores the networks while the state is being saved; a signal cuts it short."""
  telling.progress.note_phase('evaluates')
  telling.pace.pause()
  began, networks = time.monotonic(), _scored(run, state)
  found = evaluate(
    run.network, networks, run.dataset,
    batch_size=sharding.round_up_to_devices(run.config.evaluate.batch), crop=run.config.data.crop,
    image_scale=run.config.data.image_scale, threads=run.config.data.threads,
    place=sharding.place_locally, part=(jax.process_index(), jax.process_count()))
  telling.pace.evaluation = time.monotonic() - began
  telling.show(step, found, functools.partial(_predictor(run), networks))
  checkpoints.add_scores(step, found.plain(run.dataset.classes))


def _results(
  run: Run, checkpoints: Checkpoints, first_step: int, seconds: float
) -> dict[str, Any]:
  """Last and best scores. The best is chosen by the mIoU of the first scored network."""
  last, best = checkpoints.last_step, checkpoints.best_step
  if last is None or best is None or last != run.total_steps or not checkpoints.scores(last):
    raise OSError(
      f'step {run.total_steps}, the last one, or its scores could not be saved in '
      f'{checkpoints.folder}; make room and give the same command again: it goes on from the '
      'newest checkpoint.')

  def record(step: int) -> dict[str, Any]:
    return {'step': step, **(checkpoints.scores(step) or {})}

  return {
    'method': run.config.method.name,
    'recipe': run.config.method.recipe,
    'seed': run.config.seed,
    'labelled': len(run.dataset.labelled),
    'labelled_sha256': ids_sha256(run.dataset.labelled),
    'unlabelled': len(run.dataset.unlabelled),
    'unlabelled_sha256': ids_sha256(run.dataset.unlabelled),
    'validation_sha256': ids_sha256(run.dataset.validation),
    'seconds': round(seconds, 1),
    'seconds_from_step': first_step,
    'last': record(last),
    'best': record(best),
  }
