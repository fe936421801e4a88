"""U2PL's contrast: for each class its anchors, their positive, and a queue of its negatives."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gta_jax.ops.contrastive import draw_below, draw_spread, info_nce, nth_true, unit
from gta_jax.ops.losses import IGNORE
from gta_jax.ops.queues import Queues, push, read

Array = jax.Array

NEGATIVE_RULES = ('paper', 'released')
QUEUE_RULES = ('class', 'position')


class Roles(NamedTuple):
  """What the pixels of a batch are to each class, [K,N] bool each.

  members: reliable pixels of the class; the positive is their mean.
  anchors: those of them that may be anchors.
  negatives: pixels that most likely are not of the class.
  """

  members: Array
  anchors: Array
  negatives: Array


class Contrast(NamedTuple):
  """All that is constant in the loss of a batch.

  image, pixel: [K,A] int32, where in [B,h*w] the anchors of each class are.
  positive: [K,D]. negatives: [K,A,M,D].
  weight: [K], of each anchor of the class.
  """

  image: Array
  pixel: Array
  positive: Array
  negatives: Array
  weight: Array


def find_roles(
  probabilities: Array, labels: Array, supervised: Array, sure: Array, unsure: Array, *,
  confidence: float, low_rank: int, high_rank: int, rule: str = 'paper',
) -> Roles:
  """Tells members, anchors and negatives of each class.

      P_c = {label c, sure}               A_c = {in P_c, p_c > confidence}
      N_c = {supervised, label not c, rank of c < low_rank}
            and {unsure, low_rank <= rank of c < high_rank}

  Args:
    probabilities: [N,K] float32, the teacher's; rank 0 is the likeliest class.
    labels: [N] int32; IGNORE has no role.
    supervised: [N] bool, whether the label is ground truth.
    sure, unsure: [N] bool, reliable and unreliable labels.
    confidence: that an anchor needs at least.
    low_rank, high_rank: see above.
    rule: 'paper', or 'released', which also asks of negatives that their label be c.
  """
  num_classes = probabilities.shape[-1]
  valid, is_class = labels != IGNORE, labels == jnp.arange(num_classes)[:, None]
  of_class = probabilities.T
  rank = jnp.argsort(jnp.argsort(-of_class, axis=0), axis=0)
  members = sure & valid & is_class
  negatives = (supervised & valid & ~is_class & (rank < low_rank)) | (
    unsure & valid & (rank >= low_rank) & (rank < high_rank))
  if rule == 'released':
    negatives &= is_class
  return Roles(members, members & (of_class > confidence), negatives)


def find_contrast(
  key: Array, queues: Queues, sizes: Sequence[int], roles: Roles, embedding: Array, *,
  anchors: int, negatives: int, keys_per_step: int, queue_rule: str = 'class',
) -> tuple[Contrast, Queues]:
  """Fills the queues and draws anchors and negatives, uniformly with replacement.

  Args:
    key: PRNG key.
    queues: of negatives, with these sizes.
    sizes: [K].
    roles: of the N = B h w pixels.
    embedding: [B,h,w,D] float32, the teacher's.
    anchors: A of each class.
    negatives: M of each anchor.
    keys_per_step: the most that are appended to a queue, spread over all that qualify.
    queue_rule: 'class': each class reads its own queue. 'position': class i reads the queue of the
      i-th class that has members, and classes from their number on are left out (published code).
  Returns: the constants, whose loss is sum_c l_c / number of classes with members, and 0 if at most
    one has; and the queues after this batch.
  """
  key_push, key_anchors, key_keys = jax.random.split(key, 3)
  flat = embedding.reshape(-1, embedding.shape[-1])
  ranks, number = draw_spread(
    key_push, jnp.sum(roles.negatives, 1), min(keys_per_step, len(flat)))
  queues = push(queues, sizes, flat[nth_true(roles.negatives, ranks)], number)

  held = jnp.sum(roles.members, 1)
  present = held > 0
  classes = jnp.sum(present)
  positive = jnp.einsum('kn,nd->kd', roles.members.astype(flat.dtype), flat,
                        precision=jax.lax.Precision.HIGHEST) / jnp.maximum(held, 1)[:, None]

  ids = jnp.arange(len(sizes))
  queue_of = jnp.argsort(~present) if queue_rule == 'position' else ids
  candidates, keys = jnp.sum(roles.anchors, 1), queues.count[queue_of]
  counted = (candidates > 0) & (keys > 0) & (classes > 1)
  if queue_rule == 'position':
    counted &= ids < classes
  chosen = nth_true(roles.anchors, draw_below(key_anchors, candidates, (anchors,)))
  drawn = read(queues, sizes, queue_of, draw_below(key_keys, keys, (anchors, negatives)))
  weight = counted / (anchors * jnp.maximum(classes, 1))
  of_image = embedding.shape[1] * embedding.shape[2]
  constants = Contrast(chosen // of_image, chosen % of_image, positive, drawn, weight)
  return jax.lax.stop_gradient(constants), queues


def contrast_loss(
  contrast: Contrast, embedding: Array, images: Array, *, temperature: float
) -> Array:
  """The loss of the anchors that lie in some images of the batch.

  Args:
    contrast: constants of the whole batch.
    embedding: [b,h,w,D] float32, the student's; a gradient reaches it at anchors only.
    images: [b] int32, which of the batch's images these are.
    temperature: T.
  Returns: [] float32; over parts of a batch it adds up to the loss of the batch.
  """
  is_image = contrast.image[..., None] == images
  flat = embedding.reshape(len(embedding), -1, embedding.shape[-1])
  anchors = unit(flat[jnp.argmax(is_image, -1), contrast.pixel])
  exact = jax.lax.Precision.HIGHEST
  positive = jnp.einsum('kad,kd->ka', anchors, unit(contrast.positive), precision=exact)
  negative = jnp.einsum('kad,kamd->kam', anchors, unit(contrast.negatives), precision=exact)
  losses = info_nce(positive, negative, temperature=temperature)
  return jnp.sum(jnp.where(jnp.any(is_image, -1), losses * contrast.weight[:, None], 0.0))
