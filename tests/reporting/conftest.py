"""Runs that were never trained: their files are written directly."""

import json

import numpy as np
import pytest

from gta_jax.data import shapes
from gta_jax.evaluation.layers import make_layers
from gta_jax.evaluation.windows import Prediction
from gta_jax.training import datasets, setup
from gta_jax.training.logs import MetricWriter
from tests.reporting.pages import NETWORKS, tiny_config


def write_run(workdir, method, seed, miou, dataset):
  """All that training leaves but checkpoints and pictures."""
  workdir.mkdir()
  (workdir / 'config.json').write_text(setup.to_json(tiny_config(method, seed)))
  described = {'name': 'shapes', 'classes': list(shapes.CLASSES),
               'palette': shapes.PALETTE.tolist()}
  (workdir / 'dataset.json').write_text(json.dumps(described))
  networks = NETWORKS[: 2 if method == 'sup_only' else 3]
  by_class = {name: i / 10 for i, name in enumerate(shapes.CLASSES)}
  scores = {name: {'miou': miou, 'pixel_accuracy': 0.9, 'iou': by_class} for name in networks}
  (workdir / 'results.json').write_text(json.dumps(
    {'validation_sha256': 'abc', 'last': {'step': 4, **scores}}))
  (workdir / 'starts.json').write_text(json.dumps(
    {'starts': [{'step': step, 'gta_jax': f'0.{step}'} for step in (1, 2)]}))
  with MetricWriter(workdir, tensorboard=False) as writer:
    for step in (2, 4):
      writer.write(step, {'train/student_labelled_loss': 1 / step, 'train/student_rate': 0.1,
                          'train/kept_share': 0.8, 'train/kept_share_by_class/disc': 0.2})
      writer.write(step, {f'val/{name}_miou': miou * step / 4 for name in networks})
    writer.write(4, {'train/student_labelled_loss': float('nan')})
    writer.note(0, 'read <b>this</b> & that')
    writer.note(4, 'a class vanishes')
  labels = np.zeros((40, 40), np.uint8)
  found = Prediction(labels, np.full((40, 40), 0.5, np.float32))
  shown = [{'id': id, 'miou': dict.fromkeys(networks, i / 10), 'layers': make_layers(
    dataset.reader, id, dict.fromkeys(networks, found), dataset.palette,
    confidence_of=networks[0], threshold=0.6)} for i, id in enumerate(dataset.validation)]
  confusion = np.eye(len(shapes.CLASSES), dtype=int) * 3
  (workdir / 'report.json').write_text(json.dumps({
    'step': 4, 'steps': 4, 'command': "gta-jax --config 'shapes:4'", 'device': '1 cpu',
    'networks': networks, 'parameters': 1200, 'learning': 1000,
    'stages': [{'name': 'warmup', 'steps': 2}, {'name': 'main', 'steps': 2}],
    'images': {'labelled': 4, 'unlabelled': 8, 'validation': 3, 'test': 0},
    'timing': {'seconds': 60.0, 'step_seconds': {'main': 0.25}, 'evaluation_seconds': 1.5,
               'peak_bytes': {'host': 2**30}},
    'scores': scores, 'confusion': dict.fromkeys(networks, confusion.tolist()),
    'drop_share': 0.2, 'threshold': 0.6, 'shown': shown}))
  return workdir


@pytest.fixture(scope='module')
def dataset():
  return datasets.make_dataset(tiny_config('gta', 0))


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory, dataset):
  folder = tmp_path_factory.mktemp('runs')
  return {name: write_run(folder / name, name[:-1], int(name[-1]), miou, dataset)
          for name, miou in (('sup_only0', 0.3), ('mean_teacher0', 0.35), ('gta1', 0.42),
                             ('gta0', 0.4))}
