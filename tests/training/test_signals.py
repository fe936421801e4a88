"""What SIGTERM and SIGINT do, once and twice."""

import os
import signal
import subprocess
import sys

import pytest

from gta_jax.training.signals import Interrupted, Signals
from tests.test_launch import ROOT


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_deferred_or_raised_and_handlers_are_put_back(number):
  before = signal.getsignal(number)
  with Signals() as signals:
    with signals.deferred():
      assert not signals.agreed()
      os.kill(os.getpid(), number)
      assert signals.agreed()
    with pytest.raises(Interrupted, match=number.name):
      signals.raise_if_agreed()
  with Signals() as signals, pytest.raises(Interrupted, match=number.name):
    os.kill(os.getpid(), number)
  assert signal.getsignal(number) is before


def test_a_second_signal_leaves_at_once():
  script = '''
import os, signal
from gta_jax.training.signals import Signals
with Signals() as signals, signals.deferred():
  os.kill(os.getpid(), signal.SIGTERM)
  print('still here', flush=True)
  os.kill(os.getpid(), signal.SIGTERM)
  print('not here')
'''
  done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True,
                        check=False)
  assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, 'still here\n')
