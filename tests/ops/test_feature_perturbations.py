"""Perturbations of features: laws, hand-made masks, and VAT against the oracle's closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.ops import feature_perturbations as perturbations
from gta_jax.ops.resizing import resize_nearest
from tests.oracles import cct as oracle
from tests.oracles import linear_model as lm

KEYS = jax.random.split(jax.random.key(0), 2)


def test_dropped_channels_are_half_and_the_others_doubled():
  factors = np.asarray(perturbations.channel_dropout(KEYS, 1000))
  assert set(np.unique(factors)) == {0, 2} and abs(factors.mean() - 1) < 0.1
  assert (factors[0] != factors[1]).any()
  # An image's draw does not depend on the images beside it.
  np.testing.assert_array_equal(perturbations.channel_dropout(KEYS[1:], 1000)[0], factors[1])


def test_the_strongest_activations_are_dropped():
  features = jnp.array([[[[1.0, 1], [4, 6], [3, 5], [90, 90]]], [[[0.0, 0]] * 4]])
  valid = jnp.array([[[True, True, True, False]], [[False] * 4]])
  kept = perturbations.weak_activations(features, valid, jnp.float32(0.8))
  assert kept[0, 0, :3].tolist() == [True, False, False]  # means 1, 5, 4 against 4
  assert not kept[1].any()


@pytest.mark.slow
def test_boxes_are_those_of_the_components_with_the_longest_borders():
  image = """
    #..#....
    ..#.....
    .....##.
    .....##.
    #.......
    #..###..
    #.......
    ###....."""
  rows = [list(row.strip()) for row in image.strip().splitlines()]
  mask = jnp.asarray(np.array(rows) == '#')[None]
  boxes = perturbations.component_boxes(jnp.concatenate([mask, mask & False]), count=3, least=2)
  # The hook, the square, the bar; the single pixel and the diagonal pair have too little border.
  assert boxes[0].tolist() == [[4, 0, 4, 3], [2, 5, 2, 2], [5, 3, 1, 3]]
  assert not boxes[1].any()
  larger = perturbations.component_boxes(mask, count=3, least=4)
  assert larger[0].tolist() == [[4, 0, 4, 3], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_winding_component_is_one():
  mask = np.zeros((1, 9, 9), bool)
  mask[0, ::2] = True
  mask[0, 1::4, 8] = mask[0, 3::4, 0] = True
  boxes = perturbations.component_boxes(jnp.asarray(mask), count=2, least=0)
  assert boxes[0].tolist() == [[0, 0, 9, 9], [0, 0, 0, 0]]


def test_cut_out_erases_a_share_of_the_box_inside_of_it():
  boxes = jnp.array([[[2, 3, 10, 5], [0, 0, 0, 0]]] * 400)
  keys = jax.random.split(jax.random.key(1), 400)
  kept = np.asarray(perturbations.cut_out(keys, boxes, (16, 12)))
  erased = ~kept
  assert (erased.sum((1, 2)) == 4 * 2).all()  # .4 of 10 by .4 of 5
  assert erased.any(0)[2:12, 3:8].all() and erased.any(0).sum() == 50
  assert perturbations.cut_out(KEYS, boxes[:2] * 0, (16, 12)).all()


def problem():
  rng = np.random.default_rng(0)
  layer, feature = lm.random_layer(rng, 3, 4), rng.normal(size=(2, 4, 3))
  direction, valid = rng.uniform(-0.5, 0.5, (2, 4, 3)), rng.random((2, 4)) > 0.2
  return layer, feature, direction, valid


def in_jax(function, layer, feature, direction, valid, **options):
  def decode(x):
    return x @ jnp.asarray(layer['kernel'], jnp.float32) + jnp.asarray(layer['bias'], jnp.float32)

  grid = (len(feature), 2, 2)
  found = function(
    decode, jnp.asarray(feature, jnp.float32).reshape(*grid, -1),
    jnp.asarray(direction, jnp.float32).reshape(*grid, -1), jnp.asarray(valid).reshape(grid),
    radius=2.0, **options)
  return np.asarray(found).reshape(feature.shape)


def test_adversarial_direction_is_the_closed_form():
  layer, feature, direction, valid = problem()
  found = in_jax(perturbations.adversarial_direction, layer, feature, direction, valid)
  expected = oracle.virtual_adversarial(
    layer, feature, direction * valid[..., None], valid, 2.0)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(found, axis=(1, 2)), 2, rtol=1e-5)
  tiny = in_jax(perturbations.adversarial_direction, layer, feature, 1e-30 * direction, valid)
  np.testing.assert_allclose(tiny, expected, rtol=1e-4, atol=1e-5)


def test_adversarial_direction_changes_more_than_a_random_one():
  layer, feature, direction, valid = problem()
  found = in_jax(perturbations.adversarial_direction, layer, feature, direction, valid)
  drawn = direction * valid[..., None]
  drawn *= 2 / np.linalg.norm(drawn, axis=(1, 2), keepdims=True)
  clean = lm.softmax(lm.linear(layer, feature))

  def divergence(r):
    return (clean * np.log(clean / lm.softmax(lm.linear(layer, feature + 1e-3 * r)))).sum()

  assert divergence(found) > 1.5 * divergence(drawn)


def test_no_direction_where_nothing_changes():
  layer, feature, direction, valid = problem()
  flat = {'kernel': np.zeros((3, 4)), 'bias': np.zeros(4)}
  valid[1] = False
  for function in (perturbations.adversarial_direction, perturbations.adversarial_as_shipped):
    assert not in_jax(function, flat, feature, direction, valid).any()
    assert not in_jax(function, layer, feature, direction, valid)[1].any()


def test_as_shipped_next_to_nothing_is_left_of_the_radius():
  given = problem()
  shipped = in_jax(perturbations.adversarial_as_shipped, *given)
  assert np.linalg.norm(shipped, axis=(1, 2)).max() < 0.2
  # With a large xi it is the exact direction.
  large = in_jax(perturbations.adversarial_as_shipped, *given, xi=0.05)
  exact = in_jax(perturbations.adversarial_direction, *given)
  assert (large * exact).sum() / (np.linalg.norm(large) * np.linalg.norm(exact)) > 0.99


@pytest.mark.parametrize('size', [(3, 2), (5, 7)])
def test_nearest_picks_as_torch_does(size):
  torch = pytest.importorskip('torch')
  x = np.arange(70.0, dtype=np.float32).reshape(1, 5, 14)
  expected = torch.nn.functional.interpolate(torch.from_numpy(x)[:, None], size, mode='nearest')
  np.testing.assert_array_equal(resize_nearest(jnp.asarray(x), size), expected[:, 0])
