"""The UniMatch V2 oracle on its own."""

import numpy as np
import pytest

from tests.oracles import checks_b, unimatch_v2
from tests.oracles import linear_model_b as lm
from tests.oracles.tape_b import Node, map_tree, worst_gradient_error

HYPER = {'threshold': 0.6, 'rate': 0.01}


def test_gradient_agrees_with_finite_differences():
  state, labelled, unlabelled, randomness = checks_b.first(unimatch_v2.make_problem(0, size=(2, 3)))
  options, params = lm.settings(unimatch_v2.PAPER, HYPER), state['networks']['student']
  views = unimatch_v2.targets(params, unlabelled, randomness['strong'], randomness['boxes'],
                              options)
  masks = unimatch_v2.complementary_masks(randomness['bernoulli'], randomness['undropped'])
  assert worst_gradient_error(lambda nodes: unimatch_v2.objective(
    nodes, labelled, views, masks, options), params) < 1e-7


@pytest.mark.parametrize('optimizer', ['adamw', 'sgd'])
def test_steps(optimizer):
  problem = unimatch_v2.make_problem(2, optimizer=optimizer)
  state, _ = checks_b.run(unimatch_v2, problem, {**HYPER, 'optimizer': optimizer})
  assert state['step'] == 3


def test_padding_and_movement():
  checks_b.padding_has_no_influence(unimatch_v2, HYPER)
  checks_b.every_step_moves(unimatch_v2, HYPER)


def test_masks_are_complementary():
  masks = unimatch_v2.complementary_masks(np.array([[1, 0], [1, 0]]), np.array([False, True]))
  assert masks.tolist() == [[[2, 0], [1, 1]], [[0, 2], [1, 1]]]


def test_total_by_hand():
  """L = (L_x + (L_1 + L_2) / 2) / 2."""
  _, losses = checks_b.run(unimatch_v2, unimatch_v2.make_problem(0), HYPER)
  assert losses[0]['strong_1'] != losses[0]['strong_2']
  for found in losses:
    assert found['total'] == pytest.approx(
      found['labelled'] / 2 + (found['strong_1'] + found['strong_2']) / 4)


def test_first_adamw_step_by_hand():
  """Bias correction makes the first step rate * sign(g), after the decoupled decay."""
  options = lm.settings(unimatch_v2.PAPER, {'epsilon': 0.0, 'weight_decay': 0.5})
  params = {key: {'bias': np.array([2.0])} for key in ('backbone', 'classifier')}
  zeros = {key: {'bias': np.zeros(1)} for key in params}
  grads = {'backbone': {'bias': np.array([3.0])}, 'classifier': {'bias': np.array([-0.1])}}
  new, moments = unimatch_v2.adamw(
    params, {'count': 0, 'mean': zeros, 'variance': zeros}, grads, 0.01, options)
  assert new['backbone']['bias'] == pytest.approx(2 - 0.01 * 0.5 * 2 - 0.01)
  assert new['classifier']['bias'] == pytest.approx(2 - 0.4 * 0.5 * 2 + 0.4)
  assert moments['count'] == 1


def test_the_teacher_equals_the_student_after_the_first_step():
  state, labelled, unlabelled, randomness = checks_b.first(unimatch_v2.make_problem(0))
  state, _ = unimatch_v2.step(state, labelled, unlabelled, **randomness, hyper=HYPER)
  np.testing.assert_equal(state['networks']['teacher'], state['networks']['student'])


def test_labels_come_from_the_reversed_batch():
  state, _, unlabelled, randomness = checks_b.first(unimatch_v2.make_problem(0, batch=3))
  whole = np.tile([0, 0, 4, 5], (2, 3, 1))
  options = lm.settings(unimatch_v2.PAPER, HYPER)
  teacher = state['networks']['teacher']
  plain, mixed = (unimatch_v2.targets(teacher, unlabelled, randomness['strong'], boxes, options)
                  for boxes in (0 * whole, whole))
  for clean, other in zip(plain[0], mixed[0], strict=True):
    np.testing.assert_equal(clean[::-1], other)


def test_labels_come_from_the_teacher_only():
  """A student of zeros is unsure everywhere, and its loss is log K wherever the teacher is sure."""
  state, labelled, unlabelled, randomness = checks_b.first(unimatch_v2.make_problem(0))
  student = state['networks']['student']
  state['networks']['student'] = map_tree(np.zeros_like, student)
  options = lm.settings(unimatch_v2.PAPER, HYPER)
  views = unimatch_v2.targets(student, unlabelled, randomness['strong'], randomness['boxes'],
                              options)
  _, losses = unimatch_v2.step(state, labelled, unlabelled, **randomness, hyper=HYPER)
  assert losses['strong_1'] == pytest.approx(np.log(3) * views[0][2].sum())
  assert losses['strong_1'] > 0


def test_masks_reach_the_logits():
  """Logits 2 log 0.8 and 0 in one view, 0 and 2 log 0.2 in the other; label 0."""
  eye = {'kernel': np.eye(2), 'bias': np.zeros(2)}
  params = {'backbone': {'kernel': np.zeros((3, 2)), 'bias': np.log([0.8, 0.2])},
            'decoder': eye, 'classifier': eye}
  labelled = {'image': np.zeros((1, 1, 1, 3), np.uint8), 'label': np.ones((1, 1, 1), np.uint8)}
  views = [(np.zeros((1, 1, 3)), np.zeros((1, 1)), np.ones((1, 1)))] * 2
  masks = unimatch_v2.complementary_masks(np.array([[1, 0]]), np.array([False]))
  _, parts = unimatch_v2.objective(
    map_tree(Node, params), labelled, views, masks, lm.settings(unimatch_v2.PAPER, {}))
  assert parts['strong_1'].value == pytest.approx(-np.log(0.64 / 1.64))
  assert parts['strong_2'].value == pytest.approx(-np.log(1 / 1.04))


def test_one_view_without_dropout_is_fixmatch():
  """Invariant (e): equal views, no boxes, all pairs undropped."""
  state, labelled, unlabelled, randomness = checks_b.first(unimatch_v2.make_problem(0))
  randomness.update(boxes=0 * randomness['boxes'], undropped=np.ones(2, bool),
                    strong=np.repeat(randomness['strong'][:1], 2, 0))
  _, two = unimatch_v2.step(state, labelled, unlabelled, **randomness, hyper=HYPER)
  randomness.update(boxes=randomness['boxes'][:1], strong=randomness['strong'][:1],
                    undropped=np.zeros(2, bool))
  _, one = unimatch_v2.step(state, labelled, unlabelled, **randomness, hyper=HYPER)
  assert two['strong_1'] == two['strong_2'] == one['strong_1'] > 0
  assert two['total'] == pytest.approx(one['total'])
