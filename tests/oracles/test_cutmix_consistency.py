import numpy as np
import pytest

from tests.oracles import cutmix_consistency
from tests.oracles import linear_model as lm

INSIDE = lm.box_mask(np.array([[[0, 0, 2, 3]], [[1, 1, 4, 4]]]), (4, 5))


def hyper(**options):
  return {**lm.tiny_hyper(consistency_weight=lambda step: 20.0, ema_decay=lambda step: 0.99,
                          threshold=0.5), **options}


def problem(seed=0):
  networks, labelled, unlabelled = lm.make_problem(seed, names=('student', 'teacher'))
  return lm.initial_state(networks, ('student',)), labelled[0], unlabelled


@pytest.mark.parametrize('options', [{}, {'confidence_on': 'all', 'reduction': 'sum'}])
def test_step_follows_finite_differences(options):
  state, labelled, (unlabelled, partner, _) = problem()
  given = {'inside': INSIDE, 'partner': partner,
           'hyper': hyper(momentum=0, weight_decay=0, **options)}

  def total(params):
    moved = {**state, 'networks': {**state['networks'], 'student': params}}
    return cutmix_consistency.step(moved, labelled, unlabelled, **given)[1]['total']

  stepped, losses = cutmix_consistency.step(state, labelled, unlabelled, **given)
  assert 0 < losses['confidence'] < 1
  assert losses['total'] == pytest.approx(
    losses['labelled'] + 20 * losses['confidence'] * losses['consistency'])
  lm.assert_trees_close(stepped['momentum']['student'],
                        lm.finite_differences(total, state['networks']['student']), 1e-7)


def test_hand_computed_confidence():
  probabilities = np.array([[0.98, 0.02], [0.5, 0.5], [0.99, 0.01], [0.03, 0.97]])
  valid = np.array([True, True, False, True])
  assert cutmix_consistency.confidence(probabilities, valid, 0.97) == pytest.approx(1 / 3)


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_hand_computed_loss(reduction):
  layer = {'kernel': np.zeros((3, 3)), 'bias': np.zeros(3)}
  student = {**dict.fromkeys(lm.KEYS, layer)}
  teacher = {**student, 'classifier': {**layer, 'bias': np.log([0.5, 0.25, 0.25])}}
  _, labelled, (unlabelled, _, _) = problem()
  state = lm.initial_state({'student': student, 'teacher': teacher}, ('student',))
  _, losses = cutmix_consistency.step(state, labelled, unlabelled, inside=INSIDE,
                                      hyper=hyper(threshold=0.4, reduction=reduction))
  # (1/6)^2 + 2 (1/12)^2 = 1/24
  expected = 1 / 24 if reduction == 'sum' else 1 / 72
  assert losses['confidence'] == 1
  assert losses['consistency'] == pytest.approx(expected)
  assert losses['total'] == pytest.approx(np.log(3) + 20 * expected)
