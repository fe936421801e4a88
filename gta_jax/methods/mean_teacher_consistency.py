"""Mean teacher with a soft consistency: the student's probabilities follow its average's.

Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, as TorchSemiSeg has it
for segmentation (the row MT of GTA-Seg's Table 2; the row of its Table 1 is method=mean_teacher).
With x = [x_l; u] and p = softmax f:

    L = CE(f_s(x_l), y) + w mean_ij mean_k (p_s(x)_ijk - p_t(x)_ijk)^2
    one SGD step of the student; no gradient through the teacher
    theta_t <- a theta_t + (1 - a) theta_s

w = 100 without a ramp; nothing is perturbed but by dropout, where the config has some, so that
average and batch statistics make the rest of the difference between the two.

Cost 8 forward-equivalents: student 6, teacher 2.

Reported, ResNet-101, mIoU on VOC's augmented lists 662 / 1323 / 2646 / 5291 (Table 2 of GTA-Seg):
70.51 71.53 73.02 76.58.

Where this differs:
- The average comes after the student's step, as GTA-Seg's Eq. 5 has it. TorchSemiSeg moves it
  before both the teacher's pass and the step: average='before'.
- Padding does not count; labelled_void='learn' counts labelled pixels of 255, as the code does.
  method=mean_teacher_consistency_released has both.
- PixelSSL's MT: consistency_on='unlabelled', consistency_of='logits', consistency_weight=1,
  ramp_epochs=5 (or 3), ema_ramp=True, batch_norm='joint'.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState
from gta_jax.methods.cps import TORCHSEMISEG_VOC
from gta_jax.methods.gradient_step import forward, gradient_step
from gta_jax.methods.objectives import Term, check_joint, passes, unlabelled_images
from gta_jax.methods.options import choice, number
from gta_jax.methods.supervised import LABELLED, Supervised
from gta_jax.ops.losses import IGNORE, squared_error
from gta_jax.ops.network import Array, Logits, with_statistics
from gta_jax.ops.ramps import sigmoid_ramp
from gta_jax.ops.resizing import resize_bilinear

CONSISTENCY = 'consistency'


@dataclasses.dataclass(frozen=True)
class MeanTeacherConsistency(Supervised):
  """Options: those of the teacher, and those of the consistency."""

  summary: ClassVar[str] = "the student's probabilities follow its average's"
  paper: ClassVar[str] = ("MT of GTA-Seg's Table 2, after Tarvainen and Valpola, Mean teachers are "
                          'better role models, NeurIPS 2017')
  scored: ClassVar[tuple[str, ...]] = ('student', 'teacher')
  # Nothing is published for Cityscapes.
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {'voc': TORCHSEMISEG_VOC}

  teacher_batch_norm: str = choice('own', 'ema', 'own')  # own passes in train mode, or averaged
  warmup_epochs: float = number(0.0)  # of labelled data alone

  consistency_weight: float = number(100.0)  # w, once the ramp is over
  ramp_epochs: float = number(0.0)  # length of w's sigmoid-shaped ramp; 0: none
  consistency_on: str = choice('both', 'both', 'unlabelled')  # images that are compared
  consistency_of: str = choice('probabilities', 'probabilities', 'logits')  # what is compared
  labelled_void: str = choice('ignore', 'ignore', 'learn')  # whether labels of 255 are compared
  average: str = choice('after', 'after', 'before')  # the student's step the teacher moves

  @property
  def uses_unlabelled(self) -> bool:
    return True

  @property
  def cost(self) -> float:
    return 8

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    if self.joint:
      check_joint(tools)
    return super().check(tools)

  def step(self, tools: Tools, *, handover: bool = False) -> Callable:
    """The step of the main phase; see Supervised.step."""
    optimizers = self.optimizers(tools)

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      keys = jax.random.split(state.step_key(), 3)
      state = self.hand_over(state) if handover else state
      decay = {}
      if self.average == 'before':
        state, decay = self.follow(tools, state)
      state, terms, metrics = self.compare(tools, state, batches, keys[0])
      objectives = passes(tools, terms, terms, joint=self.joint, key=keys[2])
      state, learnt = gradient_step(tools, state, 'student', optimizers['student'], *objectives)
      if self.average == 'after':
        state, decay = self.follow(tools, state)
      return state.replace(step=state.step + 1), metrics | learnt | decay

    return step

  def compare(
    self, tools: Tools, state: TrainState, batches: dict[str, Batch], key: Array
  ) -> tuple[TrainState, dict[str, Term], Metrics]:
    """The terms of ground truth and of the teacher, whose statistics may move."""
    labelled, truth = self.labelled(tools, batches), batches['labelled']['label']
    valid = batches['unlabelled']['valid']
    images = {LABELLED: labelled.images,
              CONSISTENCY: unlabelled_images(tools, batches['unlabelled'])}
    state, said = self.ask_teacher(tools, state, images, key)
    counted = {LABELLED: jnp.full(truth.shape, True), CONSISTENCY: valid}
    if self.consistency_on == 'unlabelled':
      counted[LABELLED] = jnp.zeros(truth.shape, bool)
    elif self.labelled_void == 'ignore':
      counted[LABELLED] = truth != IGNORE
    consistency = self.consistency(
      self.weight(tools, state), jnp.sum(counted[LABELLED]) + jnp.sum(valid))

    def both(logits: Logits, targets: tuple) -> Metrics:
      truth, *compared = targets
      return {LABELLED: labelled.sole_loss(logits, truth),
              'consistency_labelled': consistency(logits, tuple(compared))}

    terms = {
      LABELLED: Term(images[LABELLED], (labelled.targets, said[LABELLED], counted[LABELLED]), both),
      CONSISTENCY: Term(images[CONSISTENCY], (said[CONSISTENCY], valid), consistency),
    }
    return state, terms, {'consistency_weight': self.weight(tools, state)}

  def ask_teacher(
    self, tools: Tools, state: TrainState, images: Mapping[str, Array], key: Array
  ) -> tuple[TrainState, dict[str, Array]]:
    """What the teacher says of each kind of images [B,H,W,3], [B,H,W,K] at their size."""
    train, said = self.teacher_batch_norm == 'own', {}
    for i, kinds in enumerate([tuple(images)] if self.joint else [(kind,) for kind in images]):
      teacher = state.networks['teacher']
      found, stats = forward(
        tools, teacher, *(images[kind] for kind in kinds), key=jax.random.fold_in(key, i),
        train=train)
      state = state.with_networks(teacher=with_statistics(teacher, stats))
      said |= {kind: self.outputs(logits, images[kind].shape)
               for kind, logits in zip(kinds, found, strict=True)}
    return state, said

  def outputs(self, logits: Logits, shape: tuple[int, ...]) -> Array:
    """What is compared, [B,H,W,K] for images of shape [B,H,W,3]."""
    logits_full = resize_bilinear(logits.main, (shape[1], shape[2]))
    return logits_full if self.consistency_of == 'logits' else jax.nn.softmax(logits_full)

  def consistency(self, weight: Array, divisor: Array) -> Callable:
    """(logits, (teacher's outputs, counted pixels)) -> the loss."""
    def loss(logits: Logits, targets: tuple[Array, Array]) -> Array:
      said, counted = targets
      return weight * squared_error(
        self.outputs(logits, said.shape), said, counted, divisor=divisor)

    return loss

  def weight(self, tools: Tools, state: TrainState) -> Array:
    """w at this step of the main phase."""
    since = state.step - self.phases(tools)[0]
    return self.consistency_weight * sigmoid_ramp(since, self.ramp_epochs * tools.epoch_steps)
