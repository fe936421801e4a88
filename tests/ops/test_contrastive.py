"""InfoNCE against torch and by hand; draws against what they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gta_jax.ops.contrastive import (
  draw_below,
  draw_spread,
  draw_without_replacement,
  info_nce,
  nth_true,
  unit,
)


def test_info_nce_is_torchs_cross_entropy_of_the_positive():
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  cosines = rng.uniform(-1, 1, (5, 4)).astype(np.float32)
  tensor = torch.tensor(cosines, requires_grad=True)
  loss = torch.nn.functional.cross_entropy(tensor / 0.5, torch.zeros(5, dtype=torch.long))
  loss.backward()
  ours, gradient = jax.value_and_grad(
    lambda x: jnp.mean(info_nce(x[:, 0], x[:, 1:], temperature=0.5)))(cosines)
  np.testing.assert_allclose(ours, loss.item(), rtol=1e-5)
  np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-5, atol=1e-7)


def test_negatives_that_are_not_there_do_not_count():
  positive, negatives = jnp.array([0.5, 0.5]), jnp.array([[0.1, 0.9], [0.1, 0.9]])
  counted = jnp.array([[True, False], [False, False]])

  def loss(negatives):
    return info_nce(positive, negatives, counted, temperature=0.1)

  np.testing.assert_allclose(loss(negatives), [np.log(1 + np.exp(-4)), 0], rtol=1e-5)
  gradient = jax.grad(lambda x: jnp.sum(loss(x)))(negatives)
  assert np.isfinite(gradient).all() and (np.asarray(gradient) != 0).tolist() == [
    [True, False], [False, False]]


def test_a_vector_of_zeros_has_a_finite_gradient():
  value, gradient = jax.value_and_grad(lambda x: jnp.sum(unit(x)))(jnp.zeros(3))
  assert value == 0 and np.isfinite(gradient).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 200_000), st.sampled_from([1, 7, 40]), st.integers(0, 5))
def test_spread_ranks_are_distinct_and_all_where_they_are_few(count, number, seed):
  ranks, meant = jax.jit(draw_spread, static_argnums=2)(
    jax.random.key(seed), jnp.array([count]), number)
  ranks = np.asarray(ranks[0, :int(meant[0])])
  assert len(ranks) == min(count, number) == len(set(ranks.tolist()))
  assert ((ranks >= 0) & (ranks < max(count, 1))).all()
  if count <= number:
    assert ranks.tolist() == list(range(count))


def test_spread_ranks_are_equally_likely():
  keys = jax.random.split(jax.random.key(0), 7000)
  ranks, _ = jax.vmap(lambda key: draw_spread(key, jnp.array([7]), 5))(keys)
  np.testing.assert_allclose(np.bincount(ranks.ravel()) / 5000, np.ones(7), atol=0.07)


def test_spread_ranks_of_very_many():
  ranks, _ = draw_spread(jax.random.key(1), jnp.array([2**30]), 40_000)
  steps = np.diff(np.sort(np.asarray(ranks[0])))
  assert steps.min() >= 2**30 // 40_000 and (np.asarray(ranks) >= 0).all()


def test_uniform_ranks_stay_below_their_counts():
  ranks = draw_below(jax.random.key(0), jnp.array([0, 1, 3]), (500, 2))
  assert [sorted(set(row.ravel().tolist())) for row in np.asarray(ranks)] == [[0], [0], [0, 1, 2]]


def test_nth_true():
  mask = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)
  assert nth_true(mask, jnp.array([[0, 2, 1], [0, 1, 2]])).tolist() == [[1, 4, 3], [4, 4, 4]]


def test_draws_follow_their_weights_and_never_take_weight_zero():
  weights = np.array([0.5, 0.0, 0.2, 0.3])
  keys = jax.random.split(jax.random.key(0), 10_000)
  indices, drawn = jax.vmap(
    lambda key: draw_without_replacement(key, jnp.log(jnp.array([weights])), 4))(keys)
  indices, drawn = np.asarray(indices)[:, 0], np.asarray(drawn)[:, 0]
  assert drawn.sum(1).tolist() == [3] * 10_000 and (indices[drawn] != 1).all()
  observed = np.bincount(indices[:, 0], minlength=4)
  expected = 10_000 * weights
  there = weights > 0
  chi_square = ((observed - expected)[there] ** 2 / expected[there]).sum()
  assert chi_square < 13.8  # 2 degrees of freedom, p = 0.001
