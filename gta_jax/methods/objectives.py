"""Terms of an objective: images, and what a network's logits on them cost; and their passes."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Tools
from gta_jax.methods.gradient_step import Objective, Outcome
from gta_jax.ops.joining import join, separate
from gta_jax.ops.losses import group_weights
from gta_jax.ops.network import Array, Logits, Variables

Tree = Any
Losses = Array | Metrics  # one, or several by name


class Term(NamedTuple):
  """Images and what a network's logits on them cost.

  images: [B,H,W,3] normalised float.
  targets: tree of [B,...], what the logits are compared with.
  loss: (Logits, targets) -> [] float32, or several by name, of all images or of some of them: the
    losses of a batch's parts add up to the loss of the batch, as it divides by what the whole
    batch holds.
  """

  images: Array
  targets: Tree
  loss: Callable[[Logits, Any], Losses]

  def sole_loss(self, logits: Logits, targets: Tree) -> Array:
    """The loss of a term that has but one, [] float32."""
    found = self.loss(logits, targets)
    assert not isinstance(found, dict), 'several losses where one is expected'
    return found


def labelled_term(tools: Tools, labelled: Batch, *, group: int = 0) -> Term:
  """Labelled images and their loss against ground truth (Eq. 10).

  Args:
    tools: whose loss it is.
    labelled: {'image' uint8 [B,H,W,3], 'label' uint8 [B,H,W]}.
    group: images whose mean is taken first, before the mean of these means: those of one GPU in
      code that averages over GPUs. 0 is one mean over all labelled pixels.
  """
  labels = labelled['label'].astype(jnp.int32)
  images = tools.network.normalize(labelled['image'])
  loss = tools.loss
  if not group or loss.ohem_threshold is not None:  # OHEM looks at the whole batch.
    return Term(images, labels, functools.partial(loss, divisor=loss.divisor(labels)))

  def of_groups(logits: Logits, targets: tuple[Array, Array]) -> Array:
    labels, weights = targets
    return loss(logits, labels, weights, divisor=jnp.float32(1))

  return Term(images, (labels, group_weights(labels, group, loss.divisor)), of_groups)


def unlabelled_images(tools: Tools, unlabelled: Batch) -> Array:
  """Unlabelled images as networks see them, [B,H,W,3] normalised float32.

  Padding is blanked, so that whatever stands there has no influence through a receptive field.
  """
  images = tools.network.normalize(unlabelled['image'])
  return jnp.where(unlabelled['valid'][..., None], images, 0.0)


def check_joint(tools: Tools, what: str = 'method.batch_norm=joint') -> None:
  """Refuses passes over labelled and unlabelled images together that are cut into unequal counts.

  Raises: ValueError with the counts.
  """
  accumulation = tools.accumulation
  counts = [accumulation.count(n) for n in (tools.labelled_batch, tools.unlabelled_batch)]
  if counts[0] != counts[1]:
    raise ValueError(
      f'train.per_device_batch={accumulation.per_device} cuts {tools.labelled_batch} labelled '
      f'and {tools.unlabelled_batch} unlabelled images into {counts[0]} and {counts[1]} parts, '
      f'which {what} takes together; use batches of one size, or train.per_device_batch=0.')


def partner_notes(tools: Tools, together: int = 0) -> tuple[str, ...]:
  """What is to be said of an unlabelled batch whose images are mixed among themselves.

  together: images of a group, if not the whole batch, that are mixed with each other.
  """
  batch = tools.unlabelled_batch
  if (together or batch) > 1:
    return ()
  groups = ' in groups of 1' if batch > 1 else ''
  return (f'train.unlabelled_batch={batch}{groups} leaves no other image to mix with; an image is '
          'mixed with itself',)


def check_whole(tools: Tools, why: str) -> None:
  """Refuses batches that are cut.

  Raises: ValueError with the reason.
  """
  accumulation = tools.accumulation
  if max(accumulation.count(n) for n in (tools.labelled_batch, tools.unlabelled_batch)) > 1:
    raise ValueError(
      f'train.per_device_batch={accumulation.per_device} cuts the batch, but {why}; use '
      'train.per_device_batch=0 and model.remat=True.')


def passes(
  tools: Tools, terms: Mapping[str, Term], learns: Iterable[str], *, joint: bool, key: Array
) -> tuple[Objective, ...]:
  """The passes of a network that learns from some of the terms, as objectives for gradient_step.

  Args:
    tools: of the method.
    terms: by name, which is the loss's where it has none of its own.
    learns: names of the terms whose losses are added up.
    joint: all terms' images go through as one batch and share their batch statistics, also those
      that the network does not learn from. Otherwise each term is a batch of its own.
    key: of the dropout.
  """
  learns = tuple(learns)
  if joint:
    return (_objective(tools, terms, learns, key),)
  return tuple(
    _objective(tools, {name: terms[name]}, learns, jax.random.fold_in(key, i))
    for i, name in enumerate(learns))


def _objective(
  tools: Tools, terms: Mapping[str, Term], learns: tuple[str, ...], key: Array
) -> Objective:
  def loss(variables: Variables, batch: dict, key: Array) -> Outcome:
    images = [batch[name][0] for name in terms]
    logits, stats = tools.network.apply(variables, join(*images), train=True, dropout_key=key)
    losses = {}
    for (name, term), of_term in zip(
        terms.items(), separate(logits, *map(len, images)), strict=True):
      if name in learns:
        found = term.loss(of_term, batch[name][1])
        losses |= found if isinstance(found, dict) else {name: found}
    return Outcome(losses, stats)

  return Objective(loss, {name: (term.images, term.targets) for name, term in terms.items()}, key)
