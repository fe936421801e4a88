"""GTA-Seg: a gentle teaching assistant (Jin, Wang, Lin; NeurIPS 2022), Algorithm 1.

    1. The teacher labels the unlabelled images, drops the least confident pixels and weighs the
       rest (Eq. 1, 2, 6).
    2. The assistant learns from them (Eq. 7, 8); its features move the student's (Eq. 9).
    3. The student learns from ground truth (Eq. 10, 11), the teacher follows it (Eq. 12).

Cost 7 forward-equivalents of B images (teacher 1, assistant 3, student 3); recipe `released` 15.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import ClassVar

import jax

from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState
from gta_jax.methods.gradient_step import gradient_step
from gta_jax.methods.mean_teacher import PSEUDO, MeanTeacher
from gta_jax.methods.objectives import passes
from gta_jax.methods.options import choice, number
from gta_jax.methods.supervised import LABELLED
from gta_jax.ops import trees
from gta_jax.ops.ema import transmit
from gta_jax.ops.network import known_keys
from gta_jax.ops.optim import Optimizer

FEATURES = ('backbone', 'decoder')
ALL = 'all'  # the keys that the network has
_KEYS = known_keys(auxiliary=True)


@dataclasses.dataclass(frozen=True)
class Gta(MeanTeacher):
  """Options; the defaults are GTA-Seg as the paper describes it.

  The number behind a field is its row in docs/method.md, "Paper and published code".
  """

  summary: ClassVar[str] = 'an assistant learns from pseudo-labels, its features move the student'
  paper: ClassVar[str] = ('Jin, Wang, Lin, Semi-Supervised Semantic Segmentation via Gentle '
                          'Teaching Assistant, NeurIPS 2022')
  scored: ClassVar[tuple[str, ...]] = ('teacher', 'student', 'assistant')
  compared: ClassVar[tuple[str, ...]] = ('student', 'assistant')

  reweight: bool = True  # Eq. 6, or every kept pixel alike

  # Who learns from what (Table 7).
  student_learns: tuple[str, ...] = (LABELLED,)
  assistant_learns: tuple[str, ...] = (PSEUDO,)

  # What passes from the assistant to the student.
  transmitted: tuple[str, ...] = FEATURES  # (6) averaged into the student, Eq. 9; or ('all',)
  shared: tuple[str, ...] = ()  # (1) keys that student and assistant hold in common
  transmission_decay: float = number(0.99, most=1)  # (3) alpha of Eq. 9
  assistant_rate: str = choice('poly', 'poly', 'constant')  # (4)

  def __post_init__(self):
    super().__post_init__()
    for name in ('student_learns', 'assistant_learns'):
      learns = getattr(self, name)
      if unknown := [data for data in learns if data not in (LABELLED, PSEUDO)]:
        raise ValueError(f'{name} holds {unknown}; use {LABELLED} and {PSEUDO}.')
      if not learns or len(set(learns)) < len(learns):
        raise ValueError(f'{name}={learns}: a network learns from labelled, pseudo or both, once '
                         'each.')
    if PSEUDO not in self.student_learns + self.assistant_learns:
      raise ValueError('student_learns and assistant_learns are both without pseudo: nothing would '
                       'learn from unlabelled images; use method=sup_only.')
    for name, known in (('transmitted', (*_KEYS, ALL)), ('shared', _KEYS)):
      if unknown := [key for key in getattr(self, name) if key not in known]:
        raise ValueError(f'{name} holds {unknown}; use some of: {", ".join(known)}.')
    if overlap := set(self.transmitted_keys(_KEYS)) & set(self.shared):
      raise ValueError(f'{sorted(overlap)} is both transmitted and shared; choose one of them.')

  def transmitted_keys(self, params: Iterable[str]) -> tuple[str, ...]:
    """Which of a network's keys are averaged into the student."""
    return tuple(params) if ALL in self.transmitted else self.transmitted

  @property
  def learners(self) -> tuple[str, ...]:
    return 'student', 'assistant'

  @property
  def followers(self) -> tuple[str, ...]:
    return 'teacher', 'assistant'

  @property
  def cost(self) -> float:
    learnt = (2, 2) if self.joint else (len(self.student_learns), len(self.assistant_learns))
    return self.teaching_cost + 3 * sum(learnt)

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    named = {*self.transmitted, *self.shared} - {ALL, *known_keys()}
    init = functools.partial(tools.network.init, jax.random.key(0), (tools.crop, tools.crop))
    if unknown := named and sorted(named - jax.eval_shape(init)['params'].keys()):
      raise ValueError(
        f'method.transmitted or method.shared holds {", ".join(unknown)}, a head that the network '
        'does not have; take it out, or set model.auxiliary=True.')
    return super().check(tools)

  def optimizers(self, tools: Tools) -> dict[str, Optimizer]:
    """See Supervised."""
    return {'student': tools.make_optimizer(),
            'assistant': tools.make_optimizer(schedule=self.assistant_rate)}

  def step(self, tools: Tools, *, handover: bool = False) -> Callable:
    """The step of the semi-supervised phase (Algorithm 1); see Supervised.step."""
    optimizers = self.optimizers(tools)

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      keys = jax.random.split(state.step_key(), 3)
      state = self.hand_over(state) if handover else state
      state, terms, metrics = self.teach(tools, state, batches, keys[0])

      objectives = passes(tools, terms, self.assistant_learns, joint=self.joint, key=keys[1])
      state, learnt = gradient_step(
        tools, state, 'assistant', optimizers['assistant'], *objectives)
      metrics |= learnt
      state, decay = self.transmit(tools, state, handover=handover)
      metrics |= decay

      objectives = passes(tools, terms, self.student_learns, joint=self.joint, key=keys[2])
      state, learnt = gradient_step(tools, state, 'student', optimizers['student'], *objectives)
      state = share(state, 'student', ('assistant', *(('teacher',) if handover else ())),
                    self.shared)
      state, decay = self.follow(tools, state)
      return state.replace(step=state.step + 1), metrics | learnt | decay

    return step

  def transmit(
    self, tools: Tools, state: TrainState, *, handover: bool
  ) -> tuple[TrainState, Metrics]:
    """The student after the assistant's step (Eq. 9): shared keys moved along, others averaged."""
    if self.shared and handover:
      # The copy of a hand-over step of the published code shares every tensor of all networks.
      everything = tuple(state.networks['assistant']['params'])
      state = share(state, 'assistant', ('student', 'teacher'), everything)
    state = share(state, 'assistant', ('student',), self.shared)
    decay = self.decay(tools, state, self.transmission_decay)
    student, assistant = state.networks['student'], state.networks['assistant']
    keys = self.transmitted_keys(student['params'])
    params = transmit(student['params'], assistant['params'], decay, keys=keys)
    state = state.with_networks(student={**student, 'params': params})
    return state, {'transmission_decay': decay}


def share(
  state: TrainState, source: str, targets: Iterable[str], keys: Iterable[str]
) -> TrainState:
  """The state with the named parameters of one network in the place of others'."""
  part = trees.select(state.networks[source]['params'], keys)
  return state.with_networks(**{
    name: {**state.networks[name], 'params': trees.replace(state.networks[name]['params'], part)}
    for name in targets})
