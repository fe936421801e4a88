"""Losses of the published codes, restated in torch: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from gta_jax.methods import corrmatch_losses
from gta_jax.methods.fixmatch import FixMatch, Said
from gta_jax.ops import class_contrast, equalisation, flaws, grad_cam
from gta_jax.ops.losses import cross_entropy, squared_error
from gta_jax.ops.network import Logits
from gta_jax.ops.order_statistics import percentiles
from gta_jax.ops.pseudo_labels import entropy
from tests import tiny

B, H, W, K = 2, 5, 4, 3
IGNORE = 255


def draw(seed=0):
  """Logits of two kinds [B,H,W,K], labels, confidence and valid [B,H,W]."""
  rng = np.random.default_rng(seed)
  logits, other = rng.normal(size=(2, B, H, W, K)).astype(np.float32)
  valid = rng.random((B, H, W)) > 0.2
  return (logits, other, rng.integers(0, K, (B, H, W)),
          rng.random((B, H, W)).astype(np.float32), valid)


def as_torch(x):
  """[B,H,W,K] -> [B,K,H,W] that a gradient reaches."""
  return torch.from_numpy(np.moveaxis(x, -1, 1).copy()).requires_grad_()


def assert_agree(ours, theirs, logits):
  """Value and gradient of two functions of logits, ours [B,H,W,K], theirs [B,K,H,W]."""
  given = as_torch(logits)
  expected = theirs(given)
  expected.backward()
  value, gradient = jax.jit(jax.value_and_grad(ours))(logits)
  assert float(value) != 0
  np.testing.assert_allclose(value, expected.detach(), rtol=1e-5)
  np.testing.assert_allclose(
    gradient, np.moveaxis(given.grad.numpy(), 1, -1), rtol=1e-5, atol=1e-7)


def confident_cross_entropy(logits, labels, confidence, ignore, threshold):
  """UniMatch's loss of unlabelled images, which CorrMatch has too."""
  loss = functional.cross_entropy(logits, labels, reduction='none')
  loss = loss * ((confidence >= threshold) & (ignore != IGNORE))
  return loss.sum() / (ignore != IGNORE).sum()


def test_unimatch():
  logits, _, labels, confidence, valid = draw()
  method = FixMatch(threshold=0.4, box_probability=0.0)
  said = Said(jnp.asarray(labels), jnp.asarray(confidence), jnp.asarray(valid))
  tools, ignore = tiny.make_tools(tiny.linear_network()), np.where(valid, 0, IGNORE)

  def ours(x):
    term = method.strong(
      tools, jnp.zeros((B, H, W, 3)), said, said, jax.random.key(0), weight=1.0)
    return term.loss(Logits(x), term.targets)

  assert_agree(ours, lambda x: confident_cross_entropy(
    x, torch.from_numpy(labels), torch.from_numpy(confidence), torch.from_numpy(ignore), 0.4),
    logits)


@pytest.mark.parametrize('loss', ['strong', 'kl', 'features'])
def test_corrmatch(loss):
  logits, other, labels, confidence, valid = draw(1)
  mixed_valid = np.random.default_rng(2).random((B, H, W)) > 0.4
  assert valid.sum() != mixed_valid.sum()
  p_weak = np.asarray(jax.nn.softmax(jnp.asarray(other)))
  confident = mixed_valid & (confidence >= 0.4)
  seen = corrmatch_losses.Seen(
    jnp.zeros(()), jnp.asarray(valid), jnp.zeros(()), jnp.asarray(mixed_valid), jnp.zeros(()),
    jnp.zeros(()))
  targets = corrmatch_losses.Targets(
    jnp.float32(0.4), jnp.where(valid & (confidence >= 0.4), labels, IGNORE),
    jnp.where(confident, labels, IGNORE), jnp.asarray(confident), jnp.asarray(p_weak))

  def ours(x):
    return 8 * corrmatch_losses.unlabelled_losses(
      seen, targets, strong=x, strong_spread=x, perturbed=x, weak_spread=x)[loss]

  def theirs(x):
    if loss != 'kl':
      ignore = torch.from_numpy(np.where(valid if loss == 'features' else mixed_valid, 0, IGNORE))
      return confident_cross_entropy(
        x, torch.from_numpy(labels), torch.from_numpy(confidence), ignore, 0.4)
    divergence = functional.kl_div(
      x.log_softmax(1), as_torch(p_weak).detach(), reduction='none').sum(1)
    return (divergence * torch.from_numpy(confident)).sum() / mixed_valid.sum()

  assert_agree(ours, theirs, logits)


def test_u2pl_drops_uncertain_pixels():
  """compute_unsupervised_loss: entropy's percentile among labelled pixels, weight N / N_kept."""
  logits, of_teacher, labels, _, valid = draw(3)
  percent, target = 70, np.where(valid, labels, IGNORE)
  probabilities = jax.nn.softmax(jnp.asarray(of_teacher))
  uncertain = entropy(probabilities)
  high, = percentiles(uncertain, jnp.asarray(valid), jnp.array([percent], jnp.float32))
  kept = jnp.where(uncertain < high, target, IGNORE)
  count = jnp.sum(kept != IGNORE)

  def theirs(x):
    p = torch.softmax(as_torch(of_teacher), 1).detach()
    found = -(p * torch.log(p + 1e-10)).sum(1)
    limit = np.percentile(found[torch.from_numpy(valid)].numpy(), percent)
    with_label = torch.from_numpy(target).masked_fill(
      found.ge(limit) & torch.from_numpy(valid), IGNORE)
    weight = valid.sum() / (with_label != IGNORE).sum()
    return weight * functional.cross_entropy(x, with_label, ignore_index=IGNORE)

  assert 0 < int(count) < valid.sum()
  assert_agree(
    lambda x: cross_entropy(x, kept, divisor=jnp.square(count) / valid.sum()), theirs, logits)


def test_u2pl_contrast():
  """compute_contra_memobank_loss: cross-entropy of cosines over T, the positive first."""
  rng = np.random.default_rng(4)
  anchors, negatives, channels, classes = 6, 7, 5, 2
  embedding = rng.normal(size=(B, H, W, channels)).astype(np.float32)
  pixel = rng.integers(0, H * W, (classes, anchors))
  image = rng.integers(0, B, (classes, anchors))
  positive = rng.normal(size=(classes, channels)).astype(np.float32)
  keys = rng.normal(size=(classes, anchors, negatives, channels)).astype(np.float32)
  weight = np.full(classes, 1 / (anchors * classes), np.float32)
  contrast = class_contrast.Contrast(*map(jnp.asarray, (image, pixel, positive, keys, weight)))

  def theirs(x):
    flat = x.permute(0, 2, 3, 1).reshape(B, H * W, channels)
    total = 0
    for c in range(classes):
      anchor = flat[torch.from_numpy(image[c]), torch.from_numpy(pixel[c])]
      others = torch.cat([torch.from_numpy(positive[c]).expand(anchors, 1, channels),
                          torch.from_numpy(keys[c])], dim=1)
      cosines = torch.cosine_similarity(anchor.unsqueeze(1), others, dim=2)
      total = total + functional.cross_entropy(
        cosines / 0.5, torch.zeros(anchors, dtype=torch.long))
    return total / classes

  assert_agree(lambda x: class_contrast.contrast_loss(
    contrast, x, jnp.arange(B), temperature=0.5), theirs, embedding)


def test_ael():
  """Sampled by the rate of the predicted class, weighed by squared confidence over their sum."""
  logits, _, labels, confidence, valid = draw(5)
  uniform = np.random.default_rng(6).random((B, H, W)).astype(np.float32)
  rates, target = np.array([0.3, 1.0, 0.6], np.float32), np.where(valid, labels, IGNORE)

  def theirs(x):
    kept = torch.from_numpy(uniform) < torch.from_numpy(rates)[x.detach().argmax(1)]
    squares = torch.from_numpy(confidence) ** 2 * (kept & torch.from_numpy(valid))
    losses = functional.cross_entropy(
      x, torch.from_numpy(target), ignore_index=IGNORE, reduction='none')
    return (losses * squares / squares.sum() * torch.from_numpy(confidence >= 0.3)).sum()

  assert_agree(lambda x: equalisation.equalised_cross_entropy(
    x, jnp.asarray(target), jnp.asarray(confidence), jnp.asarray(uniform), jnp.asarray(rates),
    threshold=0.3, pool='batch', images=B)[0], theirs, logits)


def test_pseudo_seg_labels():
  """The fusion of decoder and attention."""
  of_decoder, of_attention, *_ = draw(7)
  both = torch.stack([torch.from_numpy(of_decoder), torch.from_numpy(of_attention)])
  scale = torch.rsqrt((both ** 2).mean() + 1e-8)
  expected = (torch.softmax(both * scale, -1).mean(0)) ** 2
  found = grad_cam.calibrated_fusion(
    jnp.asarray(of_decoder), jnp.asarray(of_attention), jnp.ones((B, H, W), bool), temperature=0.5)
  np.testing.assert_allclose(found, expected / expected.sum(-1, keepdim=True), rtol=1e-5)


def test_gct_consistency_follows_the_better_network():
  """PixelSSL's dynamic consistency: mean squares to the other's prediction where it is better."""
  logits, other, _, flaw, _ = draw(8)
  of_other = np.random.default_rng(9).random((B, H, W)).astype(np.float32)
  own, _, _ = flaws.who_follows(jnp.asarray(flaw), jnp.asarray(of_other), threshold=0.6)
  p, p_other = (jax.nn.softmax(jnp.asarray(x)) for x in (logits, other))
  target = jnp.where(own[..., None], p, p_other)

  def theirs(x):
    mine, others = (torch.from_numpy(np.where(z > 0.6, np.float32(1), z)) for z in (flaw, of_other))
    p = torch.softmax(x, 1)
    better = (mine > others).unsqueeze(1)  # the other's flaw is the smaller one
    wanted = torch.where(better, torch.softmax(as_torch(other), 1), p).detach()
    return functional.mse_loss(p, wanted)

  assert_agree(lambda x: squared_error(
    jax.nn.softmax(x), target, jnp.ones((B, H, W), bool), divisor=B * H * W), theirs, logits)
