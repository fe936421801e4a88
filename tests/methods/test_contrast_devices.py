"""U2PL and PC2Seg on 1, 2 and 4 devices, in a process that has four."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gta_jax.devices import sharding
from gta_jax.methods.registry import make_method
from tests import tiny
from tests.methods.embedding_network import conv_network

ROOT = Path(__file__).parents[2]
METHODS = {
  'u2pl': {'channels': 3, 'anchors': 5, 'negatives': 7, 'low_rank': 1, 'high_rank': 3,
           'queue_size': 40, 'first_queue_size': 50, 'keys_per_step': 6, 'warmup_epochs': 0.0,
           'handover_epochs': 0.0, 'warmup': 'all', 'contrast_weight': 1.0},
  'pc2seg': {'channels': 3, 'anchors': 9, 'candidates': 32, 'negatives': 5},
}


def leaves_after_three_steps(name: str, devices: int) -> list[np.ndarray]:
  method, tools = make_method(name, **METHODS[name]), tiny.make_tools(conv_network(3))
  mesh = sharding.make_mesh(jax.devices()[:devices])
  state = sharding.replicate(tiny.first_state(method, tools), mesh)
  stage = method.stages(tools)[-1]
  step = sharding.compile_step(stage.step, mesh)
  for seed in range(3):
    batches = dict(zip(('labelled', 'unlabelled'), tiny.make_batches(seed), strict=True))
    state, _ = step(state, {k: sharding.global_batch(v, mesh) for k, v in batches.items()})
  leaves = jax.tree.leaves(state.replace(key=None))
  assert all(leaf.sharding.is_fully_replicated for leaf in leaves)
  return [np.asarray(leaf) for leaf in leaves]


def compare() -> None:
  """What the process with four devices runs."""
  assert jax.device_count() == 4
  for name in METHODS:
    one = leaves_after_three_steps(name, 1)
    for devices in (2, 4):
      for a, b in zip(one, leaves_after_three_steps(name, devices), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5, err_msg=f'{name}, {devices}')


@pytest.mark.slow
def test_any_number_of_devices_gives_the_result_of_one():
  environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '4', 'JAX_PLATFORMS': 'cpu',
                 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  subprocess.run([sys.executable, '-m', 'tests.methods.test_contrast_devices'], cwd=ROOT,
                 env=environment, check=True, timeout=600)


if __name__ == '__main__':
  compare()
