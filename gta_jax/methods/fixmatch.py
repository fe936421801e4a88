"""FixMatch for segmentation: a strong view learns the confident labels of the weak one.

Sohn et al., FixMatch, NeurIPS 2020, as the baseline in the repository of UniMatch (Yang, Qi, Feng,
Zhang, Shi, CVPR 2023). One network, no average, no warm-up, no ramp; w is the unlabelled image as
it comes (scaled, cropped, flipped), s = strong view of w, b a box, w' and s' the next image's:

    1  y', c' = argmax, max of softmax f(w')     in evaluation mode, no gradient
    2  y, c   = the same of f(w)                 in train mode, the pass of f(x_l); no gradient
    3  inside b: s, y, c and valid are those of the next image
    4  L_s = sum_ij CE(f(s), y) [c >= 0.95][valid] / sum_ij [valid]   divided by kept or not
    5  L   = (CE(f(x_l), y_l) + L_s) / 2, one SGD step

Cost 10 forward-equivalents: 1 evaluation, 6 for x_l and w, whose pass gives the labels of 2 as it
is learnt from, 3 for s.

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

from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState
from gta_jax.methods.gradient_step import Objective, Outcome, descend, forward, move_on, slope
from gta_jax.methods.learners import Learners, StrongView
from gta_jax.methods.objectives import (
  Term,
  check_joint,
  labelled_term,
  partner_notes,
  passes,
  unlabelled_images,
)
from gta_jax.methods.options import number
from gta_jax.methods.pseudo_labelling import image_size, kept_metrics, oracle_metrics
from gta_jax.methods.supervised import LABELLED
from gta_jax.ops.joining import join, separate
from gta_jax.ops.losses import IGNORE, cross_entropy
from gta_jax.ops.mixing import next_images, paste, unimatch_boxes
from gta_jax.ops.network import Array, Logits, Variables
from gta_jax.ops.pseudo_labels import pseudo_labels
from gta_jax.ops.resizing import resize_bilinear

MODEL, STRONG = 'model', 'strong'
# UniMatch's, 4 GPUs of 2 + 2 images; its code averages gradients once, so that these rates are the
# effective ones.
VOC = {
  'optim.rate': 0.001, 'optim.decoder_multiplier': 10.0, 'optim.weight_decay': 1e-4,
  'train.epochs': 80, 'train.labelled_batch': 8, 'train.unlabelled_batch': 8, 'data.crop': 321,
  'model.output_stride': 16, 'model.multi_grid': (), 'model.aspp_rates': (6, 12, 18),
  'model.dropout': 0.0,
}
CITYSCAPES = VOC | {
  'optim.rate': 0.005, 'optim.decoder_multiplier': 1.0, 'train.epochs': 240, 'data.crop': 801,
  'model.auxiliary': False, 'loss.ohem_threshold': 0.7, 'loss.ohem_min_kept': 800_000,
  'method.threshold': 0.0,
}


class Said(NamedTuple):
  """What the network says of unlabelled images.

  labels: [B,H,W] int32, confidence: [B,H,W] float32, valid: [B,H,W] bool.
  """

  labels: Array
  confidence: Array
  valid: Array


@dataclasses.dataclass(frozen=True)
class FixMatch(StrongView, Learners):
  """Options; the defaults are the published code's on VOC."""

  summary: ClassVar[str] = 'a strong view learns the confident labels of the weak one'
  paper: ClassVar[str] = ("Sohn et al., FixMatch, NeurIPS 2020, as UniMatch's repository has it "
                          'for segmentation')
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {'voc': VOC, 'cityscapes': CITYSCAPES}

  threshold: float = number(0.95, most=1)  # confidence from which a label counts; 0: all
  box_probability: float = number(0.5, most=1)  # that an image shows a box of the next one

  @property
  def cost(self) -> float:
    return 10

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    check_joint(tools, 'the method')
    return partner_notes(tools) if self.box_probability else ()

  def step(self, tools: Tools) -> Callable:
    """One step of the network."""
    optimizer = self.optimizers(tools)[MODEL]

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      key, key_strong = jax.random.split(state.step_key())
      unlabelled, variables = batches['unlabelled'], state.networks[MODEL]
      labelled = labelled_term(tools, batches['labelled'])
      images = unlabelled_images(tools, unlabelled)
      (evaluated,), _ = forward(tools, variables, images, key=key)
      other = jax.tree.map(next_images, label(evaluated, unlabelled['valid']))
      weak, variables = move_on(slope(
        tools, variables, self.weak(tools, labelled, images, unlabelled['valid'], key)), variables)
      own, strong = weak.rows, self.strong_terms(tools, images, weak.rows, other, key_strong)
      objective, = passes(tools, strong, strong, joint=True, key=jax.random.fold_in(key, 1))
      state, metrics = descend(
        state, MODEL, optimizer, weak, slope(tools, variables, objective))
      metrics |= self.metrics(own, tools.num_classes)
      if 'label' in unlabelled:
        labels = jnp.where(own.valid, own.labels, IGNORE)
        metrics |= oracle_metrics(labels, unlabelled, tools.num_classes)
      return state.replace(step=state.step + 1), metrics

    return step

  def weak(
    self, tools: Tools, labelled: Term, images: Array, valid: Array, key: Array
  ) -> Objective:
    """The pass of labelled images and weak views together; its rows are what it Said of these."""
    def loss(variables: Variables, batch: tuple, key: Array) -> Outcome:
      (x, truth), (weak, valid) = batch
      logits, stats = tools.network.apply(
        variables, join(x, weak), train=True, dropout_key=key)
      of_labelled, of_weak = separate(logits, len(x), len(weak))
      losses = {LABELLED: labelled.sole_loss(of_labelled, truth) / 2}
      return Outcome(losses, stats, rows=label(of_weak, valid))

    return Objective(loss, ((labelled.images, labelled.targets), (images, valid)), key)

  def strong_terms(
    self, tools: Tools, images: Array, own: Said, other: Said, key: Array
  ) -> dict[str, Term]:
    """What goes through the network together after the weak views."""
    return {STRONG: self.strong(tools, images, own, other, key, weight=0.5)}

  def strong(
    self, tools: Tools, images: Array, own: Said, other: Said, key: Array, *, weight: float
  ) -> Term:
    """A strong view with a box of the next one's, and its loss (3 and 4)."""
    key_view, key_box = jax.random.split(key)
    view = self.strong_colours(key_view, images, tools.network)
    inside = unimatch_boxes(
      key_box, len(images), image_size(images), probability=self.box_probability)
    mixed = Said(*(paste(x, y, inside) for x, y in zip(own, other, strict=True)))
    view = jnp.where(mixed.valid[..., None], paste(view, next_images(view), inside), 0.0)
    divisor = jnp.maximum(jnp.sum(mixed.valid), 1)
    return Term(view, self.confident(mixed),
                lambda logits, labels: weight * full_cross_entropy(logits, labels, divisor))

  def confident(self, said: Said) -> Array:
    """Labels [B,H,W], IGNORE where padding or not confident."""
    return jnp.where(said.valid & (said.confidence >= self.threshold), said.labels, IGNORE)

  def metrics(self, said: Said, num_classes: int) -> Metrics:
    """Of the weak view's labels."""
    pixels = jnp.maximum(jnp.sum(said.valid), 1)
    confidence = jnp.sum(jnp.where(said.valid, said.confidence, 0.0)) / pixels
    return {'confidence': confidence} | kept_metrics(self.confident(said), num_classes)


def label(logits: Logits, valid: Array) -> Said:
  """Labels and confidence at the images' size."""
  logits_full = resize_bilinear(logits.main, image_size(valid))
  return Said(*pseudo_labels(jax.nn.softmax(logits_full)), valid)


def full_cross_entropy(logits: Logits, labels: Array, divisor: Array) -> Array:
  """Of low-resolution logits against labels [B,H,W], at the labels' resolution."""
  return cross_entropy(
    resize_bilinear(logits.main, image_size(labels)), labels, divisor=divisor)
