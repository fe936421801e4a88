"""A confidence for each class, and the loss that is sampled and weighed by it (AEL)."""

import jax
import jax.numpy as jnp

from gta_jax.ops.losses import IGNORE, cross_entropy

Array = jax.Array

POOLS = ('image', 'batch')
_TINY = 1e-12


def class_shares(labels: Array, *, num_classes: int, pool: str) -> Array:
  """Weights that turn sums over the pixels of a class into the mean over the pixels of a class.

  Args:
    labels: [B,H,W] int32, IGNORE where there is none.
    num_classes: K.
    pool: 'image', the mean over images that hold the class of each image's mean; 'batch', one mean
      over all pixels.
  Returns: [B,K] float32, zero where an image does not hold the class; each class that is there
    weighs one in all.
  """
  counts = jnp.sum(labels[..., None] == jnp.arange(num_classes), axis=(1, 2))
  if pool == 'batch':
    return jnp.where(counts > 0, 1 / jnp.maximum(jnp.sum(counts, axis=0), 1), 0.0)
  held = jnp.maximum(jnp.sum(counts > 0, axis=0), 1)
  return jnp.where(counts > 0, 1 / (jnp.maximum(counts, 1) * held), 0.0)


def class_means(logits: Array, labels: Array, shares: Array) -> Array:
  """The mean probability of every class over the pixels that have it as their label.

  Args:
    logits: [B,H,W,K] float32.
    labels: [B,H,W] int32.
    shares: [B,K] of class_shares, for a batch that these images may be a part of.
  Returns: [K] float32; those of a batch's parts add up to that of the batch.
  """
  own = labels[..., None] == jnp.arange(logits.shape[-1])
  sums = jnp.sum(jnp.where(own, jax.nn.softmax(logits), 0.0), axis=(1, 2))
  return jax.lax.stop_gradient(jnp.sum(shares * sums, axis=0))


def move_confidence(
  confidence: Array, means: Array, shares: Array, *, decay: float, absent: str
) -> Array:
  """The confidence of every class, moved towards the mean of a batch.

      conf_c <- decay conf_c + (1 - decay) m_c

  Args:
    confidence: [K] float32 in [0,1].
    means: [K], m.
    shares: [B,K] of the whole batch.
    decay: in [0,1].
    absent: of a class that the batch does not hold: 'stays', or 'zero' for m_c = 0.
  """
  moved = decay * confidence + (1 - decay) * means
  return moved if absent == 'zero' else jnp.where(jnp.any(shares > 0, axis=0), moved, confidence)


def sampling_rates(confidence: Array, *, beta: float) -> Array:
  """How likely a pixel of each class is kept; one for the class that is learnt worst.

      rate_c = ((1 - conf_c) / max_c (1 - conf_c))^beta

  Returns: [K] float32 in [0,1]; all one where every confidence is one.
  """
  doubt = 1 - confidence
  most = jnp.max(doubt)
  return jnp.where(most > 0, doubt / jnp.where(most > 0, most, 1.0), 1.0) ** beta


def confidence_squared_weights(
  confidence: Array, sampled: Array, *, threshold: float, pool: str, images: int
) -> Array:
  """Weights of pixels by the square of the teacher's confidence.

      v_i = kappa_i^2 sampled_i        w_i = v_i / (sum v + 1e-12) where kappa_i >= threshold

  Pixels below the threshold add nothing, but stay in the divisor.

  Args:
    confidence: [B,H,W] float32, kappa.
    sampled: [B,H,W] bool, false on padding.
    threshold: in [0,1].
    pool: 'image', the sum runs over the image, and images count alike; 'batch', over all.
    images: of the whole batch, which these may be a part of where the pool is 'image'.
  Returns: [B,H,W] float32; their sum is at most one.
  """
  squares = jnp.where(sampled, jnp.square(confidence), 0.0)
  total = jnp.sum(squares) if pool == 'batch' else images * jnp.sum(
    squares, axis=(1, 2), keepdims=True)
  return jnp.where(confidence >= threshold, squares / (total + _TINY), 0.0)


def equalised_cross_entropy(
  logits: Array,
  labels: Array,
  confidence: Array,
  uniform: Array,
  rates: Array,
  *,
  threshold: float,
  pool: str,
  images: int,
) -> tuple[Array, Array]:
  """Cross-entropy on the pixels that are kept with the rate of the class predicted for them.

  Args:
    logits: [B,H,W,K] float32, the student's.
    labels: [B,H,W] int32, the teacher's, IGNORE on padding.
    confidence: [B,H,W] float32, the teacher's.
    uniform: [B,H,W] float32 in [0,1).
    rates: [K], see sampling_rates.
    threshold, pool, images: see confidence_squared_weights.
  Returns: loss [], and which pixels [B,H,W] have one.
  """
  predicted = jnp.argmax(jax.lax.stop_gradient(logits), axis=-1)
  sampled = (uniform < rates[predicted]) & (labels != IGNORE)
  weights = confidence_squared_weights(
    confidence, sampled, threshold=threshold, pool=pool, images=images)
  return cross_entropy(logits, labels, weights, reduction='sum'), weights > 0
