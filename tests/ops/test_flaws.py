"""Flaw maps against the oracle's direct windows and hand-made tables."""

import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.ops import flaws
from tests.oracles import gct as oracle


@pytest.mark.parametrize('size', [1, 3, 5, 9])
def test_blur_agrees_with_a_direct_window(size):
  maps = np.random.default_rng(0).random((2, 6, 9)).astype(np.float32)
  expected = np.stack([oracle.blur(image, size) for image in maps])
  np.testing.assert_allclose(flaws.blur(maps, size), expected, rtol=1e-5)
  np.testing.assert_allclose(flaws.blur_matrix(9, size).sum(1), 1, rtol=1e-6)


def test_sizes_are_odd():
  assert [flaws.odd_size(513 / n) for n in (16, 8, 4)] == [33, 65, 129]
  assert flaws.odd_size(0.2) == 1


def test_dilation_reflects():
  maps = np.random.default_rng(1).random((1, 5, 7)).astype(np.float32)
  np.testing.assert_array_equal(flaws.dilate(maps)[0], oracle.dilate(maps[0]))


@pytest.mark.parametrize('unsure', ['as_coded', 'zero'])
def test_handled_flaw(unsure):
  rng = np.random.default_rng(2)
  flaw = rng.normal(size=(4, 6, 7)).astype(np.float32)
  flaw[1] = 0.09 * rng.random((6, 7))  # never above .1: set to 0
  valid = rng.random((4, 6, 7)) > 0.2
  valid[2] = False
  found = np.asarray(flaws.handle_flaw(flaw, valid, size=3, unsure=unsure))
  for image in (0, 1, 3):
    expected = oracle.handle(flaw[image], valid[image], 3, unsure)
    np.testing.assert_allclose(found[image], expected, rtol=1e-4, atol=1e-5)
  assert np.isfinite(found).all() and found[2].max() == 0
  assert found[0][valid[0]].min() == 0 and found[0][valid[0]].max() == pytest.approx(1)
  assert (found[1] <= 0).all() and (unsure == 'as_coded') == bool(found[1].any())


def test_flaw_target():
  rng = np.random.default_rng(3)
  p = rng.dirichlet(np.ones(3), (2, 8, 6)).astype(np.float32)
  labels = rng.integers(0, 3, (2, 8, 6))
  labels[0, :3] = 255
  found = flaws.flaw_target(p, jnp.asarray(labels), sizes=(3, 5))
  expected = [oracle.flaw_target(*pair, (3, 5)) for pair in zip(p, labels, strict=True)]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  perfect = flaws.flaw_target(jnp.eye(3)[labels % 3], jnp.asarray(labels % 3), sizes=(3, 5))
  assert not np.asarray(perfect).any()


def test_four_cases_of_who_follows():
  one, other = jnp.array([0.1, 0.9, 0.9, 0.3]), jnp.array([0.2, 0.2, 0.8, 0.3])
  own, others_own, both_bad = flaws.who_follows(one, other, threshold=0.6)
  assert own.tolist() == [True, False, True, True]
  assert others_own.tolist() == [False, True, True, True]
  assert both_bad.tolist() == [False, False, True, False]
