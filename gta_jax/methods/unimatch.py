"""UniMatch (V1): two strong views and dropped features learn the confident labels of the weak view.

Yang, Qi, Feng, Zhang, Shi, Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic
Segmentation, CVPR 2023. FixMatch (fixmatch.py) with a second strong view, mixed with boxes of its
own, and a feature perturbation: encoder features of x_l and w, half of whose channels are dropped
(for each image, stage and channel; the others doubled), are decoded beside the clean ones:

    f(x_l), f(w), f^(x_l), f^(w)    one pass, train mode: the decoder's batch statistics are those
                                    of clean and dropped features together
    f(s_1), f(s_2)                  a second pass
    L_fp = FixMatch's L_s of f^(w), with the labels and padding of w, never mixed
    L    = (L_x + 0.25 L_1 + 0.25 L_2 + 0.5 L_fp) / 2, one SGD step

f^(x_l) is computed for the statistics and not learnt from. Dropped are stages 0 and 3 of a backbone
with four stages, which DeepLabV3+'s decoder reads; all stages of any other backbone.

Cost 13 forward-equivalents: 1 evaluation, 6 for x_l and w, whose pass labels w too, 6 for the
strong views; and the decoder of the dropped half.

Reported (README; the best epoch on the validation images), ResNet-101, mIoU: VOC's original lists
92 / 183 / 366 / 732 / 1464, crop 321: 75.2 77.2 78.8 79.9 81.2; the authors' three logs give 92:
75.5 74.8 74.7, 183: 76.8 78.2 77.7, 366: 78.5 78.7 78.4, 732: 80.0 80.2 79.5, 1464: 80.8 80.7 81.0.
Cityscapes 186 / 372 / 744 / 1488: 76.6 77.9 79.2 79.5. CPS's augmented lists, 321: 77.0 77.4 77.4
(1/16 to 1/4); U2PL's, 513: 80.9 81.9 80.4. It is later than GTA-Seg's tables.

Where this differs: as in fixmatch.py. The README's Cityscapes figures are with threshold 0; an
earlier version of the paper had 0.95 and stride 8, and other numbers.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Tools
from gta_jax.methods.fixmatch import FixMatch, Said, full_cross_entropy, label
from gta_jax.methods.gradient_step import Objective, Outcome
from gta_jax.methods.objectives import Term
from gta_jax.methods.options import number
from gta_jax.methods.supervised import LABELLED
from gta_jax.ops.channel_dropout import channel_masks, dropped
from gta_jax.ops.joining import join, separate
from gta_jax.ops.network import Array, Logits, Params, Stages, Variables, with_statistics

_DROPPED = (0, 3)  # stages of a backbone with four


@dataclasses.dataclass(frozen=True)
class UniMatch(FixMatch):
  """Options; the defaults are the published code's on VOC."""

  summary: ClassVar[str] = 'two strong views and dropped features learn confident labels'
  paper: ClassVar[str] = ('Yang, Qi, Feng, Zhang, Shi, Revisiting Weak-to-Strong Consistency in '
                          'Semi-Supervised Semantic Segmentation, CVPR 2023')

  strong_weight: float = number(0.25)  # of each strong view's loss
  features_weight: float = number(0.5)  # of the loss on dropped features

  @property
  def cost(self) -> float:
    return 13

  def weak(
    self, tools: Tools, labelled: Term, images: Array, valid: Array, key: Array
  ) -> Objective:
    """See FixMatch; dropped features learn what the clean ones say."""
    divisor = jnp.maximum(jnp.sum(valid), 1)

    def loss(variables: Variables, batch: tuple, key: Array) -> Outcome:
      (x, truth), (weak, valid) = batch
      (of_labelled, of_weak, _, perturbed), stats = perturbed_pass(tools, variables, x, weak, key)
      said = jax.lax.stop_gradient(label(of_weak, valid))
      features = full_cross_entropy(perturbed, self.confident(said), divisor)
      losses = {LABELLED: labelled.sole_loss(of_labelled, truth) / 2,
                'features': self.features_weight / 2 * features}
      return Outcome(losses, stats, rows=said)

    return Objective(loss, ((labelled.images, labelled.targets), (images, valid)), key)

  def strong_terms(
    self, tools: Tools, images: Array, own: Said, other: Said, key: Array
  ) -> dict[str, Term]:
    """See FixMatch: two views."""
    return {f'strong_{i}': self.strong(
      tools, images, own, other, key_view, weight=0.5 * self.strong_weight)
      for i, key_view in enumerate(jax.random.split(key), start=1)}


def perturbed_pass(
  tools: Tools, variables: Variables, labelled: Array, weak: Array, key: Array
) -> tuple[tuple[Logits, ...], Params]:
  """One pass in train mode over both kinds of images, decoded clean and with dropped channels.

  Args:
    tools: of the method.
    variables: of the network.
    labelled, weak: [B,H,W,3] normalised float, of one B or not.
    key: of the dropout, in the network and of the features.
  Returns: the logits of labelled and weak images, clean, and the same with dropped features;
    batch_stats.
  """
  key_features, key_network = jax.random.split(key)
  counts = len(labelled), len(weak)
  stages, stats = tools.network.encode(
    variables, join(labelled, weak), train=True, dropout_key=key_network)
  both = join(stages, drop_channels(key_features, stages))
  decoded, stats = tools.network.decode(
    with_statistics(variables, stats), both, train=True, dropout_key=key_network)
  clean, perturbed = separate(decoded.logits, sum(counts), sum(counts))
  return (*separate(clean, *counts), *separate(perturbed, *counts)), stats


def drop_channels(key: Array, stages: Stages) -> Stages:
  """Every second channel of the perturbed stages dropped at random, the others doubled.

  Args:
    key: PRNG key.
    stages: [B,h,w,C] each; of four, the first and the last are perturbed, else all.
  Returns: the same shapes; a channel is dropped for a whole image, for each stage by itself.
  """
  masks = channel_masks(key, len(stages[0]), tuple(x.shape[-1] for x in stages))
  chosen = _DROPPED if len(stages) == 4 else range(len(stages))
  return tuple(new if i in chosen else old
               for i, (old, new) in enumerate(zip(stages, dropped(stages, masks), strict=True)))
