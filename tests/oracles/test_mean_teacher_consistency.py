import numpy as np
import pytest

from tests.oracles import linear_model as lm
from tests.oracles import mean_teacher_consistency as mt


def hyper(**options):
  return lm.tiny_hyper(
    consistency_weight=lambda step: 100.0, ema_decay=lambda step: 0.99, **options)


def problem(seed=0):
  networks, labelled, unlabelled = lm.make_problem(seed, names=('student', 'teacher'))
  return lm.initial_state(networks, ('student',)), labelled[0], unlabelled[0]


@pytest.mark.parametrize('of', ['probabilities', 'logits'])
@pytest.mark.parametrize('on', ['both', 'unlabelled'])
def test_step_follows_finite_differences(of, on):
  state, labelled, unlabelled = problem()
  rng = np.random.default_rng(1)
  options = {'noise': rng.normal(size=(2, 80, 3)),
             'hyper': hyper(consistency_of=of, consistency_on=on, momentum=0, weight_decay=0)}

  def total(params):
    moved = {**state, 'networks': {**state['networks'], 'student': params}}
    return mt.step(moved, labelled, unlabelled, **options)[1]['total']

  stepped, _ = mt.step(state, labelled, unlabelled, **options)
  lm.assert_trees_close(stepped['momentum']['student'],
                        lm.finite_differences(total, state['networks']['student']), 1e-6)


def test_hand_computed_consistency():
  zero = {'kernel': np.zeros((3, 2)), 'bias': np.zeros(2)}
  student = {'backbone': lm.scale(lm.random_layer(np.random.default_rng(0), 3, 3), 0.0),
             'decoder': {'kernel': np.zeros((3, 3)), 'bias': np.zeros(3)}, 'classifier': zero}
  teacher = {**student, 'classifier': {**zero, 'bias': np.log([0.8, 0.2])}}
  state = lm.initial_state({'student': student, 'teacher': teacher}, ('student',))
  _, labelled, unlabelled = problem()
  labelled = {**labelled, 'label': np.minimum(labelled['label'], 1)}
  _, losses = mt.step(state, labelled, unlabelled, hyper=hyper())
  assert losses['consistency'] == pytest.approx(0.3**2)  # (.5 - .8)^2 and (.5 - .2)^2, mean


@pytest.mark.parametrize('order', ['after', 'before'])
def test_order_of_the_average(order):
  state, labelled, unlabelled = problem()
  first, losses = mt.step(state, labelled, unlabelled, hyper=hyper(average=order))
  student, teacher = (state['networks'][name] for name in ('student', 'teacher'))
  if order == 'before':
    # Step 0 copies the student, so that both agree and nothing is to be made consistent.
    assert losses['consistency'] == pytest.approx(0)
    expected = student
  else:
    assert losses['consistency'] > 0
    expected = lm.average(teacher, first['networks']['student'], 0.99)
  lm.assert_trees_close(first['networks']['teacher'], expected, 1e-15)


def test_ramp_starts_with_a_copy():
  assert [mt.ramped(0.99)(k) for k in (0, 1, 1000)] == [0, 0.5, 0.99]
