"""The same training steps in PyTorch, a yardstick for agreement and for speed (torch_twin.py).

Written from the paper and from the list of its release's differences, without a look at the JAX
side. A step changes the state in place and returns its losses.

Batches: labelled {'image': uint8 [B,H,W,3], 'label': uint8 [B,H,W], 255 = ignore};
unlabelled {'image': uint8 [B,H,W,3], 'valid': bool [B,H,W], may be absent}. Boxes of CutMix:
integers [B,4] of (top, left, bottom, right), half open, or None where nothing is mixed.
"""

import torch
from torch import Tensor, nn
from torch_method import (
  IGNORE,
  Batch,
  Options,
  State,
  alias,
  average,
  confidence_weights,
  cutmix,
  descend,
  follow_statistics,
  forward,
  keep_confident,
  labelled_loss,
  normalize,
  poly_rate,
  pseudo_labels,
  weighted_loss,
)


def supervised_step(state: State, labelled: Batch, options: Options) -> dict[str, Tensor]:
  """Trains the student alone on labelled images."""
  loss = _train_on_labels(state.student, state.student_opt, labelled, state.step, options)
  state.step += 1
  return {'labelled': loss}


def _train_on_labels(network, optimizer, labelled, step, options) -> Tensor:
  x = normalize(labelled['image'], network, options)
  loss = labelled_loss(forward(network, x, options), labelled['label'], options)
  descend(optimizer, loss, poly_rate(step, options))
  return loss.detach()


def paper_warmup_step(state: State, labelled: Batch, options: Options) -> dict[str, Tensor]:
  """Trains all three on labelled images, each with its own momentum."""
  for name in ('teacher', 'assistant'):
    _train_on_labels(getattr(state, name), getattr(state, f'{name}_opt'), labelled, state.step,
                     options)
  return supervised_step(state, labelled, options)


@torch.no_grad()
def _observe(network: nn.Module, x: Tensor, options: Options) -> Tensor:
  return forward(network, x, options)[0]


def released_warmup_step(state: State, labelled: Batch, options: Options) -> dict[str, Tensor]:
  """Trains the student; of the other two, only BatchNorm's running statistics move."""
  x = normalize(labelled['image'], state.student, options)
  for network in (state.teacher, state.assistant):
    _observe(network, x, options)
  return supervised_step(state, labelled, options)


def mean_teacher_step(state: State, labelled: Batch, unlabelled: Batch, options: Options, *,
                      boxes: Tensor | None = None, joint: bool = False) -> dict[str, Tensor]:
  """Eq. 1-5: the student learns from labels and pseudo-labels at once.

  joint: one pass over both kinds of images together instead of one each (BatchNorm differs).
  """
  x_l = normalize(labelled['image'], state.student, options)
  x_u = normalize(unlabelled['image'], state.student, options)
  label, confidence, valid = pseudo_labels(state, x_u, unlabelled, options)
  kept = cutmix(keep_confident(confidence, valid, options.drop_fraction), boxes)
  label, x_u = cutmix(label, boxes), cutmix(x_u, boxes)
  if joint:
    logits, auxiliary = forward(state.student, torch.cat([x_l, x_u]), options)
    count = len(x_l)
    logits_u = logits[count:]
    logits_l = logits[:count], None if auxiliary is None else auxiliary[:count]
  else:
    logits_l = forward(state.student, x_l, options)
    logits_u, _ = forward(state.student, x_u, options)
  loss_l = labelled_loss(logits_l, labelled['label'], options)
  loss_u = weighted_loss(logits_u, label, torch.ones_like(confidence), kept)
  descend(state.student_opt, loss_l + loss_u, poly_rate(state.step, options))
  average(state.teacher, state.student, options.ema_decay)
  follow_statistics(state.teacher, state.student, options)
  state.step += 1
  return {'labelled': loss_l.detach(), 'unlabelled': loss_u.detach()}


def paper_step(state: State, labelled: Batch, unlabelled: Batch, options: Options, *,
               boxes: Tensor | None = None) -> dict[str, Tensor]:
  """Algorithm 1. With boxes, Eq. 2 comes before the mixing and Eq. 6 after it."""
  rate = poly_rate(state.step, options)
  x = normalize(unlabelled['image'], state.assistant, options)
  label, confidence, valid = pseudo_labels(state, x, unlabelled, options)
  kept = cutmix(keep_confident(confidence, valid, options.drop_fraction), boxes)
  weight = confidence_weights(cutmix(confidence, boxes), kept, options.smoothing)
  logits, _ = forward(state.assistant, cutmix(x, boxes), options)
  loss_u = weighted_loss(logits, cutmix(label, boxes), weight, kept)
  descend(state.assistant_opt, loss_u, rate)
  average(state.student, state.assistant, options.ema_decay, options.transmitted)
  loss_l = _train_on_labels(state.student, state.student_opt, labelled, state.step, options)
  average(state.teacher, state.student, options.ema_decay)
  follow_statistics(state.teacher, state.student, options)
  state.step += 1
  return {'labelled': loss_l, 'unlabelled': loss_u.detach()}


def released_loss(logits: Tensor, label: Tensor, confidence: Tensor, options: Options) -> Tensor:
  """The release's Eq. 2, 6 and 7: its own threshold for each group, a normaliser over all pixels.

  Dropped pixels count in the normaliser as (0 + tau), hence kept weights average below one.
  label: int64 [B,H,W], 255 where there is none.
  """
  usable = label != IGNORE
  groups = zip(confidence.chunk(options.device_groups), usable.chunk(options.device_groups),
               strict=True)
  kept = torch.cat([part & (group > torch.quantile(group[part], options.drop_fraction))
                    for group, part in groups])
  weight = confidence * kept + options.smoothing
  return weighted_loss(logits, label, weight / weight.sum() * kept.sum(), kept)


def released_step(state: State, labelled: Batch, unlabelled: Batch, options: Options, *,
                  boxes: Tensor | None = None) -> dict[str, Tensor]:
  """Algorithm 1 as in the published code, whose student and assistant share one classifier."""
  since_warmup = state.step - options.warmup_steps
  decay = min(1 - 1 / (since_warmup + 1), 0.999)
  if since_warmup < options.epoch_steps:
    alias(state.teacher, state.student)
    alias(state.assistant, state.student)
  x_l = normalize(labelled['image'], state.student, options)
  x_u = normalize(unlabelled['image'], state.student, options)
  label, _, valid = pseudo_labels(state, x_u, unlabelled, options)
  label = cutmix(label.masked_fill(~valid, IGNORE), boxes)
  x = torch.cat([x_l, cutmix(x_u, boxes)])
  count = len(x_l)

  logits, _ = forward(state.assistant, x, options)
  confidence = _observe(state.teacher, x, options)[count:].softmax(1).max(1).values
  loss_u = released_loss(logits[count:], label, confidence, options)
  descend(state.assistant_opt, loss_u, options.rate)
  average(state.student, state.assistant, decay, ('backbone', 'decoder', 'auxiliary'), rebind=True)

  logits, auxiliary = forward(state.student, x, options)
  auxiliary = None if auxiliary is None else auxiliary[:count]
  loss_l = labelled_loss((logits[:count], auxiliary), labelled['label'], options)
  descend(state.student_opt, loss_l, poly_rate(state.step, options))
  average(state.teacher, state.student, decay, rebind=True)
  state.step += 1
  return {'labelled': loss_l.detach(), 'unlabelled': loss_u.detach()}


STEPS = {
  'supervised': lambda state, labelled, _, options: supervised_step(state, labelled, options),
  'mean_teacher': mean_teacher_step, 'paper': paper_step, 'released': released_step,
}
