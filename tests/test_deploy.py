"""The SLURM script with a srun and a scontrol that note what they are asked for."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = ['--config', 'configs/voc.py:183', '--workdir', 'a folder']


def submit(folder: Path, status: int, flags: list[str]) -> tuple[int, str]:
  """Exit status of the job whose processes end with `status`, and its calls."""
  for name, code in (('srun', status), ('scontrol', 0)):
    command = folder / name
    command.write_text(
      f'#!/bin/sh\nfor a in {name} "$@"; do echo "$a"; done >> calls\n'
      f'echo "$SRUN_CPUS_PER_TASK" > cores\nexit {code}\n')
    command.chmod(0o755)
  environment = {**os.environ, 'PATH': f'{folder}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7',
                 'SLURM_CPUS_PER_TASK': '6', 'SLURM_SUBMIT_DIR': str(folder)}
  done = subprocess.run(
    [ROOT / 'deploy' / 'slurm.sh', *flags], env=environment, check=False, capture_output=True)
  calls = folder / 'calls'
  return done.returncode, calls.read_text() if calls.exists() else done.stderr.decode()


@pytest.mark.parametrize('status, exit_status', [(0, 0), (75, 0), (2, 2)])
def test_a_stopped_run_goes_on(tmp_path, status, exit_status):
  code, calls = submit(tmp_path, status, FLAGS)
  assert code == exit_status
  assert calls.split('scontrol')[0].splitlines()[-6:] == ['--distributed', 'auto', *FLAGS]
  assert ('scontrol\nrequeue\n7\n' in calls) == (status == 75)
  assert (tmp_path / 'cores').read_text() == '6\n'  # srun asks for one a task by itself


def test_a_job_without_a_config_is_refused(tmp_path):
  code, said = submit(tmp_path, 0, [])
  assert code == 2 and 'no config' in said
