import numpy as np
import pytest

from tests.oracles import linear_model as lm


def test_supervised_gradient_agrees_with_finite_differences():
  networks, labelled, _ = lm.make_problem(0)
  params = networks['student']
  _, gradient = lm.supervised(params, labelled[0])
  lm.assert_trees_close(
    gradient, lm.finite_differences(lambda p: lm.supervised(p, labelled[0])[0], params))


def test_squared_error_gradient_and_hand_computed_value():
  logits, target = np.zeros((1, 2)), np.array([[1.0, 0.0]])
  loss, delta = lm.squared_error(logits, target, np.ones(1))
  assert loss == pytest.approx(0.25)  # ((1/2)^2 + (1/2)^2) / 2 classes
  # d loss / d p = (-1/2, 1/2); times (diag p - p p^T) = (1/4, -1/4; -1/4, 1/4).
  np.testing.assert_allclose(delta, [[-0.25, 0.25]])


def test_cross_entropy_ignores_and_averages():
  label = np.array([0, 255, 1])
  loss, delta = lm.cross_entropy(np.zeros((3, 2)), label, lm.mean_weights(label != 255))
  assert loss == pytest.approx(np.log(2))
  np.testing.assert_allclose(delta, [[-0.25, 0.25], [0, 0], [0.25, -0.25]])
  loss, delta = lm.cross_entropy(np.zeros((3, 2)), label, lm.mean_weights(label > 300))
  assert loss == 0 and not delta.any()


def test_sgd_is_torchs():
  layer = {'kernel': np.array([[2.0]]), 'bias': np.array([1.0])}
  params = {'backbone': layer, 'classifier': layer}
  zeros = lm.scale(params, 0.0)
  gradient = {'backbone': {'kernel': np.array([[1.0]]), 'bias': np.array([1.0])}}
  hyper = lm.tiny_hyper(weight_decay=0.1, decoder_multiplier=10.0, decayed=('kernel',))
  params, buffers = lm.sgd(params, zeros, gradient, 0.5, hyper)
  params, buffers = lm.sgd(params, buffers, gradient, 0.5, hyper)
  # kernel: buffer 1 + .1 2 = 1.2, 2 - .6 = 1.4; .9 1.2 + 1 + .14 = 2.22, 1.4 - 1.11 = .29
  assert params['backbone']['kernel'][0, 0] == pytest.approx(0.29)
  assert params['backbone']['bias'][0] == pytest.approx(1 - 0.5 - 0.5 * 1.9)
  # no gradient: buffer .2, 2 - 5 .2 = 1; .9 .2 + .1 = .28, 1 - 5 .28 = -.4
  assert params['classifier']['kernel'][0, 0] == pytest.approx(-0.4)
  assert params['classifier']['bias'][0] == 1


def test_boxes_that_overlap_cancel():
  mask = lm.box_mask(np.array([[[0, 0, 2, 2], [1, 1, 3, 3]]]), (3, 3))
  np.testing.assert_array_equal(mask[0], [[1, 1, 0], [1, 0, 1], [0, 1, 1]])


def test_padding_is_zero_and_mixing_takes_the_following_image():
  image = np.arange(2 * 1 * 2 * 3, dtype=np.uint8).reshape(2, 1, 2, 3)
  batch = {'image': image, 'valid': np.array([[[True, False]], [[True, True]]])}
  assert not lm.pixels(batch)[1].any()
  inside = np.array([[[True, False]], [[False, False]]])
  mixed = lm.mix_batch(batch, lm.following(batch), inside)
  np.testing.assert_array_equal(mixed['image'][0], [[image[1, 0, 0], image[0, 0, 1]]])
  np.testing.assert_array_equal(mixed['valid'], batch['valid'])
