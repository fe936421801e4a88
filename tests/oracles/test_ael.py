"""The AEL oracle on its own."""

import numpy as np
import pytest

from tests.oracles import ael, ael_draws, checks_b
from tests.oracles import linear_model_b as lm
from tests.oracles.tape_b import worst_gradient_error

HYPER = {'rate': 0.05}
CODE = {**HYPER, **ael.RELEASED, 'threshold': 0.5, 'ohem': (0.3, 5)}


@pytest.mark.parametrize('hyper', [HYPER, CODE])
def test_gradient_agrees_with_finite_differences(hyper):
  state, labelled, unlabelled, r = checks_b.first(ael.make_problem(0, size=(2, 3)))
  options = lm.settings(ael.PAPER, hyper)
  found, _ = ael.targets(state, labelled, unlabelled, r['donor'], r['boxes'], r['uniform'],
                         r['uniform_labelled'], options)
  assert all(weight.any() for _, _, weight in found.values())
  assert worst_gradient_error(lambda nodes: ael.objective(nodes, labelled, found, options),
                              state['networks']['student']) < 1e-7


@pytest.mark.parametrize('hyper', [HYPER, CODE])
def test_steps(hyper):
  checks_b.padding_has_no_influence(ael, hyper)
  checks_b.every_step_moves(ael, hyper)


def test_weights_by_hand():
  """Rates 1 and 1/2; the last pixel's draw is above its class's rate."""
  kappa = np.array([[0.6, 0.8, 0.9], [1.0, 0.5, 0.7]])
  student, valid = np.array([[0, 0, 1], [0, 1, 1]]), np.ones((2, 3), bool)
  uniform = np.broadcast_to(np.array([[0.9, 0.9, 0.9], [0.1, 0.1, 0.7]]), (2, 2, 3)).copy()
  uniform[0, 1] = 0.7
  confidence = np.array([0.2, 0.6])
  options = lm.settings(ael.PAPER, {'threshold': 0.55})
  found = ael.weights(confidence, kappa, student, uniform, valid, options)
  np.testing.assert_allclose(found, [[0.18, 0.32, 0], [0.4, 0, 0]])  # second: 1 and 0.25, halved
  options['pooled_loss'] = True
  found = ael.weights(confidence, kappa, student, uniform, valid, options)
  np.testing.assert_allclose(found * 2.25, [[0.36, 0.64, 0], [1, 0, 0]])
  found = ael.weights(confidence, kappa * 0.95, student, uniform, valid, options)
  np.testing.assert_allclose(found * 2.25, [[0.36, 0.64, 0], [1, 0, 0]])  # invariant (d)
  valid[0, 1] = False
  found = ael.weights(confidence, kappa, student, uniform, valid, options)
  np.testing.assert_allclose(found * 1.61, [[0.36, 0, 0], [1, 0, 0]])


def test_confidence_by_hand():
  p = np.array([[[0.5, 0.2, 0.3], [0.7, 0.2, 0.1]], [[0.0, 1.0, 0.0], [0.9, 0.1, 0.0]]])
  label = np.array([[0, 0], [lm.IGNORE, 0]])
  before = np.array([0.1, 0.2, 0.3])
  options = lm.settings(ael.PAPER, {'confidence_decay': 0.5})
  found = ael.update_confidence(before, p, label, options)
  np.testing.assert_allclose(found, [(0.1 + 0.75) / 2, 0.2, 0.3])  # (0.6 + 0.9) / 2
  options['pooled_confidence'] = True
  found = ael.update_confidence(before, p, label, options)
  np.testing.assert_allclose(found, [(0.1 + 0.7) / 2, 0.1, 0.15])  # 2.1 / 3


def test_a_full_box_gives_the_donor_and_its_labels():
  """Invariant (e)."""
  state, labelled, unlabelled, r = checks_b.first(ael.make_problem(0, size=(2, 3)))
  options = lm.settings(ael.PAPER, HYPER)
  swapped = {**r['donor'], 'index': unlabelled['index']}, {**unlabelled, 'index': [0, 1]}
  full = np.tile([0, 0, 2, 3], (2, 1))
  (a, _), (b, _) = (
    ael.targets(state, labelled, *pair, boxes, r['uniform'], None, options)
    for pair, boxes in (((unlabelled, r['donor']), full), (swapped, 0 * full)))
  np.testing.assert_equal(a, b)


def test_the_bank_marks_who_holds_a_class():
  state, labelled, unlabelled, r = checks_b.first(ael.make_problem(0))
  params = state['networks']['teacher']
  params['classifier'] = {'kernel': 0 * params['classifier']['kernel'],
                          'bias': np.array([0.0, 9.0, 0.0])}
  unlabelled['index'], r['donor']['index'] = np.array([4, 0]), np.array([1, 0])
  unlabelled['valid'][0] = False
  state, _ = ael.step(state, labelled, unlabelled, **r, hyper=HYPER)
  assert state['memory']['bank'].tolist() == [[0] * 5, [1, 1, 0, 0, 0], [0] * 5]


def test_copy_paste():
  labelled = {'image': np.zeros((2, 1, 2, 3), np.uint8), 'label': np.zeros((2, 1, 2), np.uint8)}
  source = {'image': labelled['image'] + 9, 'label': np.array([[[1, 2]], [[1, 1]]], np.uint8)}
  found = ael.copy_paste(labelled, source, np.array([True, False]), np.array([1]))
  assert found['label'].tolist() == [[[1, 0]], [[0, 0]]]
  assert found['image'][..., 0].tolist() == [[[9, 0]], [[0, 0]]]


def test_draws_by_hand():
  confidence = np.array([1.0, 0.0, 0.75])
  np.testing.assert_allclose(ael_draws.cut_probabilities(confidence),
                             np.array([1, np.e, np.exp(0.25)]) / (1 + np.e + np.exp(0.25)))
  found = ael_draws.paste_probabilities(confidence, np.array([True, False, True]), root=True)
  np.testing.assert_allclose(found, [1 / (1 + np.exp(0.5)), 0, 1 / (1 + np.exp(-0.5))])
  bank = np.array([[0, 1, 1], [0, 0, 0]])
  assert ael_draws.donor_probabilities(bank, 0).tolist() == [0, 0.5, 0.5]
  assert ael_draws.donor_probabilities(bank, 1).tolist() == [1 / 3] * 3


def test_a_region_is_the_box_of_a_component_with_corners():
  mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
  priority = np.zeros((4, 4))
  priority[3, 0] = 3  # one pixel only, too small
  priority[0, 3] = 1
  assert ael_draws.region(mask, priority, (0, 0, 1, 1), 0.1) == (0, 3, 2, 4)
  priority[0, 0] = 2
  assert ael_draws.region(mask, priority, (0, 0, 1, 1), 0.1) == (0, 0, 2, 2)
  assert ael_draws.region(mask, priority, (0, 0, 1, 1), 0.125) == (0, 0, 1, 1)


def test_total_and_averaging():
  """L = L_x + 0.4 L_aux + L_c; d = min(1 - 1/(k+1), 0.99): 0, then 1/2."""
  state, *batches = ael.make_problem(0)
  for k, (labelled, unlabelled, r) in enumerate(zip(*batches, strict=True)):
    before = state['networks']['teacher']
    state, found = ael.step(state, labelled, unlabelled, **r, hyper=CODE)
    assert found['total'] == pytest.approx(
      found['labelled'] + 0.4 * found['auxiliary'] + found['mixed'] + found['labelled_pseudo'])
    decay = k / (k + 1)
    after, student = (state['networks'][name] for name in ('teacher', 'student'))
    np.testing.assert_allclose(
      after['decoder']['kernel'],
      decay * before['decoder']['kernel'] + (1 - decay) * student['decoder']['kernel'])
