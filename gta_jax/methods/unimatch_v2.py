"""UniMatch V2: two strong views that drop complementary channels (Yang et al., TPAMI 2025).

One step, on B labelled and B unlabelled images (the numbers are those of docs/methods):

    1. The teacher, an average of the student, labels the weak view w:
         kappa_i, y_i = max, argmax of softmax E(w)_i
    2. Of each image two views s_1, s_2 with strong colours; a box is cut into each of them from the
       batch in reverse order, and into labels, confidence and padding with it.
    3. The student sees both in one batch; between encoder and decoder view k is multiplied by M_k
       on every stage, M_1 = 2 Bernoulli(0.5), M_2 = 2 - M_1; half of the pairs keep all channels.
    4. L_k = sum_i CE(P_k,i, y_k,i) [kappa_k,i >= tau][valid] / sum_i [valid]
       L = (L_x + (L_1 + L_2) / 2) / 2
    5. E <- d E + (1 - d) S,  d = min(1 - 1 / (t + 1), 0.996)

Cost 10: teacher 1, labelled 3, two views 6. With one view and no dropout it is that repository's
FixMatch (`fixmatch_ema`, cost 7).

Reported, VOC 2012 (92 183 366 732 1464, the original list), best epoch of the teacher: DINOv2-B
86.3 87.9 88.9 90.0 90.8, DINOv2-S 79.0 85.5 85.9 86.7 87.8; Cityscapes (186 372 744 1488), DINOv2-B
83.6 84.3 84.5 85.1. No figure with a ResNet is known. More in docs/methods/unimatch_v2.md.

Paper and code: the paper reads as if only the last layer were dropped; the code drops at all taps,
and its author says that this is meant (so a public issue); for taps of unequal width masks are
drawn for each level. Different here: the reversed batch is that of all devices together, not of
each; the rate of step t is that of t, where the code sets it after the step, so that its steps 0
and 1 have one rate; strong views blank padding before and after the change of colours.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState
from gta_jax.methods.fixmatch import CITYSCAPES, VOC
from gta_jax.methods.gradient_step import Objective, Outcome, forward, gradient_step
from gta_jax.methods.learners import StrongView
from gta_jax.methods.objectives import Term, check_joint, partner_notes, unlabelled_images
from gta_jax.methods.options import choice, number
from gta_jax.methods.pseudo_labelling import image_size, kept_metrics, oracle_metrics
from gta_jax.methods.supervised import LABELLED, Supervised
from gta_jax.ops.channel_dropout import complementary_masks, dropped
from gta_jax.ops.joining import join, separate
from gta_jax.ops.losses import IGNORE, cross_entropy
from gta_jax.ops.mixing import next_images, paste, unimatch_boxes
from gta_jax.ops.network import Array, Logits, Variables, with_statistics
from gta_jax.ops.pseudo_labels import pseudo_labels
from gta_jax.ops.resizing import resize_bilinear

STRONG = 'strong'

# Nothing is published for a ResNet: it takes UniMatch's rates, crop and epochs.
_DINOV2 = {'optim.name': 'adamw', 'optim.rate': 5e-6, 'optim.decoder_multiplier': 40.0,
           'optim.weight_decay': 0.01}


@dataclasses.dataclass(frozen=True)
class UniMatchV2(StrongView, Supervised):
  """Options; the defaults are the published ones. The teacher's are those of Supervised."""

  summary: ClassVar[str] = 'two strong views drop complementary channels and learn one label'
  paper: ClassVar[str] = ('Yang, Zhao, Zhao, UniMatch V2: Pushing the limit of semi-supervised '
                          'semantic segmentation, TPAMI 2025')
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    'dinov2': _DINOV2,
    'voc': VOC,
    'cityscapes': {field: value for field, value in CITYSCAPES.items()
                   if not field.startswith('method.')},
    'voc_dinov2': {**_DINOV2, 'data.crop': 518, 'train.epochs': 60,
                   'train.labelled_batch': 16, 'train.unlabelled_batch': 16},  # 4 on 4 GPUs each
    'cityscapes_dinov2': {
      **_DINOV2, 'data.crop': 798, 'train.epochs': 180,
      'train.labelled_batch': 8, 'train.unlabelled_batch': 8,  # 2 on 4 GPUs each
      'loss.ohem_threshold': 0.7, 'loss.ohem_min_kept': 4 * 200_000, 'model.auxiliary': False},
  }

  teacher_decay: float = number(0.996, most=1)  # largest d
  ema_ramp: bool = True
  warmup_epochs: float = number(0.0)

  threshold: float = number(0.95)  # tau, a probability; above 1 nothing is kept
  views: int = number(2, least=1, most=2)  # strong views of an image
  feature_dropout: str = choice('complementary', 'complementary', 'none')  # of the views' channels
  undropped: float = number(0.5, most=1)  # share of the pairs of views that keep all channels
  partner: str = choice('reversed', 'reversed', 'next')  # image of the batch that boxes come from
  box_probability: float = number(0.5, most=1)  # that a view gets a box

  def __post_init__(self):
    super().__post_init__()
    if self.views == 1 and self.feature_dropout == 'complementary':
      raise ValueError('views=1 has no second view that could keep what the first one drops; use '
                       'feature_dropout=none, or views=2.')

  @property
  def uses_unlabelled(self) -> bool:
    return True

  @property
  def cost(self) -> float:
    return 1 + super().cost + 3 * self.views

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    if self.joint:
      check_joint(tools)
    if not self.box_probability:
      return super().check(tools)
    notes = partner_notes(tools)
    if self.partner == 'reversed' and tools.unlabelled_batch % 2 and not notes:
      notes = (f'the middle one of train.unlabelled_batch={tools.unlabelled_batch} images is its '
               'own partner (method.partner=reversed), so its boxes change nothing; use an even '
               'batch',)
    return super().check(tools) + notes

  def step(self, tools: Tools, *, handover: bool = False) -> Callable:
    """The step of the main phase; see Supervised.step."""
    optimizers = self.optimizers(tools)

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      keys = jax.random.split(state.step_key(), 4)
      state = self.hand_over(state) if handover else state
      labelled = self.labelled(tools, batches)
      if self.teacher_batch_norm == 'own':
        state = self.move_statistics(tools, state, 'teacher', labelled.images, keys[3])
      said, divisors, metrics = self.teach(
        tools, state.networks['teacher'], batches['unlabelled'], keys[0], keys[1])
      parts = {LABELLED: (labelled.images, labelled.targets), STRONG: said}
      loss = self.make_loss(tools, labelled, divisors)
      together = (parts,) if self.joint else tuple({name: part} for name, part in parts.items())
      objectives = (Objective(loss, batch, jax.random.fold_in(keys[2], i))
                    for i, batch in enumerate(together))
      state, learnt = gradient_step(tools, state, 'student', optimizers['student'], *objectives)
      state, decay = self.follow(tools, state)
      return state.replace(step=state.step + 1), metrics | learnt | decay

    return step

  def teach(
    self, tools: Tools, teacher: Variables, unlabelled: Batch, key: Array, key_masks: Array
  ) -> tuple[dict[str, Any], Array, Metrics]:
    """Steps 1 to 3: the strong views of all images, their labels and masks.

    Returns: {'images' [B,V,H,W,3], 'labels' [B,V,H,W] IGNORE where not kept, 'masks' of each stage
      [B,V,C]}; [V] pixels of each view of the batch that are no padding, at least 1; metrics.
    """
    valid = unlabelled['valid']
    images = unlabelled_images(tools, unlabelled)
    (logits,), _ = forward(tools, teacher, images, key=key)
    labels, confidence = pseudo_labels(
      jax.nn.softmax(resize_bilinear(logits.main, image_size(valid))))
    metrics = {'confidence': jnp.sum(confidence * valid) / jnp.maximum(jnp.sum(valid), 1)}
    if 'label' in unlabelled:
      metrics |= oracle_metrics(
        jnp.where(valid, labels, IGNORE), unlabelled, tools.num_classes)
    kept = valid & (confidence >= self.threshold)
    labels = jnp.where(kept, labels, IGNORE)
    images, labels, valid = self.strong(tools, key, images, labels, valid)
    metrics |= kept_metrics(labels, tools.num_classes)
    masks = ()
    if self.feature_dropout == 'complementary':
      masks = complementary_masks(
        key_masks, len(images), stage_widths(tools, teacher, images[:1, 0]),
        undropped=self.undropped)
    divisors = jnp.maximum(jnp.sum(valid, axis=(0, 2, 3)), 1)
    return {'images': images, 'labels': labels, 'masks': masks}, divisors, metrics

  def strong(
    self, tools: Tools, key: Array, images: Array, labels: Array, valid: Array
  ) -> tuple[Array, Array, Array]:
    """Strong views of every image with boxes of its partner: images, labels, valid [B,V,...]."""
    key_colours, key_box = jax.random.split(key)
    images, labels, valid = (jnp.repeat(x, self.views, axis=0) for x in (images, labels, valid))
    images = self.strong_colours(key_colours, images, tools.network)
    boxes = unimatch_boxes(
      key_box, len(valid), image_size(valid), probability=self.box_probability)

    def mixed(x: Array) -> Array:
      by_image = x.reshape(-1, self.views, *x.shape[1:])
      partner = by_image[::-1] if self.partner == 'reversed' else next_images(by_image)
      return paste(x, partner.reshape(x.shape), boxes).reshape(by_image.shape)

    images, labels, valid = map(mixed, (images, labels, valid))
    # Blanked once more: the change of colours has filled the padding.
    return jnp.where(valid[..., None], images, 0.0), labels, valid

  def make_loss(self, tools: Tools, labelled: Term, divisors: Array) -> Callable:
    """The loss of a batch that holds labelled images, strong views or both (step 4).

    divisors: [V], pixels of each view of the whole batch that are no padding.
    """
    def loss(variables: Variables, batch: dict, key: Array) -> Outcome:
      parts, masks = {}, ()
      if LABELLED in batch:
        parts[LABELLED] = batch[LABELLED][0]
      if STRONG in batch:
        parts[STRONG], masks = jax.tree.map(
          _of_views, (batch[STRONG]['images'], batch[STRONG]['masks']))
      stages, stats = tools.network.encode(
        variables, join(*parts.values()), train=True, dropout_key=key)
      if masks:
        if LABELLED in parts:  # Labelled images keep all channels.
          ones = tuple(jnp.ones((len(parts[LABELLED]), mask.shape[1])) for mask in masks)
          masks = join(ones, masks)
        stages = dropped(stages, masks)
      decoded, stats = tools.network.decode(
        with_statistics(variables, stats), stages, train=True, dropout_key=key)
      logits = separate(decoded.logits, *map(len, parts.values()))
      return Outcome(self._losses(
        labelled, dict(zip(parts, logits, strict=True)), batch, divisors), stats)

    return loss

  def _losses(
    self, labelled: Term, logits: dict[str, Logits], batch: dict, divisors: Array
  ) -> Metrics:
    """The losses of the logits of labelled images and of views, as far as there are any."""
    losses = {}
    if LABELLED in batch:
      losses[LABELLED] = labelled.sole_loss(logits[LABELLED], batch[LABELLED][1]) / 2
    if STRONG in batch:
      labels = batch[STRONG]['labels']
      of_views = resize_bilinear(logits[STRONG].main, image_size(labels[:, 0]))
      of_views = of_views.reshape(len(labels), self.views, *of_views.shape[1:])
      for view in range(self.views):
        losses[f'{STRONG}_{view + 1}'] = cross_entropy(
          of_views[:, view], labels[:, view], divisor=divisors[view]) / (2 * self.views)
    return losses


def _of_views(x: Array) -> Array:
  """[B,V,...] -> [BV,...], the views of an image side by side: on its device."""
  return x.reshape(-1, *x.shape[2:])


def stage_widths(tools: Tools, variables: Variables, images: Array) -> tuple[int, ...]:
  """Channels of each of the backbone's stages."""
  stages, _ = jax.eval_shape(lambda: tools.network.encode(variables, images))
  return tuple(stage.shape[-1] for stage in stages)
