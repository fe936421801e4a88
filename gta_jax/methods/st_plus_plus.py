"""ST++: self-training in two rounds, first with the images that can be relied on.

Which images these are, three checkpoints of the supervised network say, after a third, two thirds
and all of its steps: where they label an image alike, the labels are stable and likely right.

    1. theta_1 from labelled images alone; M_1, M_2, M_3 = hard labels by its three checkpoints
    2. s_i = mean over k < 3 of mIoU(M_k, M_3), over the classes in the union of the two maps
    3. labels by theta_1 for the half of the images with the highest s_i
    4. theta_2, fresh, from labelled images and this half
    5. labels by theta_2 for the other half
    6. theta_3, fresh, from labelled images and all: each keeps the label that it has

Views, loss and labelling are ST's (self_training.py), and so are its deviations. Cost of a step: 6;
scoring an image: 3 forward passes.

Reported: GTA-Seg's Table 1 (VOC original, 92 183 366 732 1464), row ST++: 65.23 71.01 74.59 77.33
79.12. Unverified (from memory): VOC augmented 1/16, 1/8, 1/4, ResNet-101 74.5 76.3 76.6, ResNet-50
72.6 74.4 75.4; Cityscapes, ResNet-50, 1/30, 1/8, 1/4: 61.4 72.7 73.8.

Deviations besides ST's: checkpoints are taken after thirds of the steps, not of whole epochs. The
paper writes a sum over k (unverified: from memory), the code a mean; the order is the same. A lone
unlabelled image counts as reliable.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import ClassVar

from gta_jax.data.stage_files import StageFiles
from gta_jax.methods import labelling
from gta_jax.methods.contract import Host, Stage, Tools, TrainState
from gta_jax.methods.options import number
from gta_jax.methods.self_training import (
  CITYSCAPES,
  STUDENT,
  VOC,
  SelfTraining,
  pseudo_labelled,
)
from gta_jax.ops import trees

KEPT = ('third', 'two_thirds')
THIRDS = ('supervised_1', 'supervised_2', 'supervised_3')
RELIABLE, ALL = 'reliable', 'all'


@dataclasses.dataclass(frozen=True)
class SelfTrainingPlusPlus(SelfTraining):
  """Options: ST's, and the share of the stage that it does not have."""

  summary: ClassVar[str] = 'self-training, first with the half of the images labelled stably'

  supervised_share: float = number(0.044, least=1e-4, most=0.9)
  # Steps of the stage with the reliable half, a share of all.
  reliable_share: float = number(0.334, least=1e-4, most=0.9)

  @property
  def kept(self) -> tuple[str, ...]:
    return KEPT

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    if self.supervised_share + self.reliable_share >= 1:
      raise ValueError(
        f'method.supervised_share={self.supervised_share:g} and method.reliable_share='
        f'{self.reliable_share:g} leave no step for the last stage; make their sum less than 1.')
    return super().check(tools)

  def stages(self, tools: Tools) -> tuple[Stage, ...]:
    """See Method. The thirds of the supervised stage are stages, which share one program."""
    third = self.supervised_share / 3
    steps = labelling.divide(
      tools, {**dict.fromkeys(THIRDS, third), RELIABLE: self.reliable_share, ALL: 1})
    first = sum(steps[name] for name in THIRDS)
    supervised = self.supervised_step(tools, first)
    thirds = [self.supervised_stage(tools, name, steps[name], supervised) for name in THIRDS]
    return (
      thirds[0], thirds[1]._replace(enter=keep(KEPT[0])), thirds[2]._replace(enter=keep(KEPT[1])),
      self.mixed_stage(
        tools, RELIABLE, first, steps[RELIABLE], self.prepare_reliable,
        lambda host: pseudo_labelled(host, self.masks(host)[0])),
      self.mixed_stage(
        tools, ALL, first + steps[RELIABLE], steps[ALL], self.prepare_all,
        lambda host: pseudo_labelled(host, *self.masks(host))))

  def prepare_reliable(self, host: Host, state: TrainState | None) -> None:
    """Scores all images and labels the reliable half by the supervised network."""
    scores = score_files(host)
    if state is None:
      scores.check()
    else:
      checkpoints = {name: state.networks[name] for name in (*KEPT, STUDENT)}
      labelling.write_agreement(host, scores, checkpoints)
    self.label(host, state, self.masks(host)[0])

  def prepare_all(self, host: Host, state: TrainState | None) -> None:
    """Labels the other half by the network of the reliable stage."""
    score_files(host).check()
    reliable, unreliable = self.masks(host)
    reliable.check()
    self.label(host, state, unreliable)

  def masks(self, host: Host) -> tuple[StageFiles, StageFiles]:
    """The masks of the reliable images, and of the others, each in the stage that made them."""
    halves = labelling.split_by_score(host.dataset.unlabelled, read_scores(host))
    reliable, unreliable = (
      labelling.stage_files(host, stage, ids, labelling.MASKS)
      for stage, ids in zip((RELIABLE, ALL), halves, strict=True))
    return reliable, unreliable


def keep(name: str) -> Callable[[TrainState], TrainState]:
  """A state in which the named network is the student as it is now."""
  return lambda state: state.with_networks(**{name: trees.copy(state.networks[STUDENT])})


def score_files(host: Host) -> StageFiles:
  """The agreement of every unlabelled image."""
  return labelling.stage_files(host, RELIABLE, host.dataset.unlabelled, labelling.SCORES)


def read_scores(host: Host) -> list[float]:
  """The agreements in the order of the unlabelled images."""
  files = score_files(host)
  return [json.loads(files.path(labelling.SCORES, id).read_bytes()) for id in files.ids]


SelfTrainingPlusPlus.published = {'voc': {**VOC, 'train.epochs': 129},
                                  'cityscapes': {**CITYSCAPES, 'train.epochs': 386}}
