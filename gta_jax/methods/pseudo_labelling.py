"""Step 1 of Algorithm 1: what the teacher says of unlabelled images, as a term to learn from."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Tools
from gta_jax.methods.gradient_step import forward
from gta_jax.methods.objectives import Term, unlabelled_images
from gta_jax.methods.options import choice, number
from gta_jax.ops.losses import IGNORE, cross_entropy, mean_divisor
from gta_jax.ops.mixing import MIXINGS, mix
from gta_jax.ops.network import Array, Logits, Variables, with_statistics
from gta_jax.ops.photometric import augment
from gta_jax.ops.pseudo_labels import confidence_threshold, confidence_weights, pseudo_labels
from gta_jax.ops.resizing import resize_bilinear


@dataclasses.dataclass(frozen=True)
class PseudoLabelling:
  """Options. The number behind a field is its row in docs/method.md, "Paper and published code"."""

  drop_fraction: float = number(0.2, most=1)  # share of pixels, the least confident (Eq. 2)
  threshold_images: int = number(0)  # (10) images that share a threshold; 0: all
  # (19, 20) exact share, ties kept; or np.percentile's, ties dropped
  threshold_rule: str = choice('rank', 'rank', 'percentile')
  confidence_pass: str = choice('clean', 'clean', 'mixed')  # (9) which teacher pass weighs
  reweight: bool = True  # Eq. 6, or every kept pixel alike
  smoothing: float = number(1.0)  # tau of Eq. 6
  weight_normalizer: str = choice('kept', 'kept', 'all')  # (7) pixels in Eq. 6's lower sum
  unlabelled_weight: float = number(1.0)  # mu of Eq. 3
  reduction: str = choice('mean', 'mean', 'sum')  # (8) of Eq. 7

  # Strong augmentation of the unlabelled images.
  # (11) boxes: UniMatch's, smaller than cutmix's and image by image
  mixing: str = choice('cutmix', *MIXINGS)
  mixing_images: int = number(0)  # (23) images that are mixed among themselves; 0: all
  mixing_probability: float = number(0.5, most=1)  # that a batch is mixed; boxes: an image
  jitter: float = number(0.0, most=1)  # probability of colour jitter for an image
  greyscale: float = number(0.0, most=1)  # probability of greyscale for an image
  # Largest shift of the jitter's hue in turns of the colour circle; above 0 the changes of colour
  # come in a random order. UniMatch's strong view: jitter 0.8, greyscale 0.2, blur 0.5, hue 0.25.
  hue: float = number(0.0, most=0.5)
  blur: float = number(0.0, most=1)  # probability of a Gaussian blur for an image


class Teaching(NamedTuple):
  """term: the images and their loss. teacher: its running statistics may have moved."""

  term: Term
  teacher: Variables
  metrics: Metrics


def teach(
  tools: Tools,
  options: PseudoLabelling,
  teacher: Variables,
  labelled_images: Array,
  unlabelled: Batch,
  key: Array,
  *,
  joint: bool,
  own_statistics: bool,
) -> Teaching:
  """Labels unlabelled images, drops and weighs their pixels, and augments them (Eq. 1, 2, 6, 7).

  Args:
    tools: of the method; threshold and weights are those of the whole batch however it is cut.
    options: every choice.
    teacher: variables.
    labelled_images: [B,H,W,3] normalised float, for teacher passes that see both kinds of images.
    unlabelled: {'image' uint8 [B,H,W,3], 'valid' bool [B,H,W]}, perhaps 'label' for metrics.
    key: PRNG key.
    joint: whether the teacher's pass in train mode sees both kinds of images.
    own_statistics: whether that pass moves the teacher's running statistics (13).
  """
  key_mix, key_photometric, key_dropout = jax.random.split(key, 3)
  said, metrics = _say(tools, options, teacher, unlabelled, key_dropout)
  num_classes, size = tools.num_classes, image_size(unlabelled['valid'])
  # What is to be dropped is mixed along and dropped afterwards: ClassMix reads whole labels.
  images, labels, confidence, kept = mix(
    key_mix, *said, kind=options.mixing, num_classes=num_classes,
    probability=options.mixing_probability,
    group=largest_divisor(len(said[0]), options.mixing_images))
  images = augment(
    key_photometric, images, tools.network, jitter=options.jitter, greyscale=options.greyscale,
    blur=options.blur, hue=options.hue)
  # Blanked once more: the change of colours has filled padding, and boxes that were cut out.
  images = jnp.where((labels != IGNORE)[..., None], images, 0.0)

  if options.confidence_pass == 'mixed' or own_statistics:
    seen = (labelled_images, images) if joint else (images,)
    found, stats = forward(tools, teacher, *seen, key=key_dropout, train=True)
    if own_statistics:
      teacher = with_statistics(teacher, stats)
    if options.confidence_pass == 'mixed':
      _, confidence = _label(found[-1], size)
      kept, metrics['threshold'] = _keep(options, labels, confidence)

  term, shares = _term(options, images, labels, confidence, kept, num_classes)
  return Teaching(term, teacher, metrics | shares)


def _term(
  options: PseudoLabelling, images: Array, labels: Array, confidence: Array, kept: Array,
  num_classes: int,
) -> tuple[Term, Metrics]:
  """The images and the loss of their kept pixels (Eq. 6, 7), and shares for the log."""
  size, labelled = image_size(labels), labels != IGNORE
  labels = jnp.where(kept, labels, IGNORE)
  kept = labels != IGNORE
  weights = _weigh(options, kept, confidence, labelled)
  divisor = mean_divisor(labels)

  def loss(logits: Logits, targets: tuple[Array, Array]) -> Array:
    logits_full = resize_bilinear(logits.main, size)
    return options.unlabelled_weight * cross_entropy(
      logits_full, *targets, reduction=options.reduction, divisor=divisor)

  pixels = jnp.maximum(jnp.sum(kept), 1)
  shares = {
    'kept_share': jnp.mean(kept),
    'mean_weight': jnp.sum(weights) / pixels,
    'kept_share_by_class': class_counts(labels, num_classes) / pixels,
  }
  return Term(images, (labels, weights), loss), shares


def _say(
  tools: Tools, options: PseudoLabelling, teacher: Variables, unlabelled: Batch, key: Array
) -> tuple[tuple[Array, Array, Array, Array], Metrics]:
  """Images, labels, confidence and what is kept, before augmentation (Eq. 1, 2), and metrics."""
  valid = unlabelled['valid']
  images = unlabelled_images(tools, unlabelled)
  (logits,), _ = forward(tools, teacher, images, key=key)
  labels, confidence = _label(logits, image_size(valid))
  labels = jnp.where(valid, labels, IGNORE)
  metrics = oracle_metrics(labels, unlabelled, tools.num_classes) if 'label' in unlabelled else {}
  confident = jnp.sum(jnp.where(valid, confidence, 0.0))
  metrics['confidence'] = confident / jnp.maximum(jnp.sum(valid), 1)
  kept = valid
  if options.confidence_pass == 'clean':
    kept, metrics['threshold'] = _keep(options, labels, confidence)
  return (images, labels, confidence, kept), metrics


def image_size(pixels: Array) -> tuple[int, int]:
  """(H, W) of [B,H,W,...]."""
  return pixels.shape[1], pixels.shape[2]


def largest_divisor(batch: int, most: int) -> int:
  """The largest divisor of a batch that is not above `most`; the batch itself for 0."""
  return max(n for n in range(1, min(most or batch, batch) + 1) if batch % n == 0)


def _label(logits: Logits, size: tuple[int, int]) -> tuple[Array, Array]:
  """Labels and confidence at the images' size (Eq. 1)."""
  return pseudo_labels(jax.nn.softmax(resize_bilinear(logits.main, size)))


def _by_group(options: PseudoLabelling, function: Callable, *arrays: Array) -> Any:
  """Maps `function` over groups of images that share a threshold: the whole batch, or fewer."""
  group = largest_divisor(len(arrays[0]), options.threshold_images)
  if group == len(arrays[0]):
    # Not as one group of an axis more: XLA would then gather what is kept on all devices.
    return function(*arrays)
  return jax.vmap(function)(*(x.reshape(-1, group, *x.shape[1:]) for x in arrays))


def _keep(options: PseudoLabelling, labels: Array, confidence: Array) -> tuple[Array, Array]:
  """All but the least confident pixels of each group (Eq. 2), and the mean threshold."""
  def of_group(labels: Array, confidence: Array) -> tuple[Array, Array]:
    labelled = labels != IGNORE
    threshold = confidence_threshold(
      confidence, labelled, drop_fraction=options.drop_fraction, rule=options.threshold_rule)
    return labelled & (confidence > threshold), threshold

  kept, threshold = _by_group(options, of_group, labels, confidence)
  return kept.reshape(labels.shape), jnp.mean(threshold)


def _weigh(
  options: PseudoLabelling, kept: Array, confidence: Array, labelled: Array
) -> Array:
  """The weights of the kept pixels, normalised within each group (Eq. 6)."""
  if not options.reweight:
    return kept.astype(jnp.float32)
  weigh = functools.partial(
    confidence_weights, smoothing=options.smoothing, normalizer=options.weight_normalizer)
  return _by_group(options, weigh, confidence, kept, labelled).reshape(kept.shape)


def class_counts(labels: Array, num_classes: int) -> Array:
  """[K] pixels of each class in integer labels of any shape."""
  return jnp.sum(labels[..., None] == jnp.arange(num_classes), axis=tuple(range(labels.ndim)))


def kept_metrics(labels: Array, num_classes: int) -> Metrics:
  """How many pixels learn, and the share of each class [K] among them.

  labels: [B,H,W] int32, IGNORE where nothing is learnt.
  """
  kept = class_counts(labels, num_classes)
  total = jnp.sum(kept)
  return {'kept_share': total / labels.size, 'kept_share_by_class': kept / jnp.maximum(total, 1)}


def oracle_metrics(labels: Array, unlabelled: Batch, num_classes: int) -> Metrics:
  """Accuracy of pseudo-labels where masks happen to exist; nothing learns from it.

  Args:
    labels: [B,H,W] int32, IGNORE where there is none.
    unlabelled: with 'label' uint8 [B,H,W].
    num_classes: K.
  """
  truth = unlabelled['label'].astype(jnp.int32)
  known = (truth != IGNORE) & (labels != IGNORE)
  right = class_counts(jnp.where(known & (labels == truth), truth, IGNORE), num_classes)
  there = class_counts(jnp.where(known, truth, IGNORE), num_classes)
  return {
    'oracle_accuracy': jnp.sum(right) / jnp.maximum(jnp.sum(there), 1),
    'oracle_accuracy_by_class': right / there,
  }
