"""Several devices give what one device gives; run in a process with four forced CPU devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gta_jax import sharding
from gta_jax.methods import make_method
from gta_jax.microbatches import WHOLE, MicroBatches, over_micro_batches
from gta_jax.pseudo_labels import confidence_threshold
from gta_jax.state import init_state, make_optimizers
from gta_jax.step import make_train_step
from tests import tiny

DEVICES = 4
ONE = MicroBatches(per_device=1, devices=DEVICES)
METHODS = [('gta', 'paper', WHOLE), ('gta', 'released', WHOLE), ('cutmix', 'paper', WHOLE),
           ('gta', 'released', ONE)]


def run_steps(name: str, recipe: str, mesh, micro=WHOLE) -> list[np.ndarray]:
  """All leaves of the state after three steps; `mesh` None runs on one device."""
  method = make_method(name, recipe=recipe, threshold_images=0)
  network = tiny.conv_network()
  optimizers = make_optimizers(method, rate=0.05, total_steps=10)
  key = jax.random.key(3)
  state = init_state(key, network.init(key, tiny.SIZE), method, optimizers)
  step = make_train_step(network, method, optimizers, micro=micro)
  compiled = jax.jit(step) if mesh is None else sharding.compile_step(step, mesh)
  if mesh is not None:
    state = sharding.replicate(state, mesh)
  for seed in range(3):
    batches = tiny.make_batches(seed, batch=8)
    if mesh is not None:
      batches = [sharding.global_batch(batch, mesh) for batch in batches]
    state, _ = compiled(state, *batches)
    if mesh is not None:
      assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state.replace(key=None))]


def compare() -> None:
  """What the process with four devices runs."""
  assert jax.device_count() == DEVICES
  mesh = sharding.make_mesh()
  for name, recipe, micro in METHODS:
    runs = (run_steps(name, recipe, where, micro) for where in (None, mesh))
    for one, many in zip(*runs, strict=True):
      np.testing.assert_allclose(one, many, rtol=2e-4, atol=2e-5)
  rows = sharding.split(mesh)
  images = np.zeros((8, 16, 16, 3), np.float32)
  key = jax.random.key(0)
  passes = jax.jit(
    lambda x: over_micro_batches(lambda x, key: (x[..., 0], x.sum()), x, ONE, key=key),
    in_shardings=rows)
  text = passes.lower(images).compile().as_text()
  assert not [name for name in ('all-gather', 'all-to-all', 'permute') if name in text], text
  threshold = jax.jit(
    lambda c, v: confidence_threshold(c, v, drop_fraction=0.2), in_shardings=(rows, rows))
  confidence = np.random.default_rng(0).uniform(0.2, 1, (8, 16, 16)).astype(np.float32)
  valid = np.ones(confidence.shape, bool)
  dropped = (confidence <= threshold(confidence, valid)).sum()
  assert dropped == int(0.2 * confidence.size), dropped
  text = threshold.lower(confidence, valid).compile().as_text()
  assert 'all-reduce' in text and 'all-gather' not in text


def test_four_devices_agree_with_one():
  environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': str(DEVICES), 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', 'from tests.test_sharding import compare; compare()'],
    cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]


def test_a_batch_that_does_not_split_is_refused():
  sharding.check_batch('train.labelled_batch', jax.device_count())
  with pytest.raises(ValueError, match='train.labelled_batch=0 does not split over'):
    sharding.check_batch('train.labelled_batch', 0)
