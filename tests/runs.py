"""A tiny run on drawn shapes, and what it leaves."""

import json
from pathlib import Path
from typing import Any

import ml_collections

from configs import shapes
from gta_jax.methods.contract import TrainState
from gta_jax.training import loop, setup


def tiny_config(arg: str = '4', **overrides: Any) -> ml_collections.ConfigDict:
  """Three epochs of four steps; the first one is the warm-up."""
  config = shapes.get_config(arg)
  config.update_from_flattened_dict({
    'data.unlabelled': 8, 'data.validation': 3, 'data.size': 40, 'data.crop': 32,
    'model.width': 0.125, 'train.labelled_batch': 2, 'train.unlabelled_batch': 2,
    'train.epochs': 3, 'train.evaluate_epochs': 1, 'train.log_steps': 2,
    'evaluate.batch': 2, 'evaluate.pictures': 2})
  if 'warmup_epochs' in config.method:
    config.method.warmup_epochs = 1.0
  config.update_from_flattened_dict(overrides)
  return config


def final_state(workdir: Path, config: ml_collections.ConfigDict) -> TrainState:
  """The state of the newest checkpoint."""
  made = setup.make_run(config)
  with loop.Checkpoints(workdir / 'checkpoints') as checkpoints:
    return checkpoints.restore(checkpoints.last_step, made.abstract_state())


def lines(workdir: Path) -> list[dict[str, float]]:
  """Those of the log."""
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
