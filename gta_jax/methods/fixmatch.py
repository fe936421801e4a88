"""FixMatch for segmentation: a strong view learns the confident labels of the weak one.

Sohn et al., FixMatch, NeurIPS 2020, as the baseline in the repository of UniMatch (Yang, Qi, Feng,
Zhang, Shi, CVPR 2023). One network, no average, no warm-up, no ramp; w is the unlabelled image as
it comes (scaled, cropped, flipped), s = strong view of w, b a box, w' and s' the next image's:

    1  y', c' = argmax, max of softmax f(w')     in evaluation mode, no gradient
    2  y, c   = the same of f(w)                 in train mode, together with x_l; no gradient
    3  inside b: s, y, c and valid are those of the next image
    4  L_s = sum_ij CE(f(s), y) [c >= 0.95][valid] / sum_ij [valid]   divided by kept or not
    5  L   = (CE(f(x_l), y_l) + L_s) / 2, one SGD step

Cost 12 forward-equivalents: 1 evaluation, 2 and 6 for x_l and w, 3 for s. (The code takes the
labels of 2 from the trained pass, 10; XLA merges a part of the two passes here.)

Reported: none with ResNets in the sources that were at hand; see unimatch.py.

Where this differs:
- In the code the partner comes from a second loader of the same seed: it is another view of the
  same image, which its author says was not meant and makes no difference. Here it is the next one.
- The code sets the rate after a step, so that steps 0 and 1 share the first; here it follows poly.
- The code's decoder has 48 low-level channels; this project's has as many as its ASPP.
- OHEM on Cityscapes counts its least number of pixels over the whole batch, not on each device.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Stage, Tools, TrainState, init_state
from gta_jax.methods.gradient_step import Objective, forward, gradient_step
from gta_jax.methods.objectives import (
  Term,
  check_joint,
  labelled_term,
  passes,
  unlabelled_images,
)
from gta_jax.methods.options import check_fields, number
from gta_jax.methods.pseudo_labelling import class_counts, oracle_metrics
from gta_jax.methods.supervised import LABELLED
from gta_jax.models.heads import MakeHead
from gta_jax.ops.losses import IGNORE, cross_entropy
from gta_jax.ops.mixing import next_images, paste, unimatch_boxes
from gta_jax.ops.network import Array, Logits, Variables
from gta_jax.ops.photometric import strong_view
from gta_jax.ops.pseudo_labels import pseudo_labels
from gta_jax.ops.resizing import resize_bilinear

MODEL, WEAK, STRONG = 'model', 'weak', 'strong'
_VOC = {
  'optim.rate': 0.001, 'optim.decoder_multiplier': 10.0, 'optim.weight_decay': 1e-4,
  'train.epochs': 80, 'train.labelled_batch': 8, 'train.unlabelled_batch': 8, 'data.crop': 321,
  'model.output_stride': 16, 'model.multi_grid': (), 'model.aspp_rates': (6, 12, 18),
  'model.dropout': 0.0,
}


class Said(NamedTuple):
  """What the network says of unlabelled images.

  labels: [B,H,W] int32, confidence: [B,H,W] float32, valid: [B,H,W] bool.
  """

  labels: Array
  confidence: Array
  valid: Array


@dataclasses.dataclass(frozen=True)
class FixMatch:
  """Options; the defaults are the published code's on VOC."""

  summary: ClassVar[str] = 'a strong view learns the confident labels of the weak one'
  paper: ClassVar[str] = ("Sohn et al., FixMatch, NeurIPS 2020, as UniMatch's repository has it "
                          'for segmentation')
  scored: ClassVar[tuple[str, ...]] = (MODEL,)
  compared: ClassVar[tuple[str, ...]] = ()
  # UniMatch's, 4 GPUs of 2 + 2 images; its code averages gradients once, so that these rates are
  # the effective ones.
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    'voc': _VOC,
    'cityscapes': _VOC | {
      'optim.rate': 0.005, 'optim.decoder_multiplier': 1.0, 'train.epochs': 240, 'data.crop': 801,
      'model.auxiliary': False, 'loss.ohem_threshold': 0.7, 'loss.ohem_min_kept': 800_000,
      'method.threshold': 0.0,
    },
  }

  threshold: float = number(0.95, most=1)  # confidence from which a label counts; 0: all
  box_probability: float = number(0.5, most=1)  # that an image shows a box of the next one
  jitter: float = number(0.8, most=1)  # probability of colour jitter for a strong view
  hue: float = number(0.25, most=0.5)  # largest shift of the jitter's hue, in turns
  greyscale: float = number(0.2, most=1)  # probability of greyscale for a strong view
  blur: float = number(0.5, most=1)  # probability of a Gaussian blur for a strong view

  def __post_init__(self):
    check_fields(self)

  @property
  def heads(self) -> Mapping[str, MakeHead]:
    return {}

  @property
  def uses_unlabelled(self) -> bool:
    return True

  @property
  def cost(self) -> float:
    return 12

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    check_joint(tools, 'the method')
    if tools.unlabelled_batch < 2 and self.box_probability:
      return ('train.unlabelled_batch=1 leaves no other image to mix with; boxes show the image '
              'itself',)
    return ()

  def init(self, key: Array, draw: Callable[..., Variables], tools: Tools) -> TrainState:
    """See Method."""
    return init_state(key, {MODEL: draw()}, {MODEL: tools.make_optimizer()})

  def stages(self, tools: Tools) -> tuple[Stage, ...]:
    """See Method. One stage, from the first step on."""
    return (Stage('main', tools.total_steps, self.step(tools), ('labelled', 'unlabelled')),)

  def step(self, tools: Tools) -> Callable:
    """One step of the network."""
    optimizer = tools.make_optimizer()

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      key, key_strong = jax.random.split(state.step_key())
      unlabelled = batches['unlabelled']
      labelled = labelled_term(tools, batches['labelled'])
      images = unlabelled_images(tools, unlabelled)
      own, other = self.say(
        tools, state.networks[MODEL], labelled.images, images, unlabelled['valid'], key)
      objectives = self.objectives(tools, labelled, images, own, other, key, key_strong)
      state, metrics = gradient_step(tools, state, MODEL, optimizer, *objectives)
      metrics |= self.metrics(own, tools.num_classes)
      if 'label' in unlabelled:
        labels = jnp.where(own.valid, own.labels, IGNORE)
        metrics |= oracle_metrics(labels, unlabelled, tools.num_classes)
      return state.replace(step=state.step + 1), metrics

    return step

  def objectives(
    self, tools: Tools, labelled: Term, images: Array, own: Said, other: Said, key: Array,
    key_strong: Array,
  ) -> tuple[Objective, ...]:
    """The pass of labelled images and weak views together, and that of the strong view."""
    weak = {LABELLED: weighed(labelled, 0.5), WEAK: Term(images, (), _nothing)}
    strong = {STRONG: self.strong(tools, images, own, other, key_strong, weight=0.5)}
    return (*passes(tools, weak, (LABELLED,), joint=True, key=key),
            *passes(tools, strong, strong, joint=True, key=jax.random.fold_in(key, 1)))

  def say(
    self, tools: Tools, variables: Variables, labelled: Array, images: Array, valid: Array,
    key: Array,
  ) -> tuple[Said, Said]:
    """What counts outside of boxes, and of the next image within them (1 and 2)."""
    (evaluated,), _ = forward(tools, variables, images, key=key)
    trained = self.weak_logits(tools, variables, labelled, images, key)
    own, other = (label(logits, valid) for logits in (trained, evaluated))
    return own, jax.tree.map(next_images, other)

  def weak_logits(
    self, tools: Tools, variables: Variables, labelled: Array, images: Array, key: Array
  ) -> Logits:
    """Of weak views in the pass that they share with labelled images (2)."""
    return forward(tools, variables, labelled, images, key=key, train=True)[0][1]

  def strong(
    self, tools: Tools, images: Array, own: Said, other: Said, key: Array, *, weight: float
  ) -> Term:
    """A strong view with a box of the next one's, and its loss (3 and 4)."""
    key_view, key_box = jax.random.split(key)
    view = strong_view(key_view, images, tools.network, jitter=self.jitter, hue=self.hue,
                       greyscale=self.greyscale, blur=self.blur)
    inside = unimatch_boxes(key_box, len(images), (images.shape[1], images.shape[2]),
                            probability=self.box_probability)
    mixed = Said(*(paste(x, y, inside) for x, y in zip(own, other, strict=True)))
    view = jnp.where(mixed.valid[..., None], paste(view, next_images(view), inside), 0.0)
    return self.learn(view, mixed, weight=weight)

  def learn(self, images: Array, said: Said, *, weight: float) -> Term:
    """Images and the cross-entropy of confident labels, divided by all valid pixels (4)."""
    divisor = jnp.maximum(jnp.sum(said.valid), 1)
    return Term(images, self.confident(said),
                lambda logits, labels: weight * full_cross_entropy(logits, labels, divisor))

  def confident(self, said: Said) -> Array:
    """Labels [B,H,W], IGNORE where padding or not confident."""
    return jnp.where(said.valid & (said.confidence >= self.threshold), said.labels, IGNORE)

  def metrics(self, said: Said, num_classes: int) -> Metrics:
    """Of the weak view's labels."""
    labels = self.confident(said)
    kept = labels != IGNORE
    return {
      'confidence': jnp.sum(jnp.where(said.valid, said.confidence, 0.0)) / jnp.maximum(
        jnp.sum(said.valid), 1),
      'kept_share': jnp.mean(kept),
      'kept_share_by_class': class_counts(labels, num_classes) / jnp.maximum(jnp.sum(kept), 1),
    }


def label(logits: Logits, valid: Array) -> Said:
  """Labels and confidence at the images' size."""
  logits_full = resize_bilinear(logits.main, (valid.shape[1], valid.shape[2]))
  return Said(*pseudo_labels(jax.nn.softmax(logits_full)), valid)


def weighed(term: Term, weight: float) -> Term:
  """The term with its loss times a weight."""
  return term._replace(loss=lambda logits, targets: weight * term.sole_loss(logits, targets))


def full_cross_entropy(logits: Logits, labels: Array, divisor: Array) -> Array:
  """Of low-resolution logits against labels [B,H,W], at the labels' resolution."""
  logits_full = resize_bilinear(logits.main, (labels.shape[1], labels.shape[2]))
  return cross_entropy(logits_full, labels, divisor=divisor)


def _nothing(logits: Logits, targets: tuple) -> Metrics:
  del logits, targets
  return {}
