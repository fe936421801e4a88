"""What the files of a run say of how far it has come."""

from pathlib import Path
from typing import Any

from gta_jax.training.snapshot import read_snapshot


def unfinished(workdir: Path, step: int) -> str:
  """A sentence about networks of a step where their run has not ended; '' where it has."""
  if (workdir / 'results.json').is_file():
    return ''
  steps = _snapshot(workdir).get('steps')
  return f'The networks are of step {step}{f" of {steps}" if steps else ""}: the run has not ended.'


def _snapshot(workdir: Path) -> dict[str, Any]:
  """What report.json holds; nothing where it is damaged, as no result depends on it."""
  try:
    return read_snapshot(workdir)
  except ValueError:
    return {}
