"""The step against Algorithm 1 in NumPy, which was written from the paper alone."""

import jax
import numpy as np
import pytest

from gta_jax.methods.registry import make_method
from gta_jax.ops.mixing import box_masks
from gta_jax.ops.optim import poly_schedule
from tests import tiny
from tests.oracles import gta as oracle

STEPS, WARMUP, RATE, DECAY = 6, 2, 0.05, 1e-3


def boxes_of_step(key, step, batch, size):
  """The boxes that the step draws, as (top, left, bottom, right) for the oracle."""
  key = jax.random.split(jax.random.fold_in(key, step), 3)[0]
  key_mix = jax.random.split(key, 3)[0]
  key_mask = jax.random.split(key_mix)[0]
  boxes = []
  for mask in np.asarray(box_masks(key_mask, batch, size)):
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    boxes.append((rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
  return boxes


@pytest.mark.parametrize('mixing', ['none', 'cutmix'])
def test_step_agrees_with_the_paper_in_numpy(mixing):
  params, labelled, unlabelled = oracle.make_problem(3, steps=STEPS)
  batch, *size = labelled[0]['label'].shape
  method = make_method(mixing=mixing, mixing_probability=1.0)
  tools = tiny.make_tools(tiny.linear_network(), rate=RATE, total_steps=STEPS, weight_decay=DECAY,
                          epoch_steps=WARMUP, batch=batch)
  variables = {'params': jax.tree.map(lambda x: x.astype(np.float32), params),
               'batch_stats': {key: {} for key in params}}
  state = tiny.first_state(method, tools, jax.tree.map(jax.numpy.asarray, variables), seed=5)
  steps = tiny.make_steps(method, tools)
  expected = oracle.run(
    params, labelled, unlabelled, lr_schedule=poly_schedule(RATE, total_steps=STEPS),
    weight_decay=DECAY, ema_decay=0.99, warmup_steps=WARMUP,
    mixing=None if mixing == 'none' else
    lambda step: boxes_of_step(state.key, step, batch, tuple(size)))
  for step in range(STEPS):
    stage = steps['warmup' if step < WARMUP else 'main']
    state, metrics = stage(state, labelled[step], unlabelled[step])
    for name, variables in state.networks.items():
      jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6),
        variables['params'], expected[step][name])
    np.testing.assert_allclose(
      metrics['student_labelled_loss'], expected[step]['losses']['labelled'], rtol=1e-5)
    if step >= WARMUP:
      np.testing.assert_allclose(
        metrics['assistant_pseudo_loss'], expected[step]['losses']['unlabelled'], rtol=1e-5)
