"""Cross pseudo supervision (CPS): two networks, each learns from the other's hard labels.

Chen, Yuan, Zeng, Wang, Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision, CVPR
2021; code: TorchSemiSeg. The networks have one shape and differ by their drawn heads alone: no
threshold, no average, no ramp. For k = 1, 2 and the other network j, without mixing:

    y_k  = argmax f_k(x), x = [x_l; u]                               whole numbers: no gradient
    L_k  = CE(f_k(x_l), y) + w CE(f_k(x), y_j)                       one mean over labelled and
                                                                     unlabelled pixels
    one step of each network; labels are those before both steps

With CutMix u is the mixed image and y_k the labels of the clean ones, mixed alike:

    u_m = u (1 - m) + u' m        y_k = argmax (f_k(u) (1 - m) + f_k(u') m)

m are three boxes whose overlaps cancel; the partner u' is the next image of the batch.

Cost 16 forward-equivalents, of two networks two trained passes and two that label; with CutMix 16
too, 14 with cross_on='unlabelled'. The code takes its labels from the trained passes and needs 12
and 16; here XLA merges a part of the passes that are equal.

Reported, ResNet-101, mIoU with CutMix on VOC's augmented lists 662 / 1323 / 2646 / 5291 (Table 2 of
GTA-Seg): 74.48 76.44 77.68 78.64. Unverified, from memory: without CutMix 72.18 75.83 77.55 78.64;
on VOC's original lists 92 / 183 / 366 / 732 64.07 67.42 71.71 75.88.

Where this differs:
- Padding of unlabelled crops has no label; in the code it gets one. labelled_void='learn' is what
  the code does on labelled pixels of 255; by default they count nowhere.
- The code's loss with CutMix leaves out labelled images: cross_on='unlabelled'
  (method=cps_cutmix_released). The paper's formula has them.
- In the code u and u' are two crops of the same image (both loaders have one seed), although
  different images are meant. Here they are different images. The code runs two passes for their
  labels and its running statistics move four times a step; here one pass serves both, three times.
- The code's decoder adds a pooled branch and has 48 low-level channels; this project's does not.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Stage, Tools, TrainState, init_state
from gta_jax.methods.gradient_step import forward, gradient_step
from gta_jax.methods.objectives import Term, labelled_term, passes, unlabelled_images
from gta_jax.methods.options import check_fields, choice, number
from gta_jax.methods.pseudo_labelling import class_counts
from gta_jax.methods.supervised import LABELLED
from gta_jax.models.heads import MakeHead
from gta_jax.ops.losses import IGNORE, cross_entropy
from gta_jax.ops.mixing import next_images, paste, xor_boxes
from gta_jax.ops.network import Array, Logits, Params, Variables, with_statistics
from gta_jax.ops.resizing import resize_bilinear

NAMES: tuple[str, str] = ('first', 'second')
CROSS = 'cross'
OTHER = {'first': 'second', 'second': 'first'}


@dataclasses.dataclass(frozen=True)
class Cps:
  """Options; the defaults are the paper's without CutMix, on VOC."""

  summary: ClassVar[str] = "two networks learn from each other's labels"
  paper: ClassVar[str] = ('Chen, Yuan, Zeng, Wang, Semi-Supervised Semantic Segmentation with '
                          'Cross Pseudo Supervision, CVPR 2021')
  scored: ClassVar[tuple[str, ...]] = NAMES
  compared: ClassVar[tuple[str, ...]] = NAMES
  # Rates and decays are the effective ones: the code divides the gradient by its 4 (VOC) or 8
  # (Cityscapes) GPUs twice. Epochs are those of VOC's 1323 and Cityscapes' 372 labelled images.
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    'voc': {
      'optim.rate': 0.0025, 'optim.decoder_multiplier': 1.0, 'optim.weight_decay': 4e-4,
      'optim.decay': 'kernels', 'train.epochs': 34, 'train.labelled_batch': 8,
      'train.unlabelled_batch': 8, 'data.crop': 512, 'model.output_stride': 16,
      'model.multi_grid': (1, 2, 4), 'model.aspp_rates': (6, 12, 18), 'model.dropout': 0.0,
    },
    'cityscapes': {
      'optim.rate': 0.0025, 'optim.decoder_multiplier': 1.0, 'optim.weight_decay': 8e-4,
      'optim.decay': 'kernels', 'train.epochs': 137, 'train.labelled_batch': 8,
      'train.unlabelled_batch': 8, 'data.crop': 800, 'model.output_stride': 16,
      'model.multi_grid': (1, 2, 4), 'model.aspp_rates': (6, 12, 18), 'model.dropout': 0.0,
      'model.auxiliary': False, 'loss.ohem_threshold': 0.7, 'loss.ohem_min_kept': 400_000,
      'method.cross_weight': 6.0,
    },
  }

  cross_weight: float = number(1.5)  # w of the other network's labels
  cross_on: str = choice('both', 'both', 'unlabelled')  # images that these labels are for
  labelled_void: str = choice('ignore', 'ignore', 'learn')  # what they are for labels of 255
  mixing: str = choice('none', 'none', 'xor_boxes')  # of the unlabelled images

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
    return 2 * (8 - (self.mixing != 'none' and self.cross_on == 'unlabelled'))

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    if self.mixing != 'none' and tools.unlabelled_batch < 2:
      raise ValueError(
        f'train.unlabelled_batch={tools.unlabelled_batch} leaves no other image to mix with, which '
        f'method.mixing={self.mixing} needs; use 2 or more, or method.mixing=none.')
    return ()

  def init(self, key: Array, draw: Callable[..., Variables], tools: Tools) -> TrainState:
    """See Method. Pretrained weights are common to both; what is drawn is each one's own."""
    networks = {'first': draw(), 'second': draw(jax.random.fold_in(key, 1))}
    return init_state(key, networks, dict.fromkeys(NAMES, tools.make_optimizer()))

  def stages(self, tools: Tools) -> tuple[Stage, ...]:
    """See Method. One stage, from the first step on."""
    return (Stage('main', tools.total_steps, self.step(tools), ('labelled', 'unlabelled')),)

  @property
  def order(self) -> tuple[str, str]:
    """Of a network's two passes, as in the code; running statistics lean towards the last."""
    return (LABELLED, CROSS) if self.mixing == 'none' else (CROSS, LABELLED)

  def step(self, tools: Tools) -> Callable:
    """One step of both networks."""
    optimizer = tools.make_optimizer()

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      key_mix, *keys = jax.random.split(state.step_key(), 3)
      keys = dict(zip(NAMES, keys, strict=True))
      labelled = labelled_term(tools, batches['labelled'])
      images = unlabelled_images(tools, batches['unlabelled'])
      valid, clean = batches['unlabelled']['valid'], {}
      if self.mixing != 'none':
        state, clean = self.label_clean(tools, state, images, keys)
        inside = xor_boxes(key_mix, len(images), (images.shape[1], images.shape[2]))
        images, valid, clean = jax.tree.map(
          lambda x: paste(x, next_images(x), inside), (images, valid, clean))

      labels = {}
      for name in NAMES:  # All of them before a network moves.
        labels[name] = self.label(
          tools, state.networks[name], labelled.images, images, keys[name])
        if clean:
          labels[name][CROSS] = clean[name]
      counted = {LABELLED: self.counted(batches['labelled']['label']), CROSS: valid}
      first, second = (labels[name][CROSS] for name in NAMES)
      metrics = agreement(first, second, valid, tools.num_classes)
      for name, other in OTHER.items():
        targets = {kind: jnp.where(counted[kind], labels[other][kind], IGNORE) for kind in counted}
        terms = self.terms(labelled, images, targets)
        objectives = passes(tools, terms, terms, joint=False, key=keys[name])
        state, learnt = gradient_step(tools, state, name, optimizer, *objectives)
        metrics |= learnt
      return state.replace(step=state.step + 1), metrics

    return step

  def label(
    self, tools: Tools, variables: Variables, labelled: Array, unlabelled: Array, key: Array
  ) -> dict[str, Array]:
    """A network's labels [B,H,W] of both kinds of images.

    Its passes are those that it will learn in, keys included: the same logits, no statistics moved.
    """
    images, labels = {LABELLED: labelled, CROSS: unlabelled}, {}
    for i, kind in enumerate(self.order):
      labels[kind], _ = _label(tools, variables, images[kind], jax.random.fold_in(key, i))
    return labels

  def label_clean(
    self, tools: Tools, state: TrainState, images: Array, keys: Mapping[str, Array]
  ) -> tuple[TrainState, dict[str, Array]]:
    """Each network's labels of images before they are mixed; its running statistics move."""
    labels = {}
    for name in NAMES:
      variables = state.networks[name]
      key = jax.random.fold_in(keys[name], len(self.order))
      labels[name], stats = _label(tools, variables, images, key)
      state = state.with_networks(**{name: with_statistics(variables, stats)})
    return state, labels

  def counted(self, truth: Array) -> Array:
    """Which labelled pixels learn from the other network, [B,H,W] bool."""
    if self.cross_on == 'unlabelled':
      return jnp.zeros(truth.shape, bool)
    return jnp.full(truth.shape, True) if self.labelled_void == 'learn' else truth != IGNORE

  def terms(
    self, labelled: Term, images: Array, targets: Mapping[str, Array]
  ) -> dict[str, Term]:
    """What a network learns from: ground truth, and the other's labels of both kinds of images."""
    divisor = jnp.maximum(sum(jnp.sum(x != IGNORE) for x in targets.values()), 1)

    def cross(logits: Logits, labels: Array) -> Array:
      logits_full = resize_bilinear(logits.main, (labels.shape[1], labels.shape[2]))
      return self.cross_weight * cross_entropy(logits_full, labels, divisor=divisor)

    def both(logits: Logits, of_both: tuple) -> Metrics:
      truth, labels = of_both
      return {LABELLED: labelled.sole_loss(logits, truth), 'cross_labelled': cross(logits, labels)}

    terms = {
      LABELLED: Term(labelled.images, (labelled.targets, targets[LABELLED]), both),
      CROSS: Term(images, targets[CROSS], cross),
    }
    return {kind: terms[kind] for kind in self.order}


@dataclasses.dataclass(frozen=True)
class CpsCutMix(Cps):
  """Options; the defaults are the paper's with CutMix, on VOC."""

  summary: ClassVar[str] = "two networks learn from each other's labels of mixed images"
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    **Cps.published, 'cityscapes': {**Cps.published['cityscapes'], 'method.cross_weight': 5.0}}

  cross_weight: float = number(1.0)
  mixing: str = choice('xor_boxes', 'none', 'xor_boxes')


def _label(
  tools: Tools, variables: Variables, images: Array, key: Array
) -> tuple[Array, Params]:
  """A network's labels [B,H,W] in train mode, and its running statistics afterwards."""
  (logits,), stats = forward(tools, variables, images, key=key, train=True)
  logits_full = resize_bilinear(logits.main, (images.shape[1], images.shape[2]))
  return jnp.argmax(logits_full, axis=-1).astype(jnp.int32), stats


def agreement(one: Array, other: Array, valid: Array, num_classes: int) -> Metrics:
  """Of two networks' labels [B,H,W] where `valid`: how many agree, and shares by the first's."""
  pixels = jnp.maximum(jnp.sum(valid), 1)
  by_class = class_counts(jnp.where(valid, one, IGNORE), num_classes)
  return {'agreement': jnp.sum(valid & (one == other)) / pixels,
          'kept_share': jnp.mean(valid), 'kept_share_by_class': by_class / pixels}
