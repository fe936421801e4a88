"""Eq. 1, 2 and 6 by hand, against NumPy, and for any input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gta_jax.ops.pseudo_labels import confidence_threshold, confidence_weights, pseudo_labels

SHAPE = (2, 4, 5)
confidences = hnp.arrays(np.float32, SHAPE, elements=st.floats(0.0625, 1, width=32))
masks = hnp.arrays(bool, SHAPE)
shares = st.sampled_from([0.0, 0.05, 0.2, 0.25, 0.5, 0.8, 1.0])

threshold_of = jax.jit(confidence_threshold, static_argnames=('drop_fraction', 'rule'))
weights_of = jax.jit(confidence_weights, static_argnames=('smoothing', 'normalizer'))


def test_labels_and_confidence_by_hand():
  labels, confidence = pseudo_labels(jnp.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]))
  assert labels.tolist() == [1, 0] and labels.dtype == jnp.int32
  np.testing.assert_allclose(confidence, [0.5, 0.6])


def test_no_gradient_reaches_the_teacher():
  gradient = jax.grad(lambda p: jnp.sum(pseudo_labels(p)[1]))(jnp.array([0.2, 0.8]))
  assert gradient.tolist() == [0, 0]


@settings(max_examples=60, deadline=None)
@given(masks, shares, st.integers(0, 2**32 - 1))
def test_distinct_confidences_drop_exactly_their_share(valid, share, seed):
  confidence = np.random.default_rng(seed).permutation(np.linspace(0.1, 1, valid.size))
  confidence = confidence.astype(np.float32).reshape(SHAPE)
  threshold = threshold_of(confidence, valid, drop_fraction=share)
  dropped = valid & ~(confidence > threshold)
  count = int(np.floor(np.float32(share) * np.float32(valid.sum())))
  assert dropped.sum() == count
  # The dropped ones are the least confident.
  assert set(confidence[dropped]) == set(np.sort(confidence[valid])[:count])


@settings(max_examples=60, deadline=None)
@given(confidences, masks, shares)
def test_ties_are_kept_and_the_threshold_is_the_largest_such(confidence, valid, share):
  threshold = threshold_of(confidence, valid, drop_fraction=share)
  count = int(np.floor(np.float32(share) * np.float32(valid.sum())))
  assert (valid & (confidence <= threshold)).sum() <= count
  if threshold < 1:
    higher = np.nextafter(np.float32(threshold), np.float32(2))
    assert (valid & (confidence <= higher)).sum() > count


def test_agrees_with_the_percentile_of_numpy():
  """numpy's percentile interpolates; the pixels at or below it are those dropped here."""
  confidence = np.random.default_rng(0).uniform(0.2, 1, (3, 64, 64)).astype(np.float32)
  valid = np.ones(confidence.shape, bool)
  ours = (confidence > threshold_of(confidence, valid, drop_fraction=0.2)).sum()
  theirs = (confidence > np.percentile(confidence, 20)).sum()
  assert abs(int(ours) - int(theirs)) <= 1


def test_a_teacher_sure_of_everything_still_teaches():
  confidence = jnp.ones(SHAPE)
  threshold = confidence_threshold(confidence, jnp.ones(SHAPE, bool), drop_fraction=0.2)
  assert jnp.all(confidence > threshold)


def test_confidence_zero_is_a_value_like_others():
  confidence = jnp.array([[[0.0, 0.0, 0.5, 1.0]]])
  valid = jnp.ones(confidence.shape, bool)
  assert confidence_threshold(confidence, valid, drop_fraction=0.25) == -1
  assert jnp.sum(confidence > confidence_threshold(confidence, valid, drop_fraction=0.5)) == 2


def test_threshold_needs_no_gather_over_devices():
  text = threshold_of.lower(
    jnp.ones(SHAPE), jnp.ones(SHAPE, bool), drop_fraction=0.2).compile().as_text()
  assert 'sort' not in text and 'gather' not in text


def test_bad_share_is_refused():
  with pytest.raises(ValueError, match='drop_fraction=20'):
    confidence_threshold(jnp.ones(SHAPE), jnp.ones(SHAPE, bool), drop_fraction=20)


def test_weights_by_hand():
  """c = .5 and 1 kept, .2 dropped, tau = 1: 1.5/3.5*2 and 2/3.5*2."""
  weights = confidence_weights(
    jnp.array([0.5, 1.0, 0.2]), jnp.array([True, True, False]), smoothing=1.0)
  np.testing.assert_allclose(weights, [6 / 7, 8 / 7, 0], rtol=1e-6)


def test_released_normaliser_by_hand():
  """The dropped pixel adds 0 + tau to the lower sum: 1.5/4.5*2 and 2/4.5*2."""
  weights = confidence_weights(
    jnp.array([0.5, 1.0, 0.2]), jnp.array([True, True, False]), smoothing=1.0, normalizer='all')
  np.testing.assert_allclose(weights, [2 / 3, 8 / 9, 0], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(confidences, masks, st.sampled_from([0.0, 0.5, 1.0, 10.0]))
def test_weights_for_any_input(confidence, kept, smoothing):
  weights = np.asarray(weights_of(confidence, kept, smoothing=smoothing))
  assert np.all(weights[~kept] == 0) and np.all(np.isfinite(weights))
  if kept.any():
    np.testing.assert_allclose(weights[kept].mean(), 1, rtol=1e-5)
    order = np.argsort(confidence[kept], kind='stable')
    assert np.all(np.diff(weights[kept][order]) >= 0)


@given(confidences, masks)
@settings(max_examples=30, deadline=None)
def test_endless_smoothing_is_plain_averaging(confidence, kept):
  weights = np.asarray(weights_of(confidence, kept, smoothing=1e6))
  np.testing.assert_allclose(weights, kept.astype(np.float32), atol=1e-5)


@pytest.mark.parametrize('pixels', [10, 11, 13, 100, 263])
@pytest.mark.parametrize('ties', [False, True])
def test_percentile_rule_is_that_of_numpy_and_the_published_code(pixels, ties):
  confidence = np.random.default_rng(pixels).uniform(0.1, 1, pixels).astype(np.float32)
  if ties:
    confidence = np.round(confidence, 1)
  threshold = threshold_of(
    confidence, np.ones(pixels, bool), drop_fraction=0.2, rule='percentile')
  np.testing.assert_array_equal(
    confidence <= np.asarray(threshold), confidence <= np.percentile(confidence, 20))


def test_a_sure_teacher_teaches_nothing_by_the_percentile_rule_and_all_by_rank():
  confidence, valid = np.ones(SHAPE, np.float32), np.ones(SHAPE, bool)
  kept = {rule: int((confidence > threshold_of(confidence, valid, drop_fraction=0.2, rule=rule))
                    .sum()) for rule in ('rank', 'percentile')}
  assert kept == {'rank': confidence.size, 'percentile': 0}


def test_pixels_that_never_had_a_label_do_not_count_as_dropped():
  confidence = jnp.array([[0.9, 0.8, 0.5, 0.0]])
  kept, labelled = jnp.array([[1, 1, 0, 0]], bool), jnp.array([[1, 1, 1, 0]], bool)
  weights = confidence_weights(confidence, kept, labelled, smoothing=1.0, normalizer='all')
  np.testing.assert_allclose(weights[0, :2], np.array([1.9, 1.8]) / (1.9 + 1.8 + 1) * 2, rtol=1e-6)
