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

m are three boxes whose overlaps cancel; the partner u' is the next image of the batch. Labelled and
mixed pixels have a mean each (L_cps = L^l + L^u, unverified: from memory), so that mixed images
weigh as much as in the code, which has no other: w is 1.5 without CutMix and 1 with it.

Cost 12 forward-equivalents: labels are those of the passes that are learnt from, in which both
networks see the images side by side. With CutMix 14, a pass of each network on the clean images
more; the code runs one for u and one for u', 16.

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
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState
from gta_jax.methods.gradient_step import Objective, Outcome, Slope, descend, forward, in_turn
from gta_jax.methods.learners import Learners
from gta_jax.methods.objectives import Term, labelled_term, unlabelled_images
from gta_jax.methods.options import choice, number
from gta_jax.methods.pseudo_labelling import image_size, kept_metrics
from gta_jax.methods.supervised import LABELLED
from gta_jax.ops.losses import IGNORE, cross_entropy
from gta_jax.ops.mixing import next_images, paste, xor_boxes
from gta_jax.ops.network import Array, Variables, with_statistics
from gta_jax.ops.resizing import resize_bilinear

NAMES: tuple[str, str] = ('first', 'second')
CROSS = 'cross'
OTHER = {'first': 'second', 'second': 'first'}


# TorchSemiSeg's, of CPS and of its MT, CCT and GCT. Rate and decay are the effective ones: the code
# divides the gradient by its 4 GPUs twice. Epochs are those of 1323 labelled images.
TORCHSEMISEG_VOC: Mapping[str, Any] = types.MappingProxyType({
  'optim.rate': 0.0025, 'optim.decoder_multiplier': 1.0, 'optim.weight_decay': 4e-4,
  'optim.decay': 'kernels', 'train.epochs': 34, 'train.labelled_batch': 8,
  'train.unlabelled_batch': 8, 'data.crop': 512, 'model.output_stride': 16,
  'model.multi_grid': (1, 2, 4), 'model.aspp_rates': (6, 12, 18), 'model.dropout': 0.0})


@dataclasses.dataclass(frozen=True)
class Cps(Learners):
  """Options; the defaults are the paper's without CutMix, on VOC."""

  summary: ClassVar[str] = "two networks learn from each other's labels"
  paper: ClassVar[str] = ('Chen, Yuan, Zeng, Wang, Semi-Supervised Semantic Segmentation with '
                          'Cross Pseudo Supervision, CVPR 2021')
  scored: ClassVar[tuple[str, ...]] = NAMES
  compared: ClassVar[tuple[str, ...]] = NAMES
  # On Cityscapes it divides by 8 GPUs; epochs are those of 372 labelled images.
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    'voc': TORCHSEMISEG_VOC,
    'cityscapes': {
      **TORCHSEMISEG_VOC, 'optim.weight_decay': 8e-4, 'train.epochs': 137, 'data.crop': 800,
      'model.auxiliary': False, 'loss.ohem_threshold': 0.7, 'loss.ohem_min_kept': 400_000,
      'method.cross_weight': 6.0,
    },
  }

  cross_weight: float = number(1.5)  # w of the other network's labels
  cross_on: str = choice('both', 'both', 'unlabelled')  # images that these labels are for
  labelled_void: str = choice('ignore', 'ignore', 'learn')  # labelled pixels of 255, with `both`
  mixing: str = choice('none', 'none', 'xor_boxes')  # of the unlabelled images

  @property
  def cost(self) -> float:
    return len(NAMES) * (6 + (self.mixing != 'none'))

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    if self.mixing != 'none' and tools.unlabelled_batch < 2:
      raise ValueError(
        f'train.unlabelled_batch={tools.unlabelled_batch} leaves no other image to mix with, which '
        f'method.mixing={self.mixing} needs; use 2 or more, or method.mixing=none.')
    return ()

  @property
  def order(self) -> tuple[str, str]:
    """Of a network's two passes, as in the code; running statistics lean towards the last."""
    return (LABELLED, CROSS) if self.mixing == 'none' else (CROSS, LABELLED)

  def step(self, tools: Tools) -> Callable:
    """One step of both networks."""
    optimizers = self.optimizers(tools)

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      key_mix, key_clean, key = jax.random.split(state.step_key(), 3)
      both = side_by_side(state)
      labelled = labelled_term(tools, batches['labelled'])
      images = unlabelled_images(tools, batches['unlabelled'])
      valid, clean = batches['unlabelled']['valid'], {}
      if self.mixing != 'none':
        both, clean = label_clean(tools, both, images, key_clean)
        inside = xor_boxes(key_mix, len(images), (images.shape[1], images.shape[2]))
        images, valid, clean = jax.tree.map(
          lambda x: paste(x, next_images(x), inside), (images, valid, clean))

      counted = self.counted(batches['labelled']['label'])
      pixels = {LABELLED: jnp.sum(counted), CROSS: jnp.sum(valid)}
      if self.mixing == 'none':  # one mean over both kinds, else one of each
        pixels = dict.fromkeys(pixels, sum(pixels.values()))
      seen = {LABELLED: (labelled.images, counted, {}, labelled.targets),
              CROSS: (images, valid, clean, ())}
      objectives = {kind: Objective(
        self.make_loss(tools, labelled if kind == LABELLED else None,
                       jnp.maximum(pixels[kind], 1)), seen[kind],
        jax.random.fold_in(key, i)) for i, kind in enumerate(self.order)}
      found = dict(zip(objectives, in_turn(tools, both, objectives.values()), strict=True))
      first, second = (found[CROSS].rows[name] for name in NAMES)
      metrics = agreement(first, second, valid, tools.num_classes)
      for name in NAMES:
        slopes = (of_network(found[kind], name) for kind in self.order)
        state, learnt = descend(state, name, optimizers[name], *slopes)
        metrics |= learnt
      return state.replace(step=state.step + 1), metrics

    return step

  def make_loss(self, tools: Tools, labelled: Term | None, divisor: Array) -> Callable:
    """The loss of a pass of both networks over images of one kind.

    Args:
      tools: of the method.
      labelled: whose loss of ground truth it has; None for unlabelled images.
      divisor: [], of the loss of the other network's labels.
    Returns: the loss of an Objective whose batch is images [B,H,W,3], which pixels learn from the
      other network [B,H,W], labels by network ({}: those of this pass), and ground truth. Its rows
      are the labels by network.
    """
    def loss(variables: Variables, batch: tuple, key: Array) -> Outcome:
      images, counted, labels, truth = batch
      logits, stats = {}, {}
      for i, name in enumerate(NAMES):
        logits[name], stats[name] = tools.network.apply(
          own(variables, name), images, train=True, dropout_key=jax.random.fold_in(key, i))
      full = {name: resize_bilinear(logits[name].main, image_size(counted)) for name in NAMES}
      labels = labels or {name: hard_labels(full[name]) for name in NAMES}
      losses = {}
      for name, other in OTHER.items():
        cross = self.cross_weight * cross_entropy(
          full[name], jnp.where(counted, labels[other], IGNORE), divisor=divisor)
        if labelled is None:
          losses[f'{name}_cross'] = cross
        else:
          losses[f'{name}_cross_labelled'] = cross
          losses[f'{name}_labelled'] = labelled.sole_loss(logits[name], truth)
      return Outcome(losses, stats, rows=labels)

    return loss

  def counted(self, truth: Array) -> Array:
    """Which labelled pixels learn from the other network, [B,H,W] bool."""
    if self.cross_on == 'unlabelled':
      return jnp.zeros(truth.shape, bool)
    return jnp.full(truth.shape, True) if self.labelled_void == 'learn' else truth != IGNORE


@dataclasses.dataclass(frozen=True)
class CpsCutMix(Cps):
  """Options; the defaults are the paper's with CutMix, on VOC."""

  summary: ClassVar[str] = "two networks learn from each other's labels of mixed images"
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    **Cps.published, 'cityscapes': {**Cps.published['cityscapes'], 'method.cross_weight': 5.0}}

  cross_weight: float = number(1.0)
  mixing: str = choice('xor_boxes', 'none', 'xor_boxes')


def side_by_side(state: TrainState) -> Variables:
  """The variables of both networks as those of one: params and batch_stats by network."""
  return {part: {name: state.networks[name][part] for name in NAMES}
          for part in ('params', 'batch_stats')}


def own(both: Variables, name: str) -> Variables:
  """The variables of one of two networks side by side."""
  return {part: tree[name] for part, tree in both.items()}


def of_network(both: Slope, name: str) -> Slope:
  """One network's part of a slope of two networks side by side."""
  prefix = f'{name}_'
  losses = {key.removeprefix(prefix): value for key, value in both.losses.items()
            if key.startswith(prefix)}
  return Slope(both.gradient[name], losses, both.batch_stats[name], {})


def hard_labels(logits_full: Array) -> Array:
  """[B,H,W] int32 of [B,H,W,K]."""
  return jnp.argmax(logits_full, axis=-1).astype(jnp.int32)


def label_clean(
  tools: Tools, both: Variables, images: Array, key: Array
) -> tuple[Variables, dict[str, Array]]:
  """Each network's labels [B,H,W] of images before they are mixed; running statistics move."""
  labels, stats = {}, {}
  for i, name in enumerate(NAMES):
    (logits,), stats[name] = forward(
      tools, own(both, name), images, key=jax.random.fold_in(key, i), train=True)
    labels[name] = hard_labels(resize_bilinear(logits.main, image_size(images)))
  return with_statistics(both, stats), labels


def agreement(one: Array, other: Array, valid: Array, num_classes: int) -> Metrics:
  """Of two networks' labels [B,H,W] where `valid`: how many agree, and shares by the first's."""
  agree = jnp.sum(valid & (one == other)) / jnp.maximum(jnp.sum(valid), 1)
  return {'agreement': agree} | kept_metrics(jnp.where(valid, one, IGNORE), num_classes)
