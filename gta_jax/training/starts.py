"""With what a run was made: versions, devices and flags of the compiler, each time it was started.

Equal seeds give equal numbers under equal versions; another jaxlib rounds otherwise.
"""

import importlib.metadata
import json
import os
import time
from pathlib import Path
from typing import Any

from gta_jax.data.writing import replace_text
from gta_jax.training.summary import device_line
from gta_jax.version import version

FILE = 'starts.json'
# What decides numbers: the compiler, the optimiser, and who decodes and resizes images.
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'opencv-python-headless', 'pillow')


def made_with() -> dict[str, str]:
  """Versions of the package and of what it stands on, devices, and flags of the compiler."""
  return {'gta_jax': version(), **{name: _installed(name) for name in _PACKAGES},
          'devices': device_line(), 'XLA_FLAGS': os.environ.get('XLA_FLAGS', '')}


def read_starts(workdir: Path) -> list[dict[str, Any]]:
  """The entries of starts.json, oldest first; empty where it is missing or damaged."""
  try:
    found = json.loads((workdir / FILE).read_text(encoding='utf-8'))['starts']
    return [{**entry, 'step': int(entry['step'])} for entry in found]
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return []


def add_start(workdir: Path, step: int) -> str:
  """Adds an entry, {'step', 'date', and what made_with says}, to starts.json.

  Args:
    workdir: of the run.
    step: that it goes on from; later entries, which that undoes, are dropped.
  Returns: a sentence on what has changed since the entry before; '' if nothing has.
  """
  before = [entry for entry in read_starts(workdir) if entry['step'] < step]
  now = made_with()
  entry = {'step': step, 'date': time.strftime('%Y-%m-%d'), **now}
  replace_text(workdir / FILE, json.dumps({'starts': [*before, entry]}, indent=2) + '\n')
  changed = [f'{name} {before[-1].get(name)} -> {value}' for name, value in now.items()
             if before and before[-1].get(name) != value]
  if not changed:
    return ''
  return (f'from step {step} on the run is made with something else than before '
          f'({"; ".join(changed)}): its numbers may be rounded otherwise than in one go')


def _installed(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:  # As where another build of OpenCV is used.
    return ''
