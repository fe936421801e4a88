"""What networks learn from in a step: ground truth, and what the teacher says."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gta_jax.methods.accumulation import WHOLE, MicroBatches, mean, over_micro_batches
from gta_jax.methods.options import Method
from gta_jax.ops.losses import IGNORE, SupervisedLoss, cross_entropy, mean_divisor
from gta_jax.ops.mixing import mix
from gta_jax.ops.network import Array, Logits, Network, Params, Variables
from gta_jax.ops.photometric import augment
from gta_jax.ops.pseudo_labels import confidence_threshold, confidence_weights, pseudo_labels
from gta_jax.ops.resizing import resize_bilinear

Metrics = dict[str, Array]
Batch = Mapping[str, Array]


class Lesson(NamedTuple):
  """Images and what a network's logits on them cost.

  images: [B,H,W,3] normalised float.
  targets: tree of [B,...], what the logits are compared with.
  loss: (Logits, targets) -> [] float32, of all images or of some of them: the losses of a batch's
    parts add up to the loss of the batch, as it divides by what the whole batch holds.
  """

  images: Array
  targets: Any
  loss: Callable[[Logits, Any], Array]


def labelled_lesson(network: Network, labelled: Batch, loss: SupervisedLoss) -> Lesson:
  """Labelled images and their loss against ground truth (Eq. 10)."""
  labels = labelled['label'].astype(jnp.int32)
  return Lesson(
    network.normalize(labelled['image']), labels,
    functools.partial(loss, divisor=loss.divisor(labels)))


def pseudo_lesson(
  network: Network,
  method: Method,
  teacher: Variables,
  labelled_images: Array,
  unlabelled: Batch,
  key: Array,
  micro: MicroBatches = WHOLE,
) -> tuple[Lesson, Variables, Metrics]:
  """Step 1 of Algorithm 1: unlabelled images, and their loss against what the teacher says.

  Args:
    network: of the teacher.
    method: every choice.
    teacher: variables.
    labelled_images: [B,H,W,3] normalised float, for teacher passes that see both kinds of images.
    unlabelled: {'image' uint8 [B,H,W,3], 'valid' bool [B,H,W]}, perhaps 'label' for metrics.
    key: PRNG key.
    micro: how the teacher's passes are cut; threshold and weights are those of the whole batch.
  Returns: the lesson (Eq. 1, 2, 6, 7); the teacher, whose running statistics may have moved;
    metrics.
  """
  key_mix, key_photometric, key_dropout = jax.random.split(key, 3)
  valid = unlabelled['valid']
  size = valid.shape[1:3]
  # Padding is blanked, so that whatever stands there has no influence through a receptive field.
  images = jnp.where(valid[..., None], network.normalize(unlabelled['image']), 0.0)

  def see(images: Array, key: Array) -> tuple[Array, tuple]:
    del key
    return network.apply(teacher, images)[0].main, ()

  logits, _, _ = over_micro_batches(see, images, micro, key=key_dropout)
  num_classes = logits.shape[-1]
  labels, confidence = _label(logits, size)
  labels = jnp.where(valid, labels, IGNORE)
  metrics = _oracle_metrics(labels, unlabelled, num_classes) if 'label' in unlabelled else {}
  metrics['confidence'] = jnp.mean(confidence, where=valid)
  if method.confidence_pass == 'clean':
    labels, metrics['threshold'] = _drop(method, labels, confidence)

  images, labels, confidence = mix(
    key_mix, images, labels, confidence, kind=method.mixing, num_classes=num_classes,
    probability=method.mixing_probability)
  images = augment(
    key_photometric, images, network, jitter=method.jitter, greyscale=method.greyscale,
    blur=method.blur)

  if method.confidence_pass == 'mixed' or method.teacher_batch_norm == 'own':
    seen = (labelled_images, images) if method.batch_norm == 'joint' else (images,)
    logits, stats = _second_pass(network, teacher, seen, key=key_dropout, micro=micro)
    if method.teacher_batch_norm == 'own':
      teacher = {**teacher, 'batch_stats': stats}
    if method.confidence_pass == 'mixed':
      _, confidence = _label(logits, size)
      labels, metrics['threshold'] = _drop(method, labels, confidence)

  kept = labels != IGNORE
  weights = _weigh(method, kept, confidence)
  divisor = mean_divisor(labels)

  def pseudo_loss(logits: Logits, targets: tuple[Array, Array]) -> Array:
    logits_full = resize_bilinear(logits.main, size)
    return method.unlabelled_weight * cross_entropy(
      logits_full, *targets, reduction=method.reduction, divisor=divisor)

  pixels = jnp.maximum(jnp.sum(kept), 1)
  metrics |= {
    'kept_share': jnp.mean(kept),
    'mean_weight': jnp.sum(weights) / pixels,
    'kept_share_by_class': _class_counts(labels, num_classes) / pixels,
  }
  return Lesson(images, (labels, weights), pseudo_loss), teacher, metrics


def _label(logits_low: Array, size: tuple[int, int]) -> tuple[Array, Array]:
  """Labels and confidence at the images' size (Eq. 1)."""
  return pseudo_labels(jax.nn.softmax(resize_bilinear(logits_low, size)))


def _second_pass(
  network: Network, teacher: Variables, seen: tuple[Array, ...], *, key: Array, micro: MicroBatches
) -> tuple[Array, Params]:
  """A pass in train mode: logits of the last of `seen`, and the statistics that it leaves."""
  def see(seen: tuple[Array, ...], key: Array) -> tuple[Array, Params]:
    logits, stats = network.apply(teacher, jnp.concatenate(seen), train=True, dropout_key=key)
    return logits.main[-len(seen[-1]):], stats

  logits, stats, count = over_micro_batches(see, seen, micro, key=key)
  return logits, mean(stats, count)


def _by_group(method: Method, function: Callable, *arrays: Array) -> Any:
  """Maps `function` over groups of images that share a threshold: the whole batch, or fewer."""
  batch = len(arrays[0])
  group = method.threshold_images or batch
  if batch % group:
    raise ValueError(
      f'threshold_images={group} does not split a batch of {batch} unlabelled images; '
      'use a divisor of it, or 0 for the whole batch.')
  return jax.vmap(function)(*(x.reshape(-1, group, *x.shape[1:]) for x in arrays))


def _drop(method: Method, labels: Array, confidence: Array) -> tuple[Array, Array]:
  """Labels without the least confident of each group (Eq. 2), and the mean threshold."""
  def of_group(labels: Array, confidence: Array) -> tuple[Array, Array]:
    labelled = labels != IGNORE
    threshold = confidence_threshold(confidence, labelled, drop_fraction=method.drop_fraction)
    return jnp.where(confidence > threshold, labels, IGNORE), threshold

  dropped, threshold = _by_group(method, of_group, labels, confidence)
  return dropped.reshape(labels.shape), jnp.mean(threshold)


def _weigh(method: Method, kept: Array, confidence: Array) -> Array:
  """The weights of the kept pixels, normalised within each group (Eq. 6)."""
  if not method.reweight:
    return kept.astype(jnp.float32)
  weigh = functools.partial(
    confidence_weights, smoothing=method.smoothing, normalizer=method.weight_normalizer)
  return _by_group(method, weigh, confidence, kept).reshape(kept.shape)


def _class_counts(labels: Array, num_classes: int) -> Array:
  return jnp.sum(labels[..., None] == jnp.arange(num_classes), axis=tuple(range(labels.ndim)))


def _oracle_metrics(labels: Array, unlabelled: Batch, num_classes: int) -> Metrics:
  """Accuracy of the teacher's labels where masks happen to exist; nothing learns from it."""
  truth = unlabelled['label'].astype(jnp.int32)
  known = (truth != IGNORE) & (labels != IGNORE)
  right = _class_counts(jnp.where(known & (labels == truth), truth, IGNORE), num_classes)
  there = _class_counts(jnp.where(known, truth, IGNORE), num_classes)
  return {
    'oracle_accuracy': jnp.sum(right) / jnp.maximum(jnp.sum(there), 1),
    'oracle_accuracy_by_class': right / there,
  }
