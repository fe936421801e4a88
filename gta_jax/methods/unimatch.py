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

Cost 15 forward-equivalents: 1 evaluation, 2 and 6 for x_l and w, 6 for the strong views, and the
decoder of the dropped half. (The code takes its labels from the trained pass, 13.)

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

from gta_jax.methods.accumulation import over_micro_batches
from gta_jax.methods.contract import Metrics, Tools
from gta_jax.methods.fixmatch import FixMatch, Said, weighed
from gta_jax.methods.gradient_step import Objective
from gta_jax.methods.objectives import Term, passes
from gta_jax.methods.options import number
from gta_jax.methods.supervised import LABELLED
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
    return 15

  def objectives(
    self, tools: Tools, labelled: Term, images: Array, own: Said, other: Said, key: Array,
    key_strong: Array,
  ) -> tuple[Objective, ...]:
    """The pass of clean and dropped features, and that of the strong views."""
    labelled = weighed(labelled, 0.5)
    features = self.learn(images, own, weight=0.5 * self.features_weight)

    def loss(variables: Variables, batch: tuple, key: Array) -> tuple[Metrics, Params]:
      (x, truth), (weak, labels) = batch
      (clean, _), (_, dropped), stats = perturbed_pass(tools, variables, x, weak, key)
      return {LABELLED: labelled.sole_loss(clean, truth),
              'features': features.sole_loss(dropped, labels)}, stats

    batch = ((labelled.images, labelled.targets), (features.images, features.targets))
    strong = {
      f'strong_{i}': self.strong(tools, images, own, other, key_view,
                                 weight=0.5 * self.strong_weight)
      for i, key_view in enumerate(jax.random.split(key_strong), start=1)}
    return (Objective(loss, batch, key),
            *passes(tools, strong, strong, joint=True, key=jax.random.fold_in(key, 1)))

  def weak_logits(
    self, tools: Tools, variables: Variables, labelled: Array, images: Array, key: Array
  ) -> Logits:
    """See FixMatch: of the pass that dropped features share."""
    def of_part(parts: tuple[Array, Array], key: Array) -> tuple[Logits, tuple]:
      (_, clean), _, _ = perturbed_pass(tools, variables, *parts, key)
      return jax.lax.stop_gradient(clean), ()

    logits, _, _ = over_micro_batches(of_part, (labelled, images), tools.accumulation, key=key)
    return logits


def perturbed_pass(
  tools: Tools, variables: Variables, labelled: Array, weak: Array, key: Array
) -> tuple[tuple[Logits, Logits], tuple[Logits, Logits], Params]:
  """One pass in train mode over both kinds of images, decoded clean and with dropped channels.

  Args:
    tools: of the method.
    variables: of the network.
    labelled, weak: [B,H,W,3] normalised float, of one B or not.
    key: of the dropout, in the network and of the features.
  Returns: the logits of labelled and weak images, clean; the same with dropped features;
    batch_stats.
  """
  key_features, key_network = jax.random.split(key)
  images = jnp.concatenate([labelled, weak])
  stages, stats = tools.network.encode(
    variables, images, train=True, dropout_key=key_network)
  both = jax.tree.map(lambda *x: jnp.concatenate(x), stages, drop_channels(key_features, stages))
  decoded, stats = tools.network.decode(
    with_statistics(variables, stats), both, train=True, dropout_key=key_network)

  def rows(start: int, count: int) -> Logits:
    return jax.tree.map(lambda x: x[start:start + count], decoded.logits)

  clean, dropped = (
    (rows(start, len(labelled)), rows(start + len(labelled), len(weak)))
    for start in (0, len(images)))
  return clean, dropped, stats


def drop_channels(key: Array, stages: Stages) -> Stages:
  """Every second channel of the perturbed stages dropped at random, the others doubled.

  Args:
    key: PRNG key.
    stages: [B,h,w,C] each; of four, the first and the last are perturbed, else all.
  Returns: the same shapes; a channel is dropped for a whole image, for each stage by itself.
  """
  chosen = _DROPPED if len(stages) == 4 else range(len(stages))
  return tuple(
    stage * channel_factors(jax.random.fold_in(key, i), stage) if i in chosen else stage
    for i, stage in enumerate(stages))


def channel_factors(key: Array, stage: Array) -> Array:
  """[B,1,1,C] of 0 and 2, in the stage's dtype."""
  kept = jax.random.bernoulli(key, 0.5, (stage.shape[0], 1, 1, stage.shape[-1]))
  return 2 * kept.astype(stage.dtype)
