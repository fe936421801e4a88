"""Every method: 1, 2, 4 devices, resume, padding, bfloat16, parts, gathers; see every_method.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gta_jax.methods.registry import METHODS
from tests.methods import every_method

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize('name', every_method.NAMES)
def test_guarantees(name):
  environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '4', 'JAX_PLATFORMS': 'cpu'}
  process = subprocess.run(
    [sys.executable, '-m', 'tests.methods.every_method', name], cwd=ROOT, env=environment,
    capture_output=True, text=True, timeout=300, check=False)
  assert process.returncode == 0, process.stderr[-2000:]
  found = [json.loads(line) for line in process.stdout.splitlines()]
  assert [proof['proof'] for proof in found] == list(every_method.PROOFS)
  errors = [f'{proof["proof"]}: {proof["error"]}' for proof in found if proof['error']]
  assert not errors, '\n'.join(errors)


def test_every_kind_is_among_them():
  kinds = {named.kind for named in METHODS.values()}
  assert {METHODS[name].kind for name in every_method.NAMES} == kinds
