"""Runs as their files tell of them, finished or under way, and what each brings over the others."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from gta_jax.data.splits import ids_sha256
from gta_jax.training import from_data, same_run, setup, snapshot, verdict
from gta_jax.training.finished_run import read_run
from gta_jax.training.starts import read_starts
from gta_jax.training.workdir_files import read_ids, read_json, tuples

# The files that an evaluation, or --mode baseline or evaluate, changes.
EVALUATED = (snapshot.FILE, 'results.json', 'evaluation.json', 'baseline.json')
_WEIGHTS = 'loss.class_weights'
_LONGEST = 40  # characters of a value in a sentence


@dataclasses.dataclass(frozen=True)
class Record:
  """A run.

  Attributes:
    dataset: its name; '' in files from before it was kept.
    classes: names, in the order of the ids.
    palette: RGB of each.
    metrics: the lines of metrics.jsonl.
    notes: the lines of notes.jsonl, each once: {'step', 'note'}.
    results: what results.json holds; empty while the run is under way.
    snapshot: what report.json holds; empty before the first evaluation.
    inspection: what inspection.json holds, if anything.
    baseline: what baseline.json holds, if anything.
    starts: the entries of starts.json.
    validation_sha256: of the ids of its validation images; '' where no file holds them.
  """

  workdir: Path
  config: ml_collections.ConfigDict
  dataset: str
  classes: tuple[str, ...]
  palette: tuple[tuple[int, int, int], ...]
  metrics: list[dict[str, Any]]
  notes: list[dict[str, Any]]
  results: dict[str, Any]
  snapshot: dict[str, Any]
  inspection: dict[str, Any]
  baseline: dict[str, Any]
  starts: list[dict[str, Any]]
  validation_sha256: str

  @property
  def method(self) -> str:
    return self.config.method.name

  @property
  def networks(self) -> tuple[str, ...]:
    """Its networks that are evaluated; the first one predicts."""
    return setup.make_method_of(self.config).scored

  @property
  def scores(self) -> dict[str, dict[str, Any]]:
    """Scores of the newest evaluation by network, as in results.json; empty before the first."""
    found = self.snapshot.get('scores') or self.results.get('last', {})
    return {name: found[name] for name in self.networks if name in found}

  @property
  def task(self) -> tuple[str, str, str, tuple[str, ...], str]:
    """What runs that can be compared have in common: source and split, and of the data set, which
    may have moved or be spelt otherwise, name, classes and validation images.
    """
    data = self.config.data
    return data.source, data.split, self.dataset, self.classes, self.validation_sha256

  @property
  def settings(self) -> dict[str, Any]:
    """What decides its result besides the seed: fields of the config, by dotted name.

    Class weights that followed from the labelled images are one setting, as a seed may draw these.
    """
    fields = same_run.settings(self.config.to_dict())
    if _WEIGHTS in self.taken:
      fields[_WEIGHTS] = 'from the data'
    return {name: value for name, value in fields.items() if name != 'seed'}

  @property
  def taken(self) -> tuple[str, ...]:
    """The fields of its config that have what followed from the data, see inspection.json."""
    if not self.inspection:
      return ()
    fields = same_run.flatten(self.config.to_dict())
    return tuple(one.field for one in from_data.of_json(self.inspection)[1]
                 if one.field in fields and tuples(one.value) == fields[one.field])

  def __str__(self) -> str:
    return f'{self.method}, split {self.config.data.split}, seed {self.config.seed}'


def read_record(workdir: Path) -> Record:
  """Reads a workdir, with whatever is there.

  Raises: ValueError where no run lies, or for a damaged file.
  """
  config, described = read_run(workdir)

  def optional(name: str) -> dict[str, Any]:
    return read_json(workdir / name) if (workdir / name).is_file() else {}

  notes = {line['note']: line for line in _lines(workdir / 'notes.jsonl')
           if isinstance(line.get('note'), str)}
  results, validation = optional('results.json'), read_ids(workdir / 'splits' / 'val.txt')
  return Record(
    workdir, config, described.get('name', ''), tuple(described['classes']),
    tuple(map(tuple, described['palette'])), _lines(workdir / 'metrics.jsonl'),
    list(notes.values()), results,
    snapshot.read_snapshot(workdir), optional('inspection.json'), optional('baseline.json'),
    read_starts(workdir),
    results.get('validation_sha256') or (ids_sha256(validation) if validation else ''))


def _lines(path: Path) -> list[dict[str, Any]]:
  """Of a log; a last one without its end is being written."""
  if not path.is_file():
    return []
  text = path.read_text(encoding='utf-8', errors='replace')
  try:
    lines = [json.loads(line) for line in text[:text.rfind('\n') + 1].splitlines()]
    if all(isinstance(line['step'], int) for line in lines):
      return lines
  except (KeyError, RecursionError, TypeError, ValueError):
    pass
  raise ValueError(f'{path} is damaged: a line is no JSON object with a step; restore it, or '
                   'remove the line.')


def labels_of(found: Sequence[Record]) -> list[str]:
  """A short name of each run, all different for runs in different folders."""
  names = [str(one) for one in found]
  folders: dict[str, list[Path]] = {}
  for name, one in zip(names, found, strict=True):
    folders.setdefault(name, []).append(one.workdir.resolve())
  return [name if len(folders[name]) == 1 else
          f'{name} ({_end_of(one.workdir.resolve(), folders[name])})'
          for name, one in zip(names, found, strict=True)]


def _end_of(path: Path, folders: Sequence[Path]) -> Path:
  """As much of the end of a path as no other of the folders has."""
  ends = (Path(*path.parts[-size:]) for size in range(1, len(path.parts)))
  return next((end for end in ends if sum(
    folder.parts[-len(end.parts):] == end.parts for folder in folders) == 1), path)


def differences(found: Sequence[Record]) -> dict[str, list[Any]]:
  """The settings that are not the same in all runs: the value of each run, by name."""
  settings = [one.settings for one in found]
  values = {name: [of.get(name) for of in settings]
            for name in dict.fromkeys(name for of in settings for name in of)}
  return {name: of for name, of in values.items() if any(value != of[0] for value in of)}


def short(value: Any) -> str:
  """A value of a config in a sentence."""
  text = str(value)
  return text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'


def verdicts(found: Sequence[Record]) -> list[str]:
  """What each run brings over a pixel classifier and over supervised training, as sentences.

  Of several supervised runs the one that differs in the fewest fields is taken; they are named.
  """
  def scored(one: Record, name: str) -> verdict.Scored | None:
    return verdict.read_run(one.workdir, name=name, network=one.networks[0])

  classifiers = [(other.task, verdict.read_baseline(other.workdir)) for other in found]
  sentences = []
  for one, label in zip(found, labels_of(found), strict=True):
    alone = [other for other in found if one.method != 'sup_only' and other.method == 'sup_only'
             and (other.task, other.config.seed) == (one.task, one.config.seed)]
    supervised = min(alone, key=lambda other, one=one: len(_unlike(other, one)), default=None)
    own = verdict.read_baseline(one.workdir)
    baselines = [of for of in (own, *(of for task, of in classifiers if task == one.task)) if of]
    method = scored(one, f'{label} ({one.networks[0]})')
    baseline = min(baselines, default=None, key=lambda of, method=method: (
      bool(method) and of.labelled_sha256 != method.labelled_sha256))
    others = [baseline, supervised and scored(supervised, 'supervised training alone' + (
      f' with {", ".join(unlike)}' if (unlike := _unlike(supervised, one)) else ''))]
    if method and any(others):
      sentences.append(verdict.verdict(method, *others))
  return sentences


def _unlike(supervised: Record, one: Record) -> list[str]:
  """In what a supervised run differs from another, but for the method."""
  return [f'{name}={short(theirs)} instead of {short(own)}'
          for name, (theirs, own) in differences([supervised, one]).items()
          if not name.startswith('method.')]
