"""One of several processes of a small GTA run: python -m tests.processes ADDRESS COUNT INDEX DIR

Trains three steps in DIR/stopped, copies what then lies there to DIR/resumed, goes on in
DIR/stopped, from a signal that one process gets, and refuses a seed that only one has.
"""

import dataclasses
import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental import multihost_utils

from configs import shapes as shapes_config
from gta_jax.devices import runtime
from gta_jax.training import loop, setup
from gta_jax.training.signals import Interrupted
from tests import tiny

STOP, STEPS = 3, 5
_NETWORK = tiny.conv_network(classes=7)  # one object, so that evaluation compiles once


def make_run(seed: int = 0) -> setup.Run:
  """Five steps of GTA with a network of two layers; one step of warm-up, scores after 3 and 5."""
  config = shapes_config.get_config('4')
  config.update_from_flattened_dict({
    'seed': seed, 'data.unlabelled': 4, 'data.validation': 3, 'data.size': 40, 'data.crop': 16,
    'data.cache': 0.0, 'train.labelled_batch': 4, 'train.unlabelled_batch': 4,
    'train.epochs': STEPS, 'train.evaluate_epochs': STOP, 'train.log_steps': 1,
    'method.warmup_epochs': 1.0, 'evaluate.batch': 1, 'evaluate.pictures': 1})
  made = setup.make_run(config)
  tools = made.tools._replace(network=_NETWORK)
  return dataclasses.replace(made, tools=tools, stages=made.method.stages(tools))


class Stopped(Exception):
  """Training has been stopped on purpose."""


def train_until_stop(workdir: Path) -> None:
  """Leaves the run after its first evaluation."""
  add_scores = loop.Checkpoints.add_scores

  def add_scores_and_stop(self, *args):
    add_scores(self, *args)
    raise Stopped

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
    patch.setattr(loop.Checkpoints, 'add_scores', add_scores_and_stop)
    loop.train(make_run(), workdir)


def train_until_signal(workdir: Path, index: int) -> None:
  """Process 0 alone gets SIGTERM, after scoring, while the others may wait for it: all leave."""
  show = loop.Telling.show

  def show_and_signal(self, *args):
    show(self, *args)
    if index == 0:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
    patch.setattr(loop.Telling, 'show', show_and_signal)
    loop.train(make_run(), workdir)


def main() -> None:
  address, count, index, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
  runtime.join_processes(address, count, index, seconds=60)
  stopped, resumed = Path(folder) / 'stopped', Path(folder) / 'resumed'
  train_until_stop(stopped)
  multihost_utils.sync_global_devices('stopped')
  if index == 0:
    shutil.copytree(stopped, resumed)
  multihost_utils.sync_global_devices('copied')
  train_until_signal(stopped, index)
  loop.train(make_run(), stopped)
  with pytest.raises(ValueError, match='process 1 differs from process 0 in: config. Start all'):
    loop.train(make_run(seed=index), Path(folder) / 'other')
  assert not (Path(folder) / 'other').exists()
  assert len(jax.devices()) == 2 * len(jax.local_devices()) == 2 * count


if __name__ == '__main__':
  main()
