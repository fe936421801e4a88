import numpy as np
import pytest

from tests.oracles import cps, cps_cutmix
from tests.oracles import linear_model as lm

INSIDE = lm.box_mask(np.array([[[0, 0, 2, 3]], [[1, 1, 4, 4]]]), (4, 5))


def problem(seed=0):
  networks, labelled, unlabelled = lm.make_problem(seed, names=('student', 'assistant'))
  return lm.initial_state(networks, ('student', 'assistant')), labelled[0], unlabelled


def hyper(**options):
  return lm.tiny_hyper(cross_weight=1.0, **options)


def test_mask_of_nothing_on_both_streams_is_cps():
  state, labelled, unlabelled = problem()
  nothing = np.zeros_like(INSIDE)
  mixed = cps_cutmix.step(
    state, labelled, unlabelled[0], inside=nothing, hyper=hyper(cross_mean='joint'))
  plain = cps.step(state, labelled, unlabelled[0], hyper=hyper())
  lm.assert_trees_close(mixed[0]['networks'], plain[0]['networks'], 0)
  assert mixed[1] == plain[1]


@pytest.mark.parametrize('whole', [False, True])
def test_the_image_outside_the_mask_has_no_influence(whole):
  state, labelled, (first, second, third) = problem()
  inside = np.full_like(INSIDE, whole)
  pairs = ((first, second), (third, second)) if whole else ((first, second), (first, third))
  (one, _), (two, _) = [
    cps_cutmix.step(state, labelled, u0, partner=u1, inside=inside, hyper=hyper())
    for u0, u1 in pairs]
  lm.assert_trees_close(one['networks'], two['networks'], 0)


@pytest.mark.parametrize('cross_on', ['both', 'unlabelled'])
def test_step_follows_finite_differences(cross_on):
  state, labelled, (unlabelled, partner, _) = problem()
  options = hyper(cross_on=cross_on, momentum=0.0, weight_decay=0.0)
  stepped, losses = cps_cutmix.step(
    state, labelled, unlabelled, partner=partner, inside=INSIDE, hyper=options)

  def total(params):
    """The student's loss; the assistant, which labels, stays where it is."""
    moved = {**state, 'networks': {**state['networks'], 'student': params}}
    return cps_cutmix.step(moved, labelled, unlabelled, partner=partner, inside=INSIDE,
                           hyper=options)[1]['student']['total']

  params = state['networks']['student']
  assert losses['student']['total'] == total(params)
  lm.assert_trees_close(stepped['momentum']['student'], lm.finite_differences(total, params))


def test_hand_computed_mixed_loss():
  # One image of two pixels; both networks answer with the colour itself.
  identity = {'kernel': np.eye(3), 'bias': np.zeros(3)}
  student = dict.fromkeys(lm.KEYS, identity)
  networks = {'student': student, 'assistant': student}
  state = lm.initial_state(networks, ('student', 'assistant'))
  red, green = np.array([255, 0, 0]), np.array([0, 255, 0])
  valid = np.ones((1, 1, 2), bool)
  u0 = {'image': np.array([[[red, red]]], np.uint8), 'valid': valid}
  u1 = {'image': np.array([[[green, green]]], np.uint8), 'valid': valid & [True, False]}
  labelled = {'image': u0['image'], 'label': np.full((1, 1, 2), 255)}
  inside = np.array([[[False, True]]])
  _, losses = cps_cutmix.step(state, labelled, u0, partner=u1, inside=inside,
                              hyper=hyper(cross_on='unlabelled'))
  # The right pixel comes from the partner's padding: one red pixel is left, p = e / (e + 2).
  assert losses['student']['cross'] == pytest.approx(np.log((np.e + 2) / np.e))
