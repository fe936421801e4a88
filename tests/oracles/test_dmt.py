import numpy as np
import pytest

from tests.oracles import dmt
from tests.oracles import linear_model as lm


def hyper(**options):
  return lm.tiny_hyper(**{'gamma1': 5, 'gamma2': 5, 'decoder_multiplier': 1.0, **options})


def problem(seed=0):
  networks, labelled, unlabelled = lm.make_problem(seed, names=('student', 'assistant'))
  images = unlabelled[0]['image']
  label, confidence = dmt.label_images(networks['student'], images, share=0.6, every=2)
  pseudo = {**unlabelled[0], 'label': label, 'confidence': confidence}
  return lm.initial_state(networks, ('student', 'assistant')), labelled[0], pseudo


def test_hand_computed_weights():
  p = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.5, 0.2], [1.0, 0.0, 0.0]])
  weights = dmt.dynamic_weights(p, np.array([0, 0, 0, 255]), np.array([0.9, 0.6, 0.6, 0.9]), 5, 5)
  np.testing.assert_allclose(weights, [0.32768, 0, 0.00243, 0])


def test_thresholds_of_ten_confidences():
  confidence = np.arange(10, 0, -1) / 10
  predicted = np.zeros(10, int)

  def kept(share):
    return (confidence >= dmt.class_thresholds(predicted, confidence, share, 2)[0]).sum()

  assert [kept(share) for share in (0.05, 0.2, 0.5, 1.0)] == [10, 3, 6, 10]
  assert dmt.class_thresholds(predicted, confidence, 1.0, 2)[1] == 1e-5  # never predicted


def test_step_follows_finite_differences_with_constant_weights():
  state, labelled, pseudo = problem()
  params = state['networks']['assistant']
  x = np.concatenate([lm.pixels(labelled), lm.pixels(pseudo)])
  label = np.where(pseudo['valid'], pseudo['label'], 255).reshape(-1)
  probabilities = lm.softmax(lm.forward(params, lm.pixels(pseudo))['logits'])
  weight = dmt.dynamic_weights(probabilities, label, pseudo['confidence'].reshape(-1), 5, 5)
  assert 0 < (weight == 0)[label != 255].mean() < 1 and (label == 255).any()
  given = (x, np.concatenate([labelled['label'].reshape(-1), label]),
           np.concatenate([np.ones(labelled['label'].size), weight]))
  expected = lm.finite_differences(lambda p: dmt.objective(p, *given)[0], params)
  stepped, _ = dmt.step(state, labelled, pseudo, name='assistant',
                        hyper=hyper(momentum=0, weight_decay=0))
  lm.assert_trees_close(stepped['momentum']['assistant'], expected)
  lm.assert_trees_close(stepped['networks']['student'], state['networks']['student'], 0)


def test_gamma_zero_and_certain_labels_are_plain_cross_entropy():
  state, labelled, pseudo = problem()
  certain = {**pseudo, 'confidence': np.ones_like(pseudo['confidence'])}
  formula, _ = dmt.step(state, labelled, certain, name='assistant',
                         hyper=hyper(gamma1=0, gamma2=0))
  code = hyper(gamma1=0, gamma2=0, plain_at_zero=True)
  plain, losses = dmt.step(state, labelled, pseudo, name='assistant', hyper=code)
  lm.assert_trees_close(formula['networks'], plain['networks'], 1e-15)
  assert losses['weight'] == pytest.approx(1)
  doubting, _ = dmt.step(state, labelled, pseudo, name='assistant',
                         hyper=hyper(gamma1=0, gamma2=0))
  assert not np.allclose(doubting['networks']['assistant']['backbone']['kernel'],
                         plain['networks']['assistant']['backbone']['kernel'], atol=1e-9)
