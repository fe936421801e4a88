"""Connected components against a search in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.ops.components import bounding_boxes, choose_component, connected_components
from tests.oracles import ael_draws

find = jax.jit(connected_components)


@pytest.mark.parametrize('density', [0.0, 0.2, 0.45, 0.6, 1.0])
def test_components_are_those_of_a_search(density):
  masks = np.random.default_rng(0).random((4, 9, 13)) < density
  for mask, found in zip(masks, np.asarray(find(masks)), strict=True):
    expected = np.full(mask.shape, mask.size)
    for component in ael_draws.components(mask):
      expected[tuple(component.T)] = np.ravel_multi_index(component[0], mask.shape)
    np.testing.assert_array_equal(found, expected)


def test_a_long_way_is_one_component():
  """A path that winds through the whole mask, 181 pixels from end to end."""
  mask = np.zeros((1, 19, 17), bool)
  mask[0, ::2] = True
  mask[0, 1::4, -1] = mask[0, 3::4, 0] = True
  found = np.asarray(find(mask))
  assert set(found[mask]) == {0} and set(found[~mask]) == {mask.size}


def test_diagonal_neighbours_touch():
  mask = np.array([[[1, 0, 0, 0], [0, 1, 0, 1]]], bool)
  assert find(mask).tolist() == [[[0, 8, 8, 8], [8, 0, 8, 7]]]


def test_the_choice_and_its_box_are_those_of_the_oracle():
  rng = np.random.default_rng(1)
  masks = rng.random((40, 6, 8)) < 0.3
  priority = rng.random(masks.shape).astype(np.float32)
  chosen = jax.jit(choose_component, static_argnames='least')(masks, priority, least=0.1 * 48)
  boxes = np.asarray(bounding_boxes(chosen))
  none = 0
  for mask, one, box in zip(masks, priority, boxes, strict=True):
    top, left, bottom, right = ael_draws.region(mask, one, (0, 0, 0, 0), 0.1)
    expected = np.zeros_like(mask)
    expected[top:bottom, left:right] = True
    none += not expected.any()
    np.testing.assert_array_equal(box, expected)
  assert 0 < none < 40


def test_a_component_must_have_more_pixels_than_the_least():
  mask = jnp.array([[[True, True, False, True]]])
  priority = jnp.zeros(mask.shape)
  assert choose_component(mask, priority, least=1).tolist() == [[[True, True, False, False]]]
  assert not choose_component(mask, priority, least=2).any()
