"""CCT: cross-consistency training (Ouali, Hudelot, Tami; CVPR 2020).

One encoder, a main decoder that learns from ground truth alone, and auxiliary decoders that see
perturbed features of unlabelled images and are to say what the main decoder says of the clean ones.
Only the encoder profits; evaluation knows nothing of the auxiliary decoders.

    1  L_s = CE of main(enc(x_l)), over pixels with p_label < max(T, that of rank B from below)
    2  f = enc(x_u), t = sg softmax main(f), foreground = argmax main(f) != 0
    3  z_j = aux_j(perturbation_j(f)): VAT, channel dropout, guided cutout, context and object
       masking, feature drop, feature noise
    4  L_u = mean over decoders, pixels and classes of (softmax z_j - t)^2
    5  L = L_s + w L_u, w = 30 exp(-5 (1 - k/K)^2), then 30; one step of SGD

L_s reaches encoder and main decoder, L_u encoder and auxiliary decoders.
T(k) = 1/C + (.9 - 1/C)(1 - exp(-5 min(k/K', 1))), K' = 40 % of the steps.

Cost: 6 forward-equivalents of B images, and the decoders. These go one after the other and are
computed again in the backward pass, so that one decoder's logits are in memory at a time. Reported
figures: docs/methods/cct.md.

cct_torchsemiseg is the version of TorchSemiSeg, of GTA-Seg's Table 2 (unverified: that the table
quotes it): f is the decoder's feature, 1x1 decoders, no VAT, the full weight from the first step.

Deviations: the encoder is the backbone of this project, without pyramid pooling, and the main
decoder its DeepLabV3+. VAT's direction is exact; the shipped one, lost in rounding, is a switch.
Guided cutout works on the features' grid, on the components with the longest borders. The
unlabelled pass is free of dropout, as are the published decoders. Padding has no loss and is no
foreground. The shipped config has plain CE (supervised=plain). Left out: KL and JS as distance,
confidence mask, weak labels, pairwise term. unverified: the paper as remembered.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gta_jax.methods.cct_perturbations import KINDS, NEED_BACKGROUND, Seen, perturbation, see
from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState
from gta_jax.methods.cps import TORCHSEMISEG_VOC
from gta_jax.methods.gradient_step import Objective, Outcome, gradient_step
from gta_jax.methods.learners import Learners
from gta_jax.methods.objectives import (
  Term,
  check_whole,
  labelled_term,
  passes,
  unlabelled_images,
)
from gta_jax.methods.options import choice, number
from gta_jax.methods.supervised import LABELLED
from gta_jax.models.auxiliary_decoders import LinearDecoders, ShufflingDecoders
from gta_jax.models.heads import MakeHead
from gta_jax.ops.losses import bootstrapped_cross_entropy
from gta_jax.ops.network import Array, Logits, Variables, with_statistics
from gta_jax.ops.ramps import sigmoid_ramp
from gta_jax.ops.resizing import resize_bilinear

HEAD = 'auxiliary_decoders'


@dataclasses.dataclass(frozen=True)
class Cct(Learners):
  """Options; the defaults are the paper's."""

  summary: ClassVar[str] = 'auxiliary decoders of perturbed features agree with the main decoder'
  paper: ClassVar[str] = ('Ouali, Hudelot, Tami, Semi-Supervised Semantic Segmentation with '
                          'Cross-Consistency Training, CVPR 2020')
  scored: ClassVar[tuple[str, ...]] = ('student',)
  # The scales are of a long side of 400 pixels, in VOC's images of 500. One GPU: rates as flags.
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {'voc': {
    'data.crop': 320, 'data.scale': (0.4, 1.6), 'optim.rate': 0.001,
    'optim.decoder_multiplier': 10.0, 'optim.weight_decay': 1e-4, 'train.epochs': 80,
    'train.labelled_batch': 10, 'train.unlabelled_batch': 10, 'model.multi_grid': (1, 2, 4)}}

  # Auxiliary decoders of each kind.
  vat: int = number(2)
  dropout: int = number(6)
  guided_cutout: int = number(6)
  context_masking: int = number(2)  # keeps the foreground
  object_masking: int = number(2)  # keeps the background
  feature_drop: int = number(6)
  feature_noise: int = number(6)

  feature: str = choice('encoded', 'encoded', 'fused')  # backbone's last stage, decoder's feature
  vat_radius: float = number(2.0)  # norm of the adversarial perturbation of an image's features
  vat_direction: str = choice('exact', 'exact', 'as_shipped')
  consistency_weight: float = number(30.0)  # w after the ramp
  ramp_share: float = number(0.1, most=1)  # K, as a share of all steps
  supervised: str = choice('bootstrapped', 'bootstrapped', 'plain')  # or the config's loss
  bootstrap_top: float = number(0.9, most=1)  # what T rises to
  bootstrap_share: float = number(0.4, most=1)  # K', as a share of all steps

  def __post_init__(self):
    super().__post_init__()
    if not self.count:
      raise ValueError(f'{", ".join(KINDS)} are all 0, which leaves no auxiliary decoder; set one '
                       'of them to 1 or more, or train with method=sup_only.')

  @property
  def count(self) -> int:
    """J, the number of auxiliary decoders."""
    return sum(getattr(self, kind) for kind in KINDS)

  def decoders(self) -> Iterator[tuple[str, range]]:
    """Kinds of perturbation, and the numbers of their decoders."""
    start = 0
    for kind in KINDS:
      numbers = range(start, start := start + getattr(self, kind))
      if numbers:
        yield kind, numbers

  @property
  def heads(self) -> Mapping[str, MakeHead]:
    kind = ShufflingDecoders if self.feature == 'encoded' else LinearDecoders
    return {HEAD: functools.partial(kind, count=self.count)}

  @property
  def cost(self) -> float:
    return 6

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    guided = [f'method.{kind}' for kind in NEED_BACKGROUND if getattr(self, kind)]
    if guided and tools.classes and tools.classes[0].lower() != 'background':
      raise ValueError(
        f'the first class is {tools.classes[0]!r}, but {", ".join(guided)} take class 0 for the '
        "background; set them to 0, or name class 0 'background' if it is.")
    if self.supervised == 'plain':
      return ()
    check_whole(tools, 'the hard pixels of method.supervised=bootstrapped are those of the whole '
                'batch (plain has none)')
    if tools.loss.ohem_threshold is not None or tools.loss.class_weights:
      raise ValueError(
        f'loss.ohem_threshold={tools.loss.ohem_threshold} and loss.class_weights='
        f'{tools.loss.class_weights} are not for method.supervised=bootstrapped; set them to None '
        'and (), or method.supervised=plain.')
    return ()

  def step(self, tools: Tools) -> Callable:
    """The step of lines 1 to 5 above."""
    optimizer = self.optimizers(tools)['student']

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      key_labelled, key_unlabelled = jax.random.split(state.step_key())
      weight = self.consistency_weight * sigmoid_ramp(
        state.step, self.ramp_share * tools.total_steps)
      terms = {LABELLED: self.labelled(tools, batches['labelled'], state.step)}
      state, metrics = gradient_step(
        tools, state, 'student', optimizer,
        *passes(tools, terms, (LABELLED,), joint=False, key=key_labelled),
        self.consistency(tools, batches['unlabelled'], weight, key_unlabelled))
      return state.replace(step=state.step + 1), metrics | {'consistency_weight': weight}

    return step

  def labelled(self, tools: Tools, labelled: Batch, step: Array) -> Term:
    """Line 1."""
    if self.supervised == 'plain':
      return labelled_term(tools, labelled)
    until = max(self.bootstrap_share * tools.total_steps, 1)
    risen = 1 - jnp.exp(-5 * jnp.minimum(step, until) / until)
    lowest = 1 / tools.num_classes
    threshold = lowest + (self.bootstrap_top - lowest) * risen

    def loss(logits: Logits, labels: Array) -> Array:
      main, auxiliary = (
        jnp.float32(0) if low is None else bootstrapped_cross_entropy(
          resize_bilinear(low, labels.shape[1:3]), labels, threshold=threshold, rank=len(labels))
        for low in logits)
      return main + tools.loss.auxiliary_weight * auxiliary

    images = tools.network.normalize(labelled['image'])
    return Term(images, labelled['label'].astype(jnp.int32), loss)

  def consistency(self, tools: Tools, unlabelled: Batch, weight: Array, key: Array) -> Objective:
    """Lines 2 to 4, as a sum over images; `key` is of the perturbations."""
    network, valid = tools.network, unlabelled['valid']
    images = unlabelled_images(tools, unlabelled)
    pixels = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1)

    def loss(variables: Variables, batch: tuple, _: Array) -> Outcome:
      images, valid, numbers = batch
      stages, stats = network.encode(variables, images, train=True)
      fused = self.feature == 'fused'
      given = stages if fused else jax.lax.stop_gradient(stages)
      decoded, stats = network.decode(with_statistics(variables, stats), given, train=True)
      features = (decoded.features if fused else stages[-1]).astype(jnp.float32)
      logits = jax.lax.stop_gradient(resize_bilinear(decoded.logits.main, valid.shape[1:3]))
      seen = see(features, logits, valid, numbers)
      total = jnp.float32(0)
      for kind, decoders in self.decoders():
        of_kind = functools.partial(
          self._of_decoder, tools, kind, variables, features, seen, jax.nn.softmax(logits), valid,
          key)
        total += jnp.sum(jax.lax.map(jax.checkpoint(of_kind), jnp.array(decoders)))
      return Outcome({'consistency': weight * total / (pixels * self.count)}, stats)

    return Objective(loss, (images, valid, jnp.arange(len(images))), key)

  def _of_decoder(
    self, tools: Tools, kind: str, variables: Variables, features: Array, seen: Seen,
    target: Array, valid: Array, key: Array, decoder: Array,
  ) -> Array:
    """The squared difference of one decoder, its mean over classes summed over pixels."""
    def decode(variables: Variables, features: Array) -> Array:
      return tools.network.head(variables, HEAD, (decoder, features), train=True)[0]

    factor, added = perturbation(
      kind, jax.random.fold_in(key, decoder), seen,
      functools.partial(decode, jax.lax.stop_gradient(variables)),
      radius=self.vat_radius, as_shipped=self.vat_direction == 'as_shipped')
    logits = decode(variables, features * factor + added)
    difference = jax.nn.softmax(resize_bilinear(logits, valid.shape[1:3])) - target
    return jnp.sum(jnp.where(valid, jnp.mean(jnp.square(difference), axis=-1), 0.0))


@dataclasses.dataclass(frozen=True)
class CctTorchSemiSeg(Cct):
  """TorchSemiSeg's version, of GTA-Seg's Table 2."""

  summary: ClassVar[str] = "TorchSemiSeg's version of cct, of GTA-Seg's Table 2"
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {'voc': TORCHSEMISEG_VOC}

  vat: int = number(0)
  dropout: int = number(2)
  guided_cutout: int = number(2)
  feature_drop: int = number(2)
  feature_noise: int = number(2)
  feature: str = choice('fused', 'encoded', 'fused')
  ramp_share: float = number(0.0, most=1)
  bootstrap_top: float = number(0.99, most=1)
