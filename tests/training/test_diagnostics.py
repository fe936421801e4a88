"""Distances between student and assistant, and the warning of a collapse."""

import jax
import numpy as np
import pytest

from gta_jax.methods.registry import make_method
from gta_jax.training.diagnostics import CollapseWatch, distances
from tests import tiny


def make_state(name):
  method = make_method(name)
  return method, tiny.first_state(method, tiny.make_tools(tiny.linear_network()))


def test_distance_by_hand():
  method, state = make_state('gta')
  assistant = state.networks['assistant']
  params = dict(assistant['params'])
  params['classifier'] = jax.tree.map(lambda x: 3 * x, params['classifier'])
  found = distances(
    state.with_networks(assistant={**assistant, 'params': params}), method.compared)
  assert float(found['distance_classifier']) == pytest.approx(2, rel=1e-5)
  assert float(found['distance_backbone']) == 0
  method, state = make_state('sup_only')
  assert distances(state, method.compared) == {}


def test_a_vanishing_class_is_named_once():
  watch = CollapseWatch(('road', 'pole'), memory=5)
  warnings = [watch.observe(np.array([0.9, 0.1])) for _ in range(10)]
  warnings += [watch.observe(np.array([0.96, 0.0])) for _ in range(60)]
  found = [w for ws in warnings for w in ws]
  assert len(found) == 1 and 'class pole vanishes' in found[0]


def test_one_class_for_all_is_named_once():
  watch = CollapseWatch(('road', 'pole'), memory=5)
  found = [w for _ in range(30) for w in watch.observe(np.array([1.0, 0.0]))]
  assert len(found) == 1 and '100.0 % of the kept pseudo-labels are road' in found[0]


def test_rare_classes_and_noise_give_no_warning():
  rng = np.random.default_rng(0)
  watch = CollapseWatch(('road', 'pole', 'never'))
  for _ in range(300):
    pole = rng.uniform(0, 0.01) * rng.integers(0, 2)
    assert watch.observe(np.array([0.9, pole, 0.0])) == []


def test_classes_of_the_masks_that_no_pseudo_label_has_are_named_together_and_once():
  watch = CollapseWatch(('road', 'pole', 'sign', 'never'), [0.85, 0.1, 0.05, 0.0], memory=5)
  found = [w for _ in range(30) for w in watch.observe(np.array([0.949, 0.0, 0.001, 0.05]))]
  assert len(found) == 1
  assert "any pole (0.0 % of their pixels, 10.0 % of the masks'), sign (0.1 %" in found[0]


def test_that_nothing_is_kept_is_said_once_and_not_of_each_class():
  watch = CollapseWatch(('road', 'pole'), [0.5, 0.5], memory=5)
  found = [w for _ in range(60) for w in watch.observe(np.zeros(2))]
  assert len(found) == 1 and 'hardly any step keeps a pixel of its pseudo-labels' in found[0]
