"""Two runs never work in one folder."""

import subprocess
import sys

import pytest

from gta_jax.training.workdir_lock import locked
from tests.test_launch import ROOT

HOLD = """
import pathlib, sys
from gta_jax.training.workdir_lock import locked
with locked(pathlib.Path(sys.argv[1])):
  print('held', flush=True)
  sys.stdin.read()
"""


def test_the_second_run_is_refused_with_the_first_ones_process_id(tmp_path):
  other = subprocess.Popen([sys.executable, '-c', HOLD, tmp_path / 'run'], cwd=ROOT, text=True,
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  assert other.stdout.readline() == 'held\n'
  message = f'in use by another run .process {other.pid} on .*--workdir'
  with pytest.raises(ValueError, match=message), locked(tmp_path / 'run'):
    pass
  other.kill()  # However the first one ends, the folder is free.
  other.wait()
  with locked(tmp_path / 'run'):
    pass
