"""The UniMatch oracle on its own."""

import numpy as np
import pytest

from tests.oracles import checks_b, unimatch
from tests.oracles import linear_model_b as lm
from tests.oracles.tape_b import Node, map_tree, worst_gradient_error

HYPER = {'threshold': 0.6, 'rate': 0.1}


def test_gradient_agrees_with_finite_differences():
  state, labelled, unlabelled, randomness = checks_b.first(unimatch.make_problem(0, size=(2, 3)))
  options, params = lm.settings(unimatch.PAPER, HYPER), state['networks']['model']
  target = unimatch.targets(params, unlabelled, randomness['strong'], randomness['boxes'], None,
                            options)
  assert worst_gradient_error(lambda nodes: unimatch.objective(
    nodes, labelled, target, randomness['feature_masks'], options), params) < 1e-7


def test_steps():
  checks_b.padding_has_no_influence(unimatch, HYPER)
  checks_b.every_step_moves(unimatch, HYPER)


def test_weights_of_the_losses_by_hand():
  """L = (L_x + L_1 / 4 + L_2 / 4 + L_fp / 2) / 2."""
  _, losses = checks_b.run(unimatch, unimatch.make_problem(0), HYPER)
  for found in losses:
    strong = found['strong_1'] + found['strong_2']
    assert found['total'] == pytest.approx(
      0.5 * found['labelled'] + 0.125 * strong + 0.25 * found['features'])


def test_without_perturbation_all_unlabelled_losses_are_one():
  """Invariant (d): no strong view, empty boxes, no dropout."""
  state, labelled, unlabelled, randomness = checks_b.first(unimatch.make_problem(0))
  plain = {'strong': np.stack([unlabelled['image'] / 255.0] * 2),
           'boxes': 0 * randomness['boxes'],
           'feature_masks': np.ones_like(randomness['feature_masks'])}
  _, losses = unimatch.step(state, labelled, unlabelled, **plain, hyper=HYPER)
  assert losses['strong_1'] > 0
  np.testing.assert_allclose([losses['strong_2'], losses['features']], losses['strong_1'])


def test_dropped_features_by_hand():
  """One pixel, p_w = (0.8, 0.2); features 1 doubled and 2 dropped give logits 2 log 0.8 and 0."""
  eye = {'kernel': np.eye(2), 'bias': np.zeros(2)}
  params = {'backbone': {'kernel': np.zeros((3, 2)), 'bias': np.log([0.8, 0.2])},
            'decoder': eye, 'classifier': eye}
  image = np.zeros((1, 1, 1, 3), np.uint8)
  unlabelled = {'image': image, 'valid': np.ones((1, 1, 1), bool)}
  labelled = {'image': image, 'label': np.ones((1, 1, 1), np.uint8)}
  options = lm.settings(unimatch.PAPER, {'threshold': 0.8 - 1e-9})
  target = unimatch.targets(params, unlabelled, np.zeros((2, 1, 1, 1, 3)), np.zeros((2, 1, 4), int),
                            None, options)
  _, parts = unimatch.objective(
    map_tree(Node, params), labelled, target, np.array([[2.0, 0.0]]), options)
  assert parts['features'].value == pytest.approx(-np.log(0.64 / 1.64))
  assert parts['strong_1'].value == pytest.approx(-np.log(0.8))
