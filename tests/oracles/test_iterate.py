"""Every oracle over three steps: pure, finite, each network that should learn does."""

import copy

import numpy as np
import pytest

from tests.oracles import (
  cct,
  cps,
  cps_cutmix,
  cutmix_consistency,
  dmt,
  gct,
  mean_teacher_consistency,
  self_training,
  u2pl,
)
from tests.oracles import linear_model as lm

RNG = np.random.default_rng(0)
INSIDE = lm.box_mask(np.array([[[0, 0, 2, 3]], [[1, 1, 4, 4]]]), (4, 5))
EMA = {'ema_decay': lambda k: 0.9, 'consistency_weight': lambda k: 10.0}
U2PL = {
  'inside': INSIDE, 'draw_anchors': u2pl.from_uniforms(RNG.random((3, 3))),
  'draw_keys': u2pl.from_uniforms(RNG.random((3, 3, 4)))}
# Step, networks, those with momentum, draws, hyper-parameters.
METHODS = {
  'cps': (cps.step, cps.OTHER, cps.OTHER, {}, {'cross_weight': 1.5}),
  'cps_cutmix': (cps_cutmix.step, cps.OTHER, cps.OTHER, {'inside': INSIDE}, {'cross_weight': 1.0}),
  'mean_teacher': (
    mean_teacher_consistency.step, ('student', 'teacher'), ('student',), {}, EMA),
  'cutmix': (cutmix_consistency.step, ('student', 'teacher'), ('student',), {'inside': INSIDE},
             {**EMA, 'threshold': 0.5}),
  'u2pl': (u2pl.step, ('student', 'teacher'), ('student',), U2PL, {
    **EMA, 'alpha': 20, 'confidence': 0.3, 'low_rank': 1, 'high_rank': 3, 'temperature': 0.5,
    'queue_sizes': [9, 8, 8], 'contrast_weight': 0.1, 'progress': lambda k: k / 10}),
  'cct': (cct.step, ('student',), ('student',), {'perturbations': {'a': ('feature_drop', 0.8)}},
          {'consistency_weight': 30.0, 'ramp_steps': 2, 'bootstrap_steps': 5}),
  'gct': (gct.step, gct.NAMES, gct.NAMES, {}, {
    'flaw_weight': 1.0, 'consistency_weight': 10.0, 'ramp': lambda k: k / 3,
    'detector_rate': lambda k: 0.01}),
  'self_training': (self_training.step, ('student',), ('student',), {}, {}),
  'dmt': (dmt.step, ('student',), ('student',), {}, {'gamma1': 5, 'gamma2': 5}),
}


@pytest.mark.parametrize('method', METHODS)
def test_three_steps(method):
  step, names, learners, draws, options = METHODS[method]
  networks, labelled, unlabelled = lm.make_problem(1, names=names)
  rng, memory = np.random.default_rng(2), {}
  if method == 'u2pl':
    memory['queues'] = [np.zeros((0, 6))] * 3
    for params in networks.values():
      params['representation'] = lm.random_layer(rng, 5, 6)
  elif method == 'cct':
    networks['student']['auxiliary_decoders'] = {'a': lm.random_layer(rng, 4, 3)}
  elif method == 'gct':
    networks['detector'] = {'flaw': lm.random_layer(rng, 6, 1)}
    memory['adam'] = gct.adam_state(networks['detector'])
  elif method in {'dmt', 'self_training'}:
    for batch in unlabelled:
      label = rng.integers(0, 3, batch['valid'].shape)
      batch['label'] = np.where(batch['valid'], label, 255)
      batch['confidence'] = rng.random(label.shape)
  state = lm.initial_state(networks, learners, **memory)
  given = (state, labelled, unlabelled)
  before = copy.deepcopy(given)
  results = [lm.iterate(step, *given, draws=lambda k: draws, hyper=lm.tiny_hyper(**options))
             for _ in range(2)]
  lm.assert_trees_close(given[0]['networks'], before[0]['networks'], 0)
  lm.assert_trees_close(given[0]['momentum'], before[0]['momentum'], 0)
  lm.assert_trees_close(results[0][-1][0]['networks'], results[1][-1][0]['networks'], 0)
  last = results[0][-1][0]
  assert last['step'] == 3

  def moved(old, new):
    assert np.isfinite(new).all() and not np.array_equal(old, new)

  lm.tree_map(moved, networks, last['networks'])
