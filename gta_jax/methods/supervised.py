"""Learning from labelled images alone; the teacher is an average of the student (SupOnly).

It is also the skeleton of every method with a teacher that follows a student: the options of that
teacher, and the three stages warm-up, hand-over and main.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import jax

from gta_jax.methods.contract import Batch, Metrics, Stage, Tools, TrainState, init_state
from gta_jax.methods.gradient_step import forward, gradient_step
from gta_jax.methods.learners import draw_each
from gta_jax.methods.objectives import Term, labelled_term, passes
from gta_jax.methods.options import check_fields, choice, number
from gta_jax.methods.pseudo_labelling import largest_divisor
from gta_jax.models.heads import MakeHead
from gta_jax.ops.ema import ema_decay, transmit
from gta_jax.ops.network import Array, Variables, with_statistics
from gta_jax.ops.optim import Optimizer

LABELLED = 'labelled'


@dataclasses.dataclass(frozen=True)
class Supervised:
  """Options. The number behind a field is its row in docs/method.md, "Paper and published code"."""

  summary: ClassVar[str] = 'labelled images alone'
  paper: ClassVar[str] = "SupOnly of GTA-Seg's Table 1 (Jin et al., NeurIPS 2022)"
  scored: ClassVar[tuple[str, ...]] = ('teacher', 'student')
  compared: ClassVar[tuple[str, ...]] = ()
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

  # The teacher.
  teacher_decay: float = number(0.99, most=1)  # (3) alpha of Eq. 12
  ema_ramp: bool = False  # (3) min(1 - 1/(k+1), alpha)
  teacher_batch_norm: str = choice('ema', 'ema', 'own')  # (13) averaged, or by its own passes
  initial_networks: str = choice('one', 'one', 'own')  # (18) copies of one, or drawn each by itself

  # Forward passes and losses.
  batch_norm: str = choice('own', 'own', 'joint')  # (12) which images share batch statistics
  labelled_images: int = number(0)  # (21) images whose mean loss is taken first; 0: all

  # From warm-up to the main phase.
  warmup_epochs: float = number(1.0)
  warmup: str = choice('all', 'all', 'student')  # (5) who trains on labelled data
  handover_epochs: float = number(0.0)  # (2) the student overwrites the others so long

  def __post_init__(self):
    check_fields(self)

  @property
  def heads(self) -> Mapping[str, MakeHead]:
    return {}

  @property
  def uses_unlabelled(self) -> bool:
    return False

  @property
  def learners(self) -> tuple[str, ...]:
    """The networks that have an optimiser."""
    return ('student',)

  @property
  def followers(self) -> tuple[str, ...]:
    """The networks that the warm-up makes equal to the student."""
    return ('teacher',)

  @property
  def joint(self) -> bool:
    return self.batch_norm == 'joint'

  @property
  def cost(self) -> float:
    return 3 + (self.teacher_batch_norm == 'own')

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    notes = [group_note('method.labelled_images', self.labelled_images, tools.labelled_batch)]
    if self.uses_unlabelled and self.phases(tools)[0] >= tools.total_steps:
      notes.append('the warm-up lasts to the end, so that nothing learns from unlabelled images; '
                   'raise train.epochs or lower method.warmup_epochs')
    if self.initial_networks == 'own' and self.warmup == 'all' and self.phases(tools)[0]:
      notes.append("method.initial_networks=own has no effect: the warm-up's first step copies the "
                   'student over the others (method.warmup=all)')
    if self.initial_networks == 'own' and self.warmup == 'all' and not (
        self.warmup_epochs or self.handover_epochs):
      raise ValueError('method.initial_networks=own without a warm-up or hand-over leaves the '
                       'teacher a network that has learnt nothing, and averages it with another; '
                       'set method.handover_epochs or method.warmup_epochs, or one.')
    if self.labelled_images and tools.loss.ohem_threshold is not None:
      notes.append(f'method.labelled_images={self.labelled_images} has no effect, as OHEM looks at '
                   'the whole batch (loss.ohem_threshold)')
    return tuple(filter(None, notes))

  def optimizers(self, tools: Tools) -> dict[str, Optimizer]:
    """Of the networks that learn."""
    return {name: tools.make_optimizer() for name in self.learners}

  def init(self, key: Array, draw: Callable[..., Variables], tools: Tools) -> TrainState:
    """See Method. Copies of one network, or networks of their own."""
    names = ('student', *self.followers)
    networks = (draw_each(key, draw, names) if self.initial_networks == 'own'
                else dict.fromkeys(names, draw()))
    return init_state(key, networks, self.optimizers(tools))

  def phases(self, tools: Tools) -> tuple[int, int, int]:
    """Steps of warm-up, hand-over and main phase."""
    left = tools.total_steps
    warmup = min(round(self.warmup_epochs * tools.epoch_steps), left)
    handover = round(self.handover_epochs * tools.epoch_steps)
    if self.warmup == 'student':  # The others have learnt nothing: hand over at least once.
      handover = max(handover, 1)
    handover = min(handover, left - warmup)
    return warmup, handover, left - warmup - handover

  def stages(self, tools: Tools) -> tuple[Stage, ...]:
    """See Method."""
    warmup, handover, main = self.phases(tools)
    streams = ('labelled', 'unlabelled') if self.uses_unlabelled else ('labelled',)
    stages = (
      Stage('warmup', warmup, self.warmup_step(tools)),
      # Also as it is entered: its only step may be skipped as one that is not finite.
      Stage('handover', handover, self.step(tools, handover=True), streams, self.hand_over),
      Stage('main', main, self.step(tools), streams))
    return tuple(stage for stage in stages if stage.steps)

  def warmup_step(self, tools: Tools) -> Callable:
    """The step of the warm-up: all networks learn from labelled data.

    With warmup='all' they see the same images and drop the same channels, so that equal ones stay
    equal: the student is trained and copied, also over those that were not. With warmup='student'
    (the published code) the others only run forward in train mode, which moves their running
    statistics.
    """
    optimizers = self.optimizers(tools)

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      key = state.step_key()
      terms = {LABELLED: self.labelled(tools, batches)}
      objectives = passes(tools, terms, (LABELLED,), joint=False, key=key)
      state, metrics = gradient_step(tools, state, 'student', optimizers['student'], *objectives)
      if self.warmup == 'all':
        state = state.with_networks(**dict.fromkeys(self.followers, state.networks['student']))
        learnt = state.optimizers['student']
        state = state.replace(optimizers=dict.fromkeys(state.optimizers, learnt))
      else:
        for name in self.followers:
          state = self.move_statistics(tools, state, name, terms[LABELLED].images, key)
      return state.replace(step=state.step + 1), metrics

    return step

  def step(self, tools: Tools, *, handover: bool = False) -> Callable:
    """The step of the main phase: the student learns from ground truth, the teacher follows.

    Args:
      tools: of the method.
      handover: whether the step begins with the student's parameters copied over the others.
    """
    optimizers = self.optimizers(tools)

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      keys = jax.random.split(state.step_key(), 3)
      state = self.hand_over(state) if handover else state
      terms = {LABELLED: self.labelled(tools, batches)}
      if self.teacher_batch_norm == 'own':
        state = self.move_statistics(tools, state, 'teacher', terms[LABELLED].images, keys[0])
      objectives = passes(tools, terms, (LABELLED,), joint=self.joint, key=keys[2])
      state, metrics = gradient_step(tools, state, 'student', optimizers['student'], *objectives)
      state, decay = self.follow(tools, state)
      return state.replace(step=state.step + 1), metrics | decay

    return step

  def labelled(self, tools: Tools, batches: dict[str, Batch]) -> Term:
    """The term of ground truth (Eq. 10)."""
    labelled = batches['labelled']
    group = self.labelled_images and largest_divisor(len(labelled['label']), self.labelled_images)
    return labelled_term(tools, labelled, group=group)

  def hand_over(self, state: TrainState) -> TrainState:
    """The student's parameters in the place of its followers'."""
    params = state.networks['student']['params']
    return state.with_networks(
      **{name: {**state.networks[name], 'params': params} for name in self.followers})

  def move_statistics(
    self, tools: Tools, state: TrainState, name: str, images: Array, key: Array
  ) -> TrainState:
    """The state after a pass of a network in train mode that nothing is learnt from."""
    _, stats = forward(tools, state.networks[name], images, key=key, train=True)
    return state.with_networks(**{name: with_statistics(state.networks[name], stats)})

  def decay(self, tools: Tools, state: TrainState, decay: float) -> Array:
    """The decay of an average at this step, counted from the end of the warm-up."""
    since_warmup = state.step - self.phases(tools)[0]
    return ema_decay(since_warmup, decay=decay, ramp=self.ema_ramp)

  def follow(self, tools: Tools, state: TrainState) -> tuple[TrainState, Metrics]:
    """The teacher moved towards the student (Eq. 12), and the decay for the log."""
    decay = self.decay(tools, state, self.teacher_decay)
    keys: Iterable[str] = ('params', 'batch_stats')
    keys = keys if self.teacher_batch_norm == 'ema' else ('params',)
    teacher = transmit(state.networks['teacher'], state.networks['student'], decay, keys=keys)
    return state.with_networks(teacher=teacher), {'teacher_decay': decay}


def group_note(name: str, group: int, batch: int) -> str:
  """What is said where a group does not divide a batch; '' where it does."""
  chosen = largest_divisor(batch, group)
  return '' if chosen == (group or batch) else (
    f'{name}={group} does not divide the batch of {batch}; groups of {chosen} are used')
