"""Finished runs as reports read them, and what each brings over the others."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from gta_jax.training import setup, verdict
from gta_jax.training.finished_run import read_run
from gta_jax.training.workdir_files import read_json


@dataclasses.dataclass(frozen=True)
class Finished:
  """A finished run.

  Attributes:
    dataset: its name; '' in files from before it was kept.
    classes: names, in the order of the ids.
    results: what results.json holds.
    metrics: the lines of metrics.jsonl.
  """

  workdir: Path
  config: ml_collections.ConfigDict
  dataset: str
  classes: tuple[str, ...]
  results: dict[str, Any]
  metrics: list[dict[str, float | None]]

  @property
  def method(self) -> str:
    return self.config.method.name

  @property
  def scored(self) -> tuple[str, ...]:
    """Its networks that were evaluated; the first one predicts."""
    return setup.make_method_of(self.config).scored

  @property
  def task(self) -> tuple[str, str, str]:
    """What runs that can be compared have in common: source, folder and split."""
    data = self.config.data
    return data.source, data.dir, data.split

  def __str__(self) -> str:
    return f'{self.method}, split {self.config.data.split}, seed {self.config.seed}'


def read_finished(workdir: Path) -> Finished:
  """Reads a workdir. Raises ValueError where no finished run lies."""
  config, described = read_run(workdir)
  path = workdir / 'results.json'
  if not path.is_file():
    raise ValueError(f'{path} does not exist: the run has not finished; go on training first.')
  log = workdir / 'metrics.jsonl'
  try:
    lines = [json.loads(line) for line in log.read_text(encoding='utf-8').splitlines()]
    whole = all(isinstance(line['step'], int) for line in lines)
  except (KeyError, RecursionError, TypeError, ValueError):
    lines, whole = [], False
  if not whole:
    raise ValueError(f'{log} is damaged: a line is no JSON object with a step; restore it, or '
                     'remove the line.')
  return Finished(workdir, config, described.get('name', ''), tuple(described['classes']),
                  read_json(path), lines)


def verdicts(found: Sequence[Finished]) -> list[str]:
  """What each run brings over a pixel classifier and over supervised training, as sentences."""
  def scored(one: Finished, name: str) -> verdict.Scored | None:
    return verdict.read_run(one.workdir, name=name, network=one.scored[0])

  sentences = []
  for one in found:
    supervised = next((other for other in found if other.method == 'sup_only' and other is not one
                       and (other.task, other.config.seed) == (one.task, one.config.seed)), None)
    baseline = next(filter(None, (verdict.read_baseline(other.workdir) for other in (one, *found)
                                  if other.task == one.task)), None)
    method = scored(one, f'{one} ({one.scored[0]})')
    others = [baseline, supervised and one.method != 'sup_only' and scored(
      supervised, 'supervised training alone') or None]
    if method and any(others):
      sentences.append(verdict.verdict(method, *others))
  return sentences
