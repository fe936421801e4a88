"""The PseudoSeg oracle on its own."""

import numpy as np
import pytest

from tests.oracles import checks_b, pseudo_seg
from tests.oracles import linear_model_b as lm
from tests.oracles.tape_b import Node, gradient, map_tree, worst_gradient_error

OPTIONS = [{}, {'padding_counts': True, 'calibration': 'sum'}, {'residual': False, 'norm': False}]


def prepared(hyper, seed=0):
  state, labelled, unlabelled, r = checks_b.first(
    pseudo_seg.make_problem(seed, size=(2, 3), features=3, hidden=2, width=2))
  options, params = lm.settings(pseudo_seg.PAPER, hyper), state['networks']['model']
  return params, options, pseudo_seg.targets(
    params, labelled, unlabelled, r['strong'], r['cutout'], r['dropout'], options)


@pytest.mark.parametrize('hyper', OPTIONS)
def test_gradient_agrees_with_finite_differences(hyper):
  params, options, target = prepared(hyper)
  assert target['attention'][1].any()
  assert worst_gradient_error(
    lambda nodes: pseudo_seg.objective(nodes, target, options), params) < 1e-6


@pytest.mark.parametrize('hyper', OPTIONS)
def test_steps(hyper):
  checks_b.padding_has_no_influence(pseudo_seg, hyper)
  checks_b.every_step_moves(pseudo_seg, hyper)


def test_losses_reach_only_their_own_layers():
  """Invariant (d)."""
  params, options, target = prepared({})
  nodes = map_tree(Node, params)
  _, parts = pseudo_seg.objective(nodes, target, options)
  for loss, keys in (('attention', pseudo_seg.ATTENTION), ('classification', (
      'backbone', 'image_classifier')), ('unlabelled', ('backbone', 'decoder', 'classifier'))):
    moved = {key for key, layer in gradient(parts[loss], nodes).items()
             if any(np.abs(g).max() > 0 for g in layer.values())}
    assert moved == set(keys)


def test_fusion_by_hand():
  """r = 1, halves (0.8, 0.2) and (0.2, 0.8) give (0.5, 0.5); with z_a = z_w, 0.8^2 : 0.2^2."""
  r = np.log(4) / 2
  z = np.array([[[r, -r]]]) / r
  assert np.sqrt(np.mean(z ** 2)) == 1
  counted, options = np.ones((1, 1)), lm.settings(pseudo_seg.PAPER, {})
  p = np.exp(2) / (1 + np.exp(2))
  np.testing.assert_allclose(pseudo_seg.fuse(z, -z, counted, options), [[[0.5, 0.5]]])
  found = pseudo_seg.fuse(z, z, counted, options)[0, 0, 0]
  assert found == pytest.approx(p ** 2 / (p ** 2 + (1 - p) ** 2), abs=1e-7)
  # Invariant (b): one factor on both maps changes nothing.
  assert pseudo_seg.fuse(9 * z, 9 * z, counted, options)[0, 0, 0] == pytest.approx(found, abs=1e-7)
  options['calibration'] = 'sum'  # r = 2
  p = np.exp(1) / (1 + np.exp(1))
  found = pseudo_seg.fuse(z, z, counted, options)[0, 0, 0]
  assert found == pytest.approx(p ** 2 / (p ** 2 + (1 - p) ** 2), abs=1e-7)


def test_grad_cam_by_hand():
  features = np.array([[[1.0, 0.0], [0.5, 0.0], [0.0, -3.0], [9.0, 9.0]]])
  counted = np.array([[True, True, True, False]])
  found = pseudo_seg.grad_cam(np.eye(2)[None], features, np.array([[1, 1]]), counted)
  assert found[0].tolist() == [[1, 0], [0.5, 0], [0, 0], [0, 0]]
  found = pseudo_seg.grad_cam(np.eye(2)[None], features, np.array([[0, 1]]), counted)
  assert not found.any()


def attention(cam, valid, hyper, seed=0):
  params, options, _ = prepared({'norm': False, **hyper}, seed)
  columns = np.random.default_rng(3).normal(size=(1, 3, 5))
  nodes = map_tree(Node, params)
  nodes['attention_output'] = {'kernel': Node(np.eye(3)), 'bias': Node(np.zeros(3))}
  return pseudo_seg.attention_logits(nodes, columns, cam, valid, valid, options).value[0]


def test_attention_by_hand():
  """With zero scores every pixel sees the mean over valid pixels."""
  cam = np.array([[[1.0, 0.0], [0.0, 0.5], [7.0, 7.0]]])
  valid = np.array([[True, True, False]])
  nodes = {name: {'kernel': Node(np.zeros((9, 4)))} for name in pseudo_seg.ATTENTION[:2]}
  nodes['attention_output'] = {'kernel': Node(np.eye(3)), 'bias': Node(np.zeros(3))}
  options = lm.settings(pseudo_seg.PAPER, {'norm': False})
  z = pseudo_seg.attention_logits(nodes, np.zeros((1, 3, 9)), cam, valid, valid, options).value
  np.testing.assert_allclose(z[0, :2], [[0.5, 1.5, 0.25], [1.25, 0.5, 0.75]])


def test_padding_is_not_attended_to():
  """Invariant (c), in both readings of padding."""
  cam = np.array([[[1.0, 0.2], [0.3, 0.5], [0.7, 0.7]]])
  valid = np.array([[True, True, False]])
  for counts in (False, True):
    found = [attention(cam * np.array([1, 1, factor])[:, None], valid, {'padding_counts': counts})
             for factor in (1, 2)]
    np.testing.assert_allclose(found[0][:2], found[1][:2])


def test_without_image_labels_attention_says_background_everywhere():
  """Invariant (e)."""
  found = attention(np.zeros((1, 3, 2)), np.ones((1, 3), bool), {})
  assert found.tolist() == [[2, 0, 0]] * 3


def test_scores_are_divided_by_the_root_of_their_width():
  """Queries 1, keys (log 9) / 2 in each of 4 places: score log 81 / 2 = log 9."""
  nodes = {'attention_query': {'kernel': Node(np.array([[1.0] * 4, [0.0] * 4]))},
           'attention_key': {'kernel': Node(np.array([[0.0] * 4, [np.log(9) / 2] * 4]))},
           'attention_output': {'kernel': Node(np.eye(2)), 'bias': Node(np.zeros(2))}}
  columns, cam = np.array([[[1.0, 0.0], [1.0, 1.0]]]), np.array([[[0.0], [1.0]]])
  valid, options = np.ones((1, 2), bool), lm.settings(pseudo_seg.PAPER, {'norm': False})
  z = pseudo_seg.attention_logits(nodes, columns, cam, valid, valid, options).value
  np.testing.assert_allclose(z, [[[1.1, 0.9], [0.1, 1.9]]])
  options['norm'], options['norm_epsilon'] = True, 0.0
  nodes['attention_output']['bias'] = Node(np.array([3.0, 4.0]))
  z = pseudo_seg.attention_logits(nodes, columns, cam, valid, valid, options).value
  np.testing.assert_allclose(z, [[[4, 3], [2, 5]]])  # -1 and 1 in each channel, and the bias


def test_image_classification_by_hand():
  label = np.array([[0, 2], [1, lm.IGNORE]])
  assert pseudo_seg.present_classes(label, 3).tolist() == [[0, 1], [1, 0]]
  params, options, target = prepared({})
  pooled = lm.encode(params, target['image']).mean(1) * target['dropout']
  u = lm.linear(params['image_classifier'], pooled)
  p = 1 / (1 + np.exp(-u))
  loss = -np.mean(np.where(target['present'] > 0, np.log(p), np.log(1 - p)))
  _, parts = pseudo_seg.objective(map_tree(Node, params), target, options)
  assert target['present'].any() and not target['dropout'].all()
  assert parts['classification'].value == pytest.approx(loss)
