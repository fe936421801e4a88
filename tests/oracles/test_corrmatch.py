"""The CorrMatch oracle on its own."""

import numpy as np
import pytest

from tests.oracles import checks_b, corrmatch
from tests.oracles import linear_model_b as lm
from tests.oracles.tape_b import Node, gradient, map_tree, worst_gradient_error

OPTIONS = [{}, {**corrmatch.RELEASED, 'backbone_learns': False}]


def prepared(hyper, **sizes):
  state, labelled, unlabelled, r = checks_b.first(corrmatch.make_problem(0, **sizes))
  options, params = lm.settings(corrmatch.PAPER, hyper), state['networks']['model']
  _, target = corrmatch.targets(
    params, 0.6, labelled, unlabelled, r['strong'], r['boxes'], r['rows'], None, options)
  return params, options, target, r['feature_masks']


@pytest.mark.parametrize('hyper', OPTIONS)
def test_gradient_agrees_with_finite_differences(hyper):
  params, options, target, masks = prepared(hyper, size=(2, 4), features=2, hidden=2, width=2)
  assert worst_gradient_error(
    lambda nodes: corrmatch.objective(nodes, target, masks, options), params) < 1e-6


@pytest.mark.parametrize('hyper', OPTIONS)
def test_steps(hyper):
  checks_b.padding_has_no_influence(corrmatch, hyper)
  checks_b.every_step_moves(corrmatch, hyper)


def test_correlation_losses_reach_no_decoder():
  """Invariant (b); `backbone_learns` says whether they reach the backbone."""
  head = {'projection', 'correlation_query', 'correlation_key'}
  for learns in (True, False):
    params, options, target, masks = prepared({'backbone_learns': learns})
    nodes = map_tree(Node, params)
    _, parts = corrmatch.objective(nodes, target, masks, options)
    grads = gradient(parts['strong_correlation'] + parts['weak_correlation'], nodes)
    moved = {key for key, layer in grads.items() if np.abs(layer['kernel']).max() > 0}
    assert moved == head | ({'backbone'} if learns else set())


def test_correlation_by_hand():
  """Scores 0 and log 3 in each row, as 4 places of log(3) / 2 over the root of 4.

  The third pixel is padding and neither gives nor gets.
  """
  half = {'kernel': Node(np.full((1, 4), 0.5)), 'bias': Node(np.zeros(4))}
  nodes = {'projection': {'kernel': Node(np.eye(1)), 'bias': Node(np.zeros(1))},
           'correlation_key': half,
           'correlation_query': {'kernel': Node(np.zeros((1, 4))), 'bias': Node(np.ones(4))}}
  features = Node(np.array([[[0.0], [np.log(3)], [5.0]]]))
  counted = np.array([[True, True, False]])
  a = corrmatch.correlation(nodes, features, counted).value
  np.testing.assert_allclose(a, [[[0.25, 0.75, 0]] * 3])
  logits = np.array([[[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]]])
  z = corrmatch.correlation_logits(nodes, features, logits, counted).value
  np.testing.assert_allclose(z, [[[1, 0.5], [3, 1.5], [0, 0]]])


def test_region_maps_by_hand():
  rows = np.array([[[0.1, 0.3, 0.5, 0.0], [0.2, 0.2, 0.2, 0.9]]])
  found = corrmatch.region_maps(rows, np.array([[True, True, True, False]]))
  assert found.tolist() == [[[False, False, True, False], [False] * 4]]
  found = corrmatch.region_maps(rows, np.ones((1, 4), bool))
  assert found.tolist() == [[[False, True, True, False], [False, False, False, True]]]


def test_threshold_by_hand():
  p = np.array([[[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.0, 1.0]]])
  valid = np.array([[True, True, True, False]])
  assert corrmatch.update_threshold(0.85, p, valid, 0.5) == pytest.approx(0.825)
  assert corrmatch.update_threshold(0.85, p, ~valid & False, 0.5) == 0.85


def test_propagation_by_hand():
  """4x4 image in rows; a later region sees what an earlier one has relabelled."""
  label = np.array([1, 1, 1, 2] + [0] * 12)
  confident = np.zeros(16, bool)
  confident[[0, 1, 2, 3, 4, 5]] = True
  blocked = np.arange(16) >= 14
  regions = np.zeros((3, 16), bool)
  regions[0, :4] = True  # votes 3 : 1, all confident: pixel 3 becomes 1
  regions[1, [3, 6, 15]] = True  # 15 is blocked; half are confident, all say 1 by now
  regions[2, [4, 7, 8]] = True  # a third is confident
  found, kept = corrmatch.propagate(label, confident, regions, blocked, 0.5)
  assert found.tolist() == [1, 1, 1, 1, 0, 0, 1] + [0] * 9
  assert kept.nonzero()[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
  found, kept = corrmatch.propagate(label, confident, regions, blocked, 0.75)
  assert found.tolist() == label.tolist()  # a share of 0.75 is not above 0.75
  assert kept.tolist() == confident.tolist()


def test_weights_of_the_losses_by_hand():
  _, losses = checks_b.run(corrmatch, corrmatch.make_problem(0, threshold=0.6))
  for found in losses:
    quarter = found['strong'] + found['kl'] + found['features']
    eighth = found['strong_correlation'] + found['weak_correlation']
    assert found['total'] == pytest.approx(found['labelled'] / 2 + quarter / 8 + eighth / 16)


def test_kl_is_zero_where_both_views_agree():
  state, labelled, unlabelled, r = checks_b.first(corrmatch.make_problem(0, threshold=0.6))
  r.update(strong=unlabelled['image'] / 255.0)
  _, losses = corrmatch.step(state, labelled, unlabelled, **r)
  assert losses['kl'] == pytest.approx(0, abs=1e-12)
  assert losses['strong'] > 0
  _, losses = corrmatch.step(state, labelled, unlabelled, **r, hyper={'unmixed_kl': True})
  assert losses['kl'] > 1e-3


def test_targets_pixel_by_pixel():
  """Labels, weights and KL of the mixed image, with everything looked up pixel by pixel."""
  state, labelled, unlabelled, r = checks_b.first(corrmatch.make_problem(10, batch=3))
  params, options = state['networks']['model'], lm.settings(corrmatch.PAPER, {})
  tau, target = corrmatch.targets(
    params, 0.5, labelled, unlabelled, r['strong'], r['boxes'], r['rows'], None, options)
  n, height, width = unlabelled['valid'].shape
  p = lm.softmax(lm.forward(params, lm.pixels(unlabelled['image'], unlabelled['valid'])))
  assert tau == corrmatch.update_threshold(0.5, p, lm.flat(unlabelled['valid']), 0.999) != 0.5
  a = corrmatch.correlation(map_tree(Node, params), Node(target['weak']['features']),
                            lm.flat(unlabelled['valid'])).value
  relabelled, kept_more = 0, 0
  for b, (top, left, bottom, right) in enumerate(r['boxes']):
    places = [(y, x) for y in range(height) for x in range(width)]
    cut = np.array([top <= y < bottom and left <= x < right for y, x in places])
    origin = [(b + 1) % n if c else b for c in cut]
    valid = np.array([unlabelled['valid'][origin[i], *place] for i, place in enumerate(places)])
    mixed = np.array([p[o, i] for i, o in enumerate(origin)])
    sure = valid & (mixed.max(-1) >= tau)
    maps = corrmatch.region_maps(a[b:b + 1, r['rows']], lm.flat(unlabelled['valid'])[b:b + 1])[0]
    label, kept = corrmatch.propagate(mixed.argmax(-1), sure, maps, cut | ~valid, tau)
    relabelled += (label != mixed.argmax(-1)).sum()
    kept_more += (kept != sure).sum()
    count = round(1 / target['kl'][1].max())
    assert target['strong']['label'][b].tolist() == label.tolist()
    assert (target['strong']['weight'][b] * count).tolist() == pytest.approx(kept * 1.0)
    assert (target['kl'][1][b] * count).tolist() == pytest.approx(sure * 1.0)
    np.testing.assert_array_equal(target['kl'][0][b], mixed)
  assert relabelled and kept_more  # the problem shows propagation


def test_losses_by_hand():
  """One pixel, no classifier noise: p_w = (0.8, 0.2), p_s = (0.5, 0.5), first feature dropped."""
  eye, zero = ({'kernel': k, 'bias': np.zeros(2)} for k in (np.eye(2), np.zeros((2, 2))))
  params = {'backbone': {'kernel': np.array([np.log([4, 1.0])] * 3) / 3, 'bias': np.zeros(2)},
            'decoder': eye, 'classifier': eye, 'projection': zero, 'correlation_query': zero,
            'correlation_key': zero}
  white = np.full((1, 1, 1, 3), 255, np.uint8)
  _, target = corrmatch.targets(
    params, 0.7, {'image': white, 'label': np.ones((1, 1, 1), np.uint8)},
    {'image': white, 'valid': np.ones((1, 1, 1), bool)}, np.zeros((1, 1, 1, 3)),
    np.zeros((1, 4), int), np.array([0]), None, lm.settings(corrmatch.PAPER, {}))
  _, parts = corrmatch.objective(map_tree(Node, params), target, np.array([[0.0, 2.0]]),
                                 lm.settings(corrmatch.PAPER, {}))
  expected = {
    'labelled': -np.log(0.2), 'strong': np.log(2), 'features': np.log(2),
    'kl': 0.8 * np.log(1.6) + 0.2 * np.log(0.4), 'strong_correlation': np.log(2),
    'weak_correlation': -np.log(0.8)}
  assert {name: part.value for name, part in parts.items()} == pytest.approx(expected)
