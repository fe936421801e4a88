"""The FixMatch oracle on its own."""

import numpy as np
import pytest

from tests.oracles import checks_b, fixmatch
from tests.oracles import linear_model_b as lm
from tests.oracles.tape_b import Node, worst_gradient_error

HYPER = {'threshold': 0.6, 'rate': 0.1}


def test_gradient_agrees_with_finite_differences():
  state, labelled, unlabelled, randomness = fixmatch.make_problem(0, size=(2, 3))
  options, params = lm.settings(fixmatch.PAPER, HYPER), state['networks']['model']
  target = fixmatch.targets(params, unlabelled[0], randomness[0]['strong'][None],
                            randomness[0]['boxes'][None], None, options)
  assert target['views'][0][2].any()
  assert worst_gradient_error(
    lambda nodes: fixmatch.objective(nodes, labelled[0], target, options), params) < 1e-7


def test_steps():
  checks_b.padding_has_no_influence(fixmatch, HYPER)
  checks_b.every_step_moves(fixmatch, HYPER)


def test_strong_loss_by_hand_divides_by_all_valid_pixels():
  labels = {'label': np.array([[[0, 1, 0]]]), 'confidence': np.array([[[0.95, 0.5, 0.99]]]),
            'valid': np.array([[[True, True, False]]])}
  label, weight = fixmatch.confident(labels, 0.95)
  assert weight.tolist() == [[0.5, 0, 0]]
  logits = Node(np.log([[[0.2, 0.8], [0.5, 0.5], [0.5, 0.5]]]))
  assert lm.cross_entropy(logits, label, weight).value == pytest.approx(-np.log(0.2) / 2)


def test_without_confident_pixels_half_the_labelled_loss_is_left():
  _, losses = checks_b.run(fixmatch, fixmatch.make_problem(0), {'threshold': 1.1})
  assert all(found['total'] == pytest.approx(found['labelled'] / 2) for found in losses)


def test_the_next_image_may_be_given_as_the_partner():
  state, labelled, unlabelled, randomness = checks_b.first(fixmatch.make_problem(0, batch=3))
  partner = {'image': np.roll(unlabelled['image'], -1, 0),
             'valid': np.roll(unlabelled['valid'], -1, 0),
             'strong': np.roll(randomness['strong'], -1, 0)}
  outcomes = [fixmatch.step(state, labelled, unlabelled, **randomness, partner=given, hyper=HYPER)
              for given in (None, partner)]
  np.testing.assert_allclose(*(losses['total'] for _, losses in outcomes), rtol=1e-12)
