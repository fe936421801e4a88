"""What CorrMatch compares, and the losses of unlabelled images; the step is in corrmatch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Tools
from gta_jax.methods.pseudo_labelling import image_size, kept_metrics, oracle_metrics
from gta_jax.ops.losses import IGNORE, cross_entropy
from gta_jax.ops.network import Array
from gta_jax.ops.resizing import resize_bilinear


class Seen(NamedTuple):
  """What an objective sees of a batch: [B,H,W,3] normalised, [B,H,W] bool and float32.

  weak, valid: the weak view and where it is no padding.
  strong, mixed_valid: the strong view with its box, and where it is no padding.
  box: where the partner is.
  partner: [B,H,W,K] its class probabilities.
  """

  weak: Array
  valid: Array
  strong: Array
  mixed_valid: Array
  box: Array
  partner: Array


class Targets(NamedTuple):
  """What the losses compare with; all of it constant.

  threshold: [] float32, tau after this step.
  weak: [B,H,W] int32, w's own labels, IGNORE where not confident.
  strong: [B,H,W] int32, the mixed labels after regions have spread, IGNORE outside of K.
  confident: [B,H,W] bool, conf.
  probabilities: [B,H,W,K], of KL.
  """

  threshold: Array
  weak: Array
  strong: Array
  confident: Array
  probabilities: Array


def unlabelled_losses(
  seen: Seen, targets: Targets, *, strong: Array, strong_spread: Array, perturbed: Array,
  weak_spread: Array,
) -> Metrics:
  """Step 7 without labelled images, times the weights of step 8; logits [B,h,w,K] of any size."""
  size = image_size(seen.valid)
  pixels, mixed_pixels = (jnp.maximum(jnp.sum(x), 1) for x in (seen.valid, seen.mixed_valid))

  def of_weak(logits: Array) -> Array:
    return cross_entropy(resize_bilinear(logits, size), targets.weak, divisor=pixels)

  def of_strong(logits: Array) -> Array:
    return cross_entropy(resize_bilinear(logits, size), targets.strong, divisor=mixed_pixels)

  p = targets.probabilities
  divergence = jnp.sum(
    jax.scipy.special.xlogy(p, p) - p * jax.nn.log_softmax(resize_bilinear(strong, size)), axis=-1)
  return {
    'strong': of_strong(strong) / 8,
    'kl': jnp.sum(jnp.where(targets.confident, divergence, 0.0)) / mixed_pixels / 8,
    'features': of_weak(perturbed) / 8,
    'strong_correlation': of_strong(strong_spread) / 16,
    'weak_correlation': of_weak(weak_spread) / 16,
  }


def metrics_of(tools: Tools, targets: Targets, unlabelled: Batch) -> Metrics:
  """What the log shows of the targets; 'label' of the unlabelled batch is optional."""
  in_regions = (targets.strong != IGNORE) & ~targets.confident
  metrics = kept_metrics(targets.strong, tools.num_classes) | {
    'threshold': targets.threshold, 'region_share': jnp.mean(in_regions)}
  if 'label' in unlabelled:
    metrics |= oracle_metrics(targets.weak, unlabelled, tools.num_classes)
  return metrics
