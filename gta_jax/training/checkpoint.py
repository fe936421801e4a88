"""Checkpoints of a run: the two newest, and the one whose teacher scored best."""

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gta_jax.data.writing import replace_text
from gta_jax.methods.contract import TrainState
from gta_jax.ops.network import Variables
from gta_jax.training.logs import note

_REST = 'rest'  # the item that holds all but the networks
# STEP, STEP.json, and what a killed save leaves of them; whatever else lies there is the user's.
_OURS = re.compile(r'(\d+)(\.json(\.\d+\.partial)?|\.orbax-checkpoint-tmp.*)?')


class Checkpoints:
  """The folder of a run's checkpoints: for each step STEP/, Orbax's, and a record, STEP.json.

  The record is written last and removed first: a checkpoint without one is not whole. It holds the
  SHA-256 of every file and of itself, so that damage is found before anything is restored. Each
  network is an item of its own, so that inference reads nothing else. The streams need no item:
  their position is the step, and so is the stage's.
  """

  def __init__(self, folder: Path, *, only: str = ''):
    """Opens a folder, made if missing; checkpoints in it that are not whole are named.

    Args:
      only: 'last' or 'best' where nothing but last_step or best_step will be restored, and nothing
        saved: the files of the others are not looked at.
    """
    self.folder = folder.absolute()
    self.folder.mkdir(parents=True, exist_ok=True)
    self._checkpointer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(),
      # Directories first: a disk that is full then fails the save at once, not by a timeout.
      async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False))
    self._thread: threading.Thread | None = None
    self._records: dict[int, dict[str, Any]] = {}
    for path in sorted(self.folder.iterdir()):
      if path.name.isdigit():
        self._check(int(path.name), _read_record)
    if only:
      while (step := self.best_step if only == 'best' else self.last_step) is not None:
        if self._check(step, _check_files):
          break
    else:
      for step in tuple(self._records):
        self._check(step, _check_files)

  def _check(self, step: int, read: Callable[[Path], dict[str, Any]]) -> bool:
    """Keeps the record that `read` gives of a step; where it fails, names it and keeps none."""
    self._records.pop(step, None)
    path = self.folder / str(step)
    try:
      self._records[step] = read(path)
    except (OSError, ValueError) as error:
      note(f'{path} is not whole and not used: {error}')
    return step in self._records

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_: object) -> None:
    self.wait()
    self._checkpointer.close()

  @property
  def last_step(self) -> int | None:
    """The step of the newest whole checkpoint; None before the first."""
    return max(self._records, default=None)

  @property
  def best_step(self) -> int | None:
    """The step of the checkpoint with the best score, the newer of equals; None before the first
    that was scored. The score is the mIoU of the first network in the scores."""
    scored = [step for step, record in self._records.items() if record['scores']]
    # Undefined (null) where every validation pixel is void.
    return max(
      scored, default=None,
      key=lambda step: (next(iter(self._records[step]['scores'].values()))['miou'] or 0.0, step))

  def scores(self, step: int) -> dict[str, Any] | None:
    """The scores added to a step; None if there are none."""
    return self._records[step]['scores']

  def unlogged(self, step: int) -> list:
    """What save was given."""
    return self._records[step]['unlogged']

  def save(self, step: int, state: TrainState, *, unlogged: Sequence = ()) -> None:
    """Saves in the background; does nothing where the step is saved already.

    A save that fails, on a full disk say, is noted, and the run goes on with its older checkpoints.

    Args:
      step: steps done.
      state: may be donated to the next step right after.
      unlogged: JSON to keep with it, the metrics that no line of the log holds yet.
    """
    self.wait()
    if step in self._records:
      return
    record = {'step': step, 'scores': None, 'unlogged': list(unlogged)}
    networks = {name: ocp.args.StandardSave(of_one) for name, of_one in state.networks.items()}
    items = ocp.args.Composite(
      **networks, **{_REST: ocp.args.StandardSave(state.replace(networks={}))})
    try:
      self._record_path(step).unlink(missing_ok=True)
      self._checkpointer.save(self.folder / str(step), args=items, force=True)
    except Exception as error:  # Storage fails in many ways; none may end the run.
      self._failed(step, error)
      return
    # Not a daemon, so that a save under way outlives an exception of the main thread.
    self._thread = threading.Thread(target=self._finish, args=(record,))
    self._thread.start()

  def wait(self) -> None:
    """Waits for the save under way."""
    if self._thread:
      self._thread.join()
      self._thread = None

  def add_scores(self, step: int, scores: Mapping[str, Any]) -> None:
    """Adds to a saved step what evaluation found, and removes what is no longer kept.

    Args:
      step: given to save before; nothing happens if that failed.
      scores: plain JSON, network -> {'miou', ...}; the first network's decides which step is best.
    """
    self.wait()
    if step not in self._records:
      return
    record = {**self._records[step], 'scores': dict(scores)}
    try:
      self._commit(record)
    except OSError as error:
      note(f'the scores of step {step} could not be kept: {error}')

  def restore(self, step: int, like: TrainState) -> TrainState:
    """The state of a step, with the shapes, dtypes and placement of `like`.

    Raises: ValueError where the saved one has other shapes.
    """
    networks = {name: ocp.args.StandardRestore(_abstract(of_one))
                for name, of_one in like.networks.items()}
    rest = ocp.args.StandardRestore(_abstract(like.replace(networks={})))
    found = self._restore(step, **networks, **{_REST: rest})
    return found[_REST].replace(networks={name: found[name] for name in networks})

  def restore_networks(
    self, step: int, like: Variables, names: Sequence[str]
  ) -> dict[str, Variables]:
    """The named networks of a step; nothing else, as the optimisers, is read.

    Args:
      like: shapes, dtypes and placement of one of them.
      names: some of the networks of the method.
    Raises: ValueError where the saved ones have other shapes.
    """
    found = self._restore(
      step, **{name: ocp.args.StandardRestore(_abstract(like)) for name in names})
    return {name: found[name] for name in names}

  def _restore(self, step: int, **items: ocp.args.CheckpointArgs) -> ocp.args.Composite:
    self.wait()
    path = self.folder / str(step)
    try:
      return self._checkpointer.restore(path, args=ocp.args.Composite(**items))
    except (KeyError, ValueError) as error:  # Not damage: the files have their digests.
      raise ValueError(
        f'{path} was saved with another network, method or optimiser than the config now says '
        f'({_reason(error)}), or by a version of gta_jax that kept them otherwise; restore '
        'config.json and dataset.json, give the values that the run had, or install the version '
        'that starts.json names.') from error

  def _record_path(self, step: int) -> Path:
    return self.folder / f'{step}.json'

  def _finish(self, record: dict[str, Any]) -> None:
    """In a thread: waits for Orbax, then makes the checkpoint whole."""
    step = record['step']
    try:
      self._checkpointer.wait_until_finished()
      files = _digests(self.folder / str(step)) if jax.process_index() == 0 else {}
      self._commit({**record, 'files': files})
    except Exception as error:  # As in save.
      self._failed(step, error)

  def _commit(self, record: dict[str, Any]) -> None:
    if jax.process_index() == 0:
      _write_record(self._record_path(record['step']), record)
    self._records[record['step']] = record
    self._prune()

  def _failed(self, step: int, error: Exception) -> None:
    note(f'step {step} could not be saved ({_reason(error)}); the run goes on, its newest '
         f'checkpoint is that of step {self.last_step}')
    self._prune()

  def _prune(self) -> None:
    """Removes all but the two newest whole checkpoints and the best one; where it cannot, it says
    so, and the next one tries again."""
    kept = {*sorted(self._records)[-2:], self.best_step}
    self._records = {step: record for step, record in self._records.items() if step in kept}
    if jax.process_index():
      return
    try:
      self._remove_all_but(kept)
    except OSError as error:  # None may end the run, as in save.
      note(f'older checkpoints could not be removed: {error}')

  def _remove_all_but(self, kept: Collection[int | None]) -> None:
    strangers = [
      path for path in self.folder.iterdir()
      if (found := _OURS.fullmatch(path.name)) and (
        int(found[1]) not in kept or path.name not in (found[1], f'{found[1]}.json'))]
    # Records go first: nothing half removed may be taken for whole.
    for path in sorted(strangers, key=lambda path: path.suffix != '.json'):
      if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
      else:
        path.unlink(missing_ok=True)


def _digests(folder: Path) -> dict[str, str]:
  """The SHA-256 of every file below a folder, by its path in it."""
  digests = {}
  for path in sorted(path for path in folder.rglob('*') if path.is_file()):
    with path.open('rb') as file:
      digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, 'sha256').hexdigest()
  return digests


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
  """One line of JSON, and one with its SHA-256."""
  line = json.dumps(record)
  replace_text(path, f'{line}\n{_digest_line(line)}')


def _digest_line(line: str) -> str:
  return hashlib.sha256(line.encode()).hexdigest() + '\n'


def _read_record(folder: Path) -> dict[str, Any]:
  """A checkpoint's record that is as it was written; else ValueError."""
  path = folder.with_name(f'{folder.name}.json')
  if not path.exists():
    raise ValueError(f'{path.name} is missing; its save was cut off')
  line, _, digest = path.read_text(encoding='utf-8', errors='replace').partition('\n')
  if digest != _digest_line(line):
    raise ValueError(f'{path.name} has changed')
  return json.loads(line)


def _check_files(folder: Path) -> dict[str, Any]:
  """The record of a checkpoint whose files are as it says; else ValueError with the others."""
  record = _read_record(folder)
  saved, found = record['files'], _digests(folder)
  bad = [name for name in sorted(saved | found) if saved.get(name) != found.get(name)]
  if bad:
    raise ValueError(f'{", ".join(bad)} changed or disappeared since')
  return record


def _reason(error: Exception) -> str:
  """The kind and the first line of what a library raised."""
  return f'{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}'


def _abstract(tree: Any) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)
