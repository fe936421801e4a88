"""Mean teacher with hard pseudo-labels, plain or on mixed images (Table 1, MT and CutMix).

The teacher, an average of the student, labels unlabelled images; the student learns from ground
truth and from these labels.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax

from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState
from gta_jax.methods.gradient_step import gradient_step
from gta_jax.methods.objectives import Term, check_joint, partner_notes, passes
from gta_jax.methods.pseudo_labelling import PseudoLabelling, Teaching, largest_divisor, teach
from gta_jax.methods.supervised import LABELLED, Supervised, group_note
from gta_jax.ops.mixing import PARTNERED
from gta_jax.ops.network import Array

PSEUDO = 'pseudo'


@dataclasses.dataclass(frozen=True)
class MeanTeacher(PseudoLabelling, Supervised):
  """Options: those of the pseudo-labels and those of the teacher."""

  summary: ClassVar[str] = "the student learns from its average's pseudo-labels"
  paper: ClassVar[str] = ('MT and CutMix of GTA-Seg\'s Table 1, after Tarvainen and Valpola, Mean '
                          'teachers are better role models, NeurIPS 2017')
  reweight: bool = False

  @property
  def uses_unlabelled(self) -> bool:
    return True

  @property
  def cost(self) -> float:
    return self.teaching_cost + 6

  @property
  def teaching_cost(self) -> float:
    """Forward passes of the teacher."""
    second = self.confidence_pass == 'mixed' or self.teacher_batch_norm == 'own'
    return 1 + second * (2 if self.joint else 1)

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    groups = {name: getattr(self, name) for name in ('threshold_images', 'mixing_images')}
    notes = [group_note(f'method.{name}', group, tools.unlabelled_batch)
             for name, group in groups.items()]
    if self.hue and not self.jitter:
      raise ValueError(f'method.hue={self.hue:g} shifts colours where they are jittered, but '
                       'method.jitter=0 jitters none; raise method.jitter, e.g. to 0.8.')
    if self.joint:
      check_joint(tools)
    if self.mixing in PARTNERED:
      notes += partner_notes(tools, largest_divisor(tools.unlabelled_batch, self.mixing_images))
    return super().check(tools) + tuple(filter(None, notes))

  def step(self, tools: Tools, *, handover: bool = False) -> Callable:
    """The step of the main phase; see Supervised.step."""
    optimizers = self.optimizers(tools)

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      keys = jax.random.split(state.step_key(), 3)
      state = self.hand_over(state) if handover else state
      state, terms, metrics = self.teach(tools, state, batches, keys[0])
      objectives = passes(tools, terms, (LABELLED, PSEUDO), joint=self.joint, key=keys[2])
      state, learnt = gradient_step(tools, state, 'student', optimizers['student'], *objectives)
      state, decay = self.follow(tools, state)
      return state.replace(step=state.step + 1), metrics | learnt | decay

    return step

  def teach(
    self, tools: Tools, state: TrainState, batches: dict[str, Batch], key: Array
  ) -> tuple[TrainState, dict[str, Term], Metrics]:
    """Step 1 of Algorithm 1: the terms of ground truth and of the teacher's labels."""
    labelled = self.labelled(tools, batches)
    said: Teaching = teach(
      tools, self, state.networks['teacher'], labelled.images, batches['unlabelled'], key,
      joint=self.joint, own_statistics=self.teacher_batch_norm == 'own')
    terms = {LABELLED: labelled, PSEUDO: said.term}
    return state.with_networks(teacher=said.teacher), terms, said.metrics
