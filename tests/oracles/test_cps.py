import numpy as np
import pytest

from tests.oracles import cps
from tests.oracles import linear_model as lm

HYPER = lm.tiny_hyper(cross_weight=1.5)


def problem(seed=0):
  networks, labelled, unlabelled = lm.make_problem(seed, names=('student', 'assistant'))
  return lm.initial_state(networks, ('student', 'assistant')), labelled[0], unlabelled[0]


@pytest.mark.parametrize('options', [{}, {'cross_mean': 'separate', 'labelled_void': 'ignore'}])
def test_gradient_agrees_with_finite_differences(options):
  state, labelled, unlabelled = problem()
  x = np.concatenate([lm.pixels(labelled), lm.pixels(unlabelled)])
  label = lm.forward(state['networks']['assistant'], x)['logits'].argmax(1)
  weight = cps.cross_weights(labelled, unlabelled['valid'], options)
  assert weight.sum() == pytest.approx(2 if options else 1)

  def total(params):
    return cps.objective(params, labelled, x, label, weight, 1.5)[0]['total']

  params = state['networks']['student']
  _, gradient = cps.objective(params, labelled, x, label, weight, 1.5)
  lm.assert_trees_close(gradient, lm.finite_differences(total, params))


def constant(bias):
  """A network whose logits are the bias at every pixel."""
  layer = {'kernel': np.zeros((3, 3)), 'bias': np.zeros(3)}
  return {'backbone': layer, 'decoder': layer, 'classifier': {**layer, 'bias': np.log(bias)}}


def test_hand_computed_losses():
  # p_1 = (.5, .25, .25) labels 0, p_2 = (.1, .1, .8) labels 2.
  networks = {'student': constant([0.5, 0.25, 0.25]), 'assistant': constant([0.1, 0.1, 0.8])}
  state = lm.initial_state(networks, ('student', 'assistant'))
  _, labelled, unlabelled = problem()
  labelled = {**labelled, 'label': np.full_like(labelled['label'], 1)}
  _, losses = cps.step(state, labelled, unlabelled, hyper=HYPER)
  assert losses['student']['labelled'] == pytest.approx(np.log(4))
  assert losses['student']['cross'] == pytest.approx(np.log(4))  # -log p_1[2]
  assert losses['assistant']['cross'] == pytest.approx(np.log(10))  # -log p_2[0]


def test_exchange_of_the_networks_exchanges_the_result():
  state, labelled, unlabelled = problem()
  swapped = {**state, 'networks': {a: state['networks'][b] for a, b in cps.OTHER.items()}}
  one, losses = cps.step(state, labelled, unlabelled, hyper=HYPER)
  two, swapped_losses = cps.step(swapped, labelled, unlabelled, hyper=HYPER)
  lm.assert_trees_close(one['networks']['student'], two['networks']['assistant'], 0)
  assert losses['student'] == swapped_losses['assistant']


def test_padding_has_no_influence():
  state, labelled, unlabelled = problem()
  image = np.where(unlabelled['valid'][..., None], unlabelled['image'], 7)
  one, _ = cps.step(state, labelled, unlabelled, hyper=HYPER)
  two, _ = cps.step(state, labelled, {**unlabelled, 'image': image}, hyper=HYPER)
  lm.assert_trees_close(one['networks'], two['networks'], 0)
