"""The PC2Seg oracle on its own."""

import numpy as np
import pytest

from tests.oracles import checks_b, pc2seg
from tests.oracles import linear_model_b as lm
from tests.oracles.tape_b import Node, worst_gradient_error

OPTIONS = [{}, {'normalised': True, 'key_gradient': False}]


@pytest.mark.parametrize('hyper', OPTIONS)
def test_gradient_agrees_with_finite_differences(hyper):
  state, labelled, unlabelled, randomness = checks_b.first(pc2seg.make_problem(0, size=(2, 3)))
  options, params = lm.settings(pc2seg.PAPER, hyper), state['networks']['model']
  target = pc2seg.targets(params, labelled, unlabelled, randomness['strong'])
  assert worst_gradient_error(lambda nodes: pc2seg.objective(
    nodes, target, randomness['anchors'], randomness['negatives'], options), params) < 1e-6


@pytest.mark.parametrize('hyper', OPTIONS)
def test_steps(hyper):
  checks_b.padding_has_no_influence(pc2seg, hyper)
  checks_b.every_step_moves(pc2seg, hyper)


def test_contrast_by_hand():
  anchors, negatives = np.array([0, 1]), np.array([[2, 3], [3, 3]])
  valid = np.array([True, False, True, True])
  ones = Node(np.ones((4, 2)))
  loss = pc2seg.contrast(ones, 5 * ones, anchors, negatives, valid, 0.5)
  assert loss.value == pytest.approx(np.log(3))  # invariants (a) and (b)
  keys = Node(np.array([[1.0, 1], [1, 1], [-1, -1], [-1, -1]]))
  loss = pc2seg.contrast(ones, keys, anchors, negatives, valid, 0.5)
  assert loss.value == pytest.approx(np.log(1 + 2 * np.exp(-4)))  # invariant (d)
  valid[3] = False
  loss = pc2seg.contrast(ones, keys, anchors, negatives, valid, 0.5)
  assert loss.value == pytest.approx(np.log(1 + np.exp(-4)))


def test_consistency_by_hand():
  strong, weak = Node(np.array([[[1.0, 0.0], [0.5, 0.5]]])), np.array([[[0.6, 0.4], [0.5, 0.5]]])
  valid, options = np.array([[True, True]]), lm.settings(pc2seg.PAPER, {})
  assert pc2seg.consistency(strong, weak, valid, options).value == pytest.approx(0.32 / 2)
  options['normalised'] = True
  cosine = 0.6 / np.sqrt(0.52)
  found = pc2seg.consistency(strong, Node(weak), np.array([[True, False]]), options).value
  assert found == pytest.approx(2 - 2 * cosine, abs=1e-6)


def test_rules_of_negatives_by_hand():
  p = np.array([[1.0, 0.0], [1.0, 0.0], [0.25, 0.75], [0.5, 0.5]])
  images, valid = np.array([0, 0, 1, 1]), np.array([True, True, True, False])
  anchors = np.array([0])
  found = np.exp(pc2seg.log_weights(p, anchors, images, valid, 'other_classes'))
  np.testing.assert_allclose(found, [[0, 0, 0.75, 0]])  # invariant (c)
  found = np.exp(pc2seg.log_weights(p, np.array([2]), images, valid, 'other_classes+other_images'))
  np.testing.assert_allclose(found, [[0.75, 0.75, 0, 0]])
  assert np.exp(pc2seg.log_weights(p, anchors, images, valid, 'uniform')).tolist() == [[1, 1, 1, 0]]


def test_total_by_hand():
  """L = L_x + a L_y + b L_c."""
  hyper = {'consistency_weight': 0.5, 'contrast_weight': 0.25}
  for found in checks_b.run(pc2seg, pc2seg.make_problem(0), hyper)[1]:
    assert found['total'] == pytest.approx(
      found['labelled'] + 0.5 * found['consistency'] + 0.25 * found['contrast'])
