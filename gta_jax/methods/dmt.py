"""DMT: two networks label images for each other, and doubt what they are told.

Round 0 trains each network on labelled images. In round n = 1..R each goes on from its own round
n - 1 with labels of the other one's round n - 1, of which the share a_n = n/R is kept:

    j = argmax p, q = max p, p = softmax(other(x_u)), whole images
    T_j = confidence of rank int(a n_j) from the top, counted from 0, among the n_j pixels that are
          labelled j, of every 16th pixel of all images; none if a n_j < 1
    label j where q >= T_j, else 255

and learns from labelled and pseudo-labelled images, these with dynamic weights, with the learner's
own p = softmax(f(x)), detached:

    w = p_y^g1   argmax p = y
        0        argmax p != y and max p > q      the learner is surer than the labeller
        p_y^g2   argmax p != y and max p <= q
    L = (sum_labelled CE + sum_pseudo w CE) / #{y != 255}    over the whole batch

Cost of a step: 6 for a labelled and a pseudo-labelled batch, one network at a time; labelling an
image: 1 forward pass a round and network (the published code takes two).

Reported (the repository's README): VOC 1/106 63.04, 1/50 67.15, 1/20 69.92, 1/8 72.70; Cityscapes
1/30 54.80, 1/8 63.03; supervised 46.66 55.62 62.29 67.37, and 49.54 59.65. DeepLabV2-ResNet-101,
the best validation snapshot of either network. GTA-Seg's tables have no row of DMT.

Deviations, which were chosen here:
- The two networks differ by their drawn weights and by the order of their data; the published ones
  by pretraining (COCO, ImageNet), or by two samplings of the labelled subset.
- Stages last for shares of the run's steps, and the last step of a round goes on, not the best one.
- Confidences are kept in 16 bits and thresholds found with them, so that pixels whose doubts agree
  to 1/2048 tie; the training crops carry 8 bits.
- Cityscapes' crops of 256 x 512 are squares of as many pixels.
- For g1 = g2 = 0 the code takes plain cross-entropy: zero_gamma='plain'.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gta_jax.data.pseudo_masks import ConfidentMaskReader, doubt_limits, with_pseudo_masks
from gta_jax.data.sources import Dataset
from gta_jax.data.stage_files import StageFiles
from gta_jax.methods import labelling
from gta_jax.methods.contract import Batch, Host, Metrics, Stage, Tools, TrainState
from gta_jax.methods.gradient_step import gradient_step
from gta_jax.methods.labelling import CONFIDENCE, MASKS
from gta_jax.methods.learners import Learners
from gta_jax.methods.objectives import Term, check_joint, labelled_term, passes
from gta_jax.methods.options import choice, number
from gta_jax.methods.pseudo_labelling import kept_metrics
from gta_jax.methods.self_training import LABELLED, PSEUDO, STREAMS, blank_padding
from gta_jax.ops.joining import join
from gta_jax.ops.losses import IGNORE
from gta_jax.ops.network import Array, Logits, Variables
from gta_jax.ops.optim import with_factor
from gta_jax.ops.resizing import resize_bilinear

NETWORKS: tuple[str, str] = ('student', 'assistant')


@dataclasses.dataclass(frozen=True)
class DynamicMutualTraining(Learners):
  """Options."""

  summary: ClassVar[str] = 'two networks label for each other, with weights that doubt the labels'
  paper: ClassVar[str] = ('Feng, Zhou, Gu, Tan, Cheng, Lu, Shi, Ma, DMT: Dynamic Mutual Training '
                          'for Semi-Supervised Learning, Pattern Recognition 2022')
  scored: ClassVar[tuple[str, ...]] = NETWORKS
  compared: ClassVar[tuple[str, ...]] = NETWORKS
  # Epochs are passes over the unlabelled images; round 0 of VOC has a rate of .002.
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    name: {'optim.decoder_multiplier': 1.0, 'optim.weight_decay': 5e-4, 'data.scale': (0.5, 1.5),
           'loss.ohem_threshold': None, 'model.auxiliary': False, 'evaluate.protocols': ('whole',),
           **fields}
    for name, fields in {
      'voc': {'optim.rate': 0.001, 'data.crop': 321, 'train.labelled_batch': 1,
              'train.unlabelled_batch': 7, 'train.epochs': 52},
      'cityscapes': {
        'optim.rate': 0.004, 'data.crop': 362, 'data.image_scale': 0.5, 'train.labelled_batch': 2,
        'train.unlabelled_batch': 6, 'train.epochs': 136, 'method.gamma1': 3.0,
        'method.gamma2': 3.0, 'method.supervised_rate': 1.0},
    }.items()}

  rounds: int = number(5, least=1, most=100)  # R, after round 0
  gamma1: float = number(5.0)  # g1, where the learner agrees
  gamma2: float = number(5.0)  # g2, where it disagrees and is less sure
  # What g1 = g2 = 0 means: the weights of the formula, or plain cross-entropy as in the code.
  zero_gamma: str = choice('formula', 'formula', 'plain')
  # Steps of round 0 of both networks, a share of all; the rounds' stages are of one length.
  supervised_share: float = number(0.25, least=1e-4, most=0.9)
  supervised_rate: float = number(2.0, least=1e-4, most=1e4)  # factor on optim.rate in round 0

  @property
  def cost(self) -> float:
    return 6

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    labelling.refuse_ohem(tools, 'dynamic mutual training')
    check_joint(tools, 'dynamic mutual training')
    tools.accumulation.count(tools.labelled_batch + tools.unlabelled_batch)  # or raises
    return ()

  def init(self, key: Array, draw: Callable[..., Variables], tools: Tools) -> TrainState:
    """See Method. Both are drawn; equal networks would say the same for ever."""
    return super().init(key, draw, tools).replace(memory={'stage_start': jnp.int32(0)})

  def stages(self, tools: Tools) -> tuple[Stage, ...]:
    """See Method. A network's rounds share one program."""
    first, length = self.divide(tools)
    batch = tools.labelled_batch + tools.unlabelled_batch
    found = [
      Stage(f'supervised_{name}', steps, self.supervised_step(tools, name, steps),
            enter=begin(tools, name), sizes={'labelled': batch})
      for name, steps in zip(NETWORKS, first, strict=True)]
    steps = {name: self.mixed_step(tools, name, length) for name in NETWORKS}
    for round_, name in itertools.product(range(1, self.rounds + 1), NETWORKS):
      found.append(Stage(
        f'round{round_}_{name}', length, steps[name], STREAMS, begin(tools, name),
        prepare(round_, name), self.dataset(round_, name)))
    return tuple(found)

  def divide(self, tools: Tools) -> tuple[tuple[int, int], int]:
    """Steps of the two supervised stages, which take what is left over, and of each other stage."""
    total, others = tools.total_steps, len(NETWORKS) * self.rounds
    if total < others + len(NETWORKS):
      raise ValueError(
        f'train.epochs makes {total} steps, fewer than the {others + len(NETWORKS)} stages of '
        f'method.rounds={self.rounds}; raise train.epochs, or lower method.rounds.')
    supervised = max(round(self.supervised_share * total), len(NETWORKS))
    length = max((total - supervised) // others, 1)
    supervised = total - length * others
    return (supervised // 2, supervised - supervised // 2), length

  def dataset(self, round_: int, name: str) -> Callable[[Host], Dataset]:
    """(host) -> the data set of a network's round: the share of labels that the round keeps."""
    def dataset(host: Host) -> Dataset:
      files = round_files(host, round_, name)
      masks, doubts = (
        {id: str(files.path(kind, id)) for id in files.ids} for kind in (MASKS, CONFIDENCE))
      kept = doubt_limits(
        masks, doubts, share=(round_, self.rounds), num_classes=len(host.dataset.classes))
      return with_pseudo_masks(
        host.dataset, ConfidentMaskReader(host.dataset.reader, masks, doubts, kept))

    return dataset

  def supervised_step(self, tools: Tools, name: str, steps: int) -> Callable:
    """The step of round 0, which lasts for so many steps."""
    optimizer = with_factor(tools.make_optimizer(steps=steps), self.supervised_rate)

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      terms = {LABELLED: labelled_term(tools, batches['labelled'])}
      return take_step(tools, state, name, optimizer, terms)

    return step

  def mixed_step(self, tools: Tools, name: str, steps: int) -> Callable:
    """The step of a later round: one batch of both kinds, one mean over its pixels."""
    optimizer = tools.make_optimizer(steps=steps)

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      labels = batches['labelled']['label'].astype(jnp.int32)
      images, pseudo = blank_padding(tools, batches['pseudo_labelled'])
      confidence = batches['pseudo_labelled']['confidence'].astype(jnp.float32) / 255
      divisor = tools.loss.divisor(join(labels, pseudo))

      def labelled_loss(logits: Logits, targets: Array) -> Array:
        return tools.loss(logits, targets, divisor=divisor)

      def pseudo_loss(logits: Logits, targets: tuple[Array, Array]) -> Array:
        return tools.loss(logits, targets[0], self.weights(logits, *targets), divisor=divisor)

      clean = tools.network.normalize(batches['labelled']['image'])
      terms = {LABELLED: Term(clean, labels, labelled_loss),
               PSEUDO: Term(images, (pseudo, confidence), pseudo_loss)}
      state, metrics = take_step(tools, state, name, optimizer, terms)
      metrics['confidence'] = jnp.sum(confidence, where=pseudo != IGNORE) / jnp.maximum(
        jnp.sum(pseudo != IGNORE), 1)
      return state, metrics | kept_metrics(pseudo, tools.num_classes)

    return step

  def weights(self, logits: Logits, labels: Array, confidence: Array) -> Array:
    """The pixels' weights by what the learner says now, at the labels' size."""
    if self.zero_gamma == 'plain' and self.gamma1 == self.gamma2 == 0:
      return jnp.ones_like(confidence)
    low = jax.lax.stop_gradient(logits.main)
    probabilities = jax.nn.softmax(resize_bilinear(low, labels.shape[1:3]))
    return dynamic_weights(
      probabilities, labels, confidence, agreeing=self.gamma1, disagreeing=self.gamma2)


def dynamic_weights(
  probabilities: Array, labels: Array, confidence: Array, *, agreeing: float, disagreeing: float
) -> Array:
  """How far a learner believes a label.

  Args:
    probabilities: [...,K] float32, of the learner.
    labels: [...] int32, 255 where there is none.
    confidence: [...] float32 in [0,1], of the labeller.
    agreeing, disagreeing: g1 and g2.
  Returns: [...] float32 in [0,1], 0 where there is no label.
  """
  classes = jnp.arange(probabilities.shape[-1])
  of_label = jnp.sum(jnp.where(labels[..., None] == classes, probabilities, 0.0), axis=-1)
  agrees = jnp.argmax(probabilities, axis=-1) == labels
  doubts = jnp.where(
    jnp.max(probabilities, axis=-1) > confidence, 0.0, of_label ** disagreeing)
  return jnp.where(labels == IGNORE, 0.0, jnp.where(agrees, of_label ** agreeing, doubts))


def take_step(
  tools: Tools, state: TrainState, name: str, optimizer: Any, terms: Mapping[str, Term]
) -> tuple[TrainState, Metrics]:
  """One step of one network, whose rate is counted from the stage's start."""
  objectives = passes(tools, terms, tuple(terms), joint=True, key=state.step_key())
  in_stage = state.replace(step=state.step - state.memory['stage_start'])
  moved, metrics = gradient_step(tools, in_stage, name, optimizer, *objectives)
  return moved.replace(step=state.step + 1), metrics


def begin(tools: Tools, name: str) -> Callable[[TrainState], TrainState]:
  """A state in which the network goes on with a new optimiser, and the stage starts now."""
  def enter(state: TrainState) -> TrainState:
    new = tools.make_optimizer().init(state.networks[name]['params'])
    return state.replace(
      optimizers=state.optimizers | {name: new}, memory={'stage_start': state.step.copy()})

  return enter


def round_files(host: Host, round_: int, name: str) -> StageFiles:
  """Labels and confidences that a network learns from in a round."""
  return labelling.stage_files(
    host, f'round{round_}_{name}', host.dataset.unlabelled, MASKS, CONFIDENCE)


def prepare(round_: int, name: str) -> Callable[[Host, TrainState | None], None]:
  """At the start of a round the labels of both networks are made, each by the other as it is then;
  later they are checked."""
  def prepare(host: Host, state: TrainState | None) -> None:
    if state is None or name != NETWORKS[0]:
      round_files(host, round_, name).check()
      return
    for learner, labeller in zip(NETWORKS, reversed(NETWORKS), strict=True):
      labelling.write_labels(host, round_files(host, round_, learner), state.networks[labeller])

  return prepare
