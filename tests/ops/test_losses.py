"""Cross-entropies by hand, against torch, and where nothing is labelled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.ops.losses import (
  IGNORE,
  SupervisedLoss,
  cross_entropy,
  group_weights,
  ohem_cross_entropy,
)
from gta_jax.ops.network import Logits
from gta_jax.ops.resizing import resize_bilinear

LOG = np.log


@pytest.fixture
def case():
  """Probabilities of the label: 1/2, 1/4, ignored, 1/8 on a 2x2 image of two classes."""
  probability = np.array([[[0.5, 0.25], [0.3, 0.125]]], np.float32)
  logits = jnp.log(np.stack([probability, 1 - probability], -1))
  return logits, jnp.array([[[0, 0], [IGNORE, 0]]])


def random_case(seed=0, classes=4):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(2, 6, 7, classes)).astype(np.float32)
  labels = rng.integers(0, classes, (2, 6, 7))
  labels[rng.random(labels.shape) < 0.2] = IGNORE
  return logits, labels


def test_mean_and_sum_by_hand(case):
  np.testing.assert_allclose(cross_entropy(*case), LOG(2) * (1 + 2 + 3) / 3, rtol=1e-6)
  np.testing.assert_allclose(cross_entropy(*case, reduction='sum'), LOG(2) * 6, rtol=1e-6)


def test_weights_by_hand(case):
  weights = jnp.array([[[2.0, 0.0], [9.0, 1.0]]])
  np.testing.assert_allclose(cross_entropy(*case, weights), LOG(2) * (2 + 3) / 3, rtol=1e-6)


@pytest.mark.parametrize('loss', [
  cross_entropy, lambda x, y: ohem_cross_entropy(x, y, threshold=0.7, min_kept=3)])
def test_nothing_labelled_gives_zero_and_a_zero_gradient(loss):
  logits = jnp.ones((1, 2, 2, 3)) * 5
  value, gradient = jax.value_and_grad(loss)(logits, jnp.full((1, 2, 2), IGNORE))
  assert value == 0 and jnp.all(gradient == 0)


def test_gradient_is_finite_at_extreme_logits():
  logits = jnp.array([[[[1e4, -1e4], [-1e4, 1e4]]]])
  value, gradient = jax.value_and_grad(cross_entropy)(logits, jnp.array([[[1, IGNORE]]]))
  assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize('pixels', [slice(0, 1), slice(None)])
@pytest.mark.parametrize('min_kept', [1, 10, 1000])
def test_nan_logits_are_hard_and_make_the_loss_nan(pixels, min_kept):
  logits, labels = random_case()
  labels[0, 0, 0] = 1
  logits[0, 0, pixels] = np.nan
  assert np.isnan(ohem_cross_entropy(logits, labels, threshold=0.5, min_kept=min_kept))


def test_class_weights_agree_with_torch():
  torch = pytest.importorskip('torch')
  logits, labels = random_case()
  weights = np.array([0.2, 1.0, 3.0, 0.0], np.float32)
  theirs = torch.nn.functional.cross_entropy(
    torch.tensor(logits).permute(0, 3, 1, 2), torch.tensor(labels), torch.tensor(weights),
    ignore_index=IGNORE)
  ours = cross_entropy(jnp.array(logits), jnp.array(labels), class_weights=jnp.array(weights))
  np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)


@pytest.mark.parametrize('threshold, min_kept', [(0.2, 5), (0.9, 5), (0.01, 1), (0.01, 10_000)])
def test_ohem_against_a_sort(threshold, min_kept):
  logits, labels = random_case(1)
  known = labels != IGNORE
  probability = np.asarray(jax.nn.softmax(logits))[known, labels[known]]
  border = max(np.sort(probability)[min(min_kept, known.sum()) - 1], threshold)
  expected = -np.log(probability[probability <= border]).mean()
  ours = ohem_cross_entropy(
    jnp.array(logits), jnp.array(labels), threshold=threshold, min_kept=min_kept)
  np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_supervised_loss_adds_the_auxiliary_head_at_full_resolution():
  logits, labels = random_case()
  main, auxiliary = jnp.array(logits[:, ::2, ::2]), jnp.array(logits[:, ::3, ::3])
  def full(low):
    return cross_entropy(resize_bilinear(low, (6, 7)), jnp.array(labels))
  loss = SupervisedLoss(auxiliary_weight=0.4)
  np.testing.assert_allclose(
    loss(Logits(main, auxiliary), jnp.array(labels)), full(main) + 0.4 * full(auxiliary),
    rtol=1e-6)
  np.testing.assert_allclose(loss(Logits(main), jnp.array(labels)), full(main), rtol=1e-6)


def test_bad_choices_are_refused(case):
  with pytest.raises(ValueError, match='use one of: mean, sum'):
    cross_entropy(*case, reduction='average')
  with pytest.raises(ValueError, match='choose one'):
    SupervisedLoss(ohem_threshold=0.7, class_weights=(1.0, 2.0))


def test_weights_of_groups_make_the_mean_of_means():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(4, 3, 3, 5)), jnp.float32)
  labels = rng.integers(0, 5, (4, 3, 3))
  labels[:2, 1:] = IGNORE  # uneven void: the two means differ
  labels = jnp.asarray(labels)
  loss = SupervisedLoss()
  found = loss(Logits(logits), labels, group_weights(labels, 2), divisor=jnp.float32(1))
  means = [loss(Logits(logits[i:i + 2]), labels[i:i + 2], divisor=loss.divisor(labels[i:i + 2]))
           for i in (0, 2)]
  np.testing.assert_allclose(found, np.mean(means), rtol=1e-6)
  assert abs(found - loss(Logits(logits), labels)) > 0.01
