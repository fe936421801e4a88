"""Algorithm 1: one warm-up step and one semi-supervised step, as pure functions.

Every choice is read from the Method while tracing; the compiled program holds no branch for it.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from gta_jax.methods.accumulation import WHOLE, MicroBatches
from gta_jax.methods.gradient_step import check_accumulation, learn, move_statistics
from gta_jax.methods.objectives import Batch, Metrics, labelled_lesson, pseudo_lesson
from gta_jax.methods.options import LABELLED, PSEUDO, Method
from gta_jax.methods.state import Optimizers, TrainState
from gta_jax.ops import trees
from gta_jax.ops.ema import ema_decay, transmit
from gta_jax.ops.losses import SupervisedLoss
from gta_jax.ops.network import Array, Network, Params, Variables

Step = Callable[[TrainState, Batch, Batch], tuple[TrainState, Metrics]]


def make_warmup_step(
  network: Network,
  method: Method,
  optimizers: Optimizers,
  *,
  loss: SupervisedLoss | None = None,
  micro: MicroBatches = WHOLE,
) -> Step:
  """The step of the warm-up: all networks learn from labelled data.

  With warmup='all' the three networks start equal, see the same images and drop the same
  channels, so they stay equal: the student is trained and copied. With warmup='student' (the
  published code) the other two only run forward in train mode, which moves their running
  statistics.

  Args: as for make_train_step.
  Returns: (state, labelled, unlabelled) -> (state, metrics); `unlabelled` is not read.
  """
  loss = loss or SupervisedLoss()
  check_accumulation(loss, micro)

  def step(state: TrainState, labelled: Batch, unlabelled: Batch) -> tuple[TrainState, Metrics]:
    del unlabelled
    key = jax.random.fold_in(state.key, state.step)
    lessons = {LABELLED: labelled_lesson(network, labelled, loss)}
    student, student_opt, losses = learn(
      network, optimizers.student, state.student, state.student_opt, lessons, (LABELLED,),
      joint=False, key=key, micro=micro)
    followers = {'teacher': state.teacher, 'assistant': state.assistant}
    assistant_opt = state.assistant_opt
    if method.warmup == 'all':
      followers = {name: old and student for name, old in followers.items()}
      assistant_opt = assistant_opt and student_opt
    else:
      images = lessons[LABELLED].images
      for name, old in followers.items():
        if old is not None:
          followers[name] = move_statistics(network, old, images, key=key, micro=micro)
    metrics = {f'student_{name}_loss': value for name, value in losses.items()}
    metrics['student_rate'] = optimizers.student_rate(state.step)
    state = state.replace(
      step=state.step + 1, student=student, student_opt=student_opt,
      assistant_opt=assistant_opt, **followers,
    )
    return state, metrics

  return step


def make_train_step(
  network: Network,
  method: Method,
  optimizers: Optimizers,
  *,
  loss: SupervisedLoss | None = None,
  warmup_steps: int = 0,
  handover_steps: int = 0,
  micro: MicroBatches = WHOLE,
) -> Step:
  """The step of the semi-supervised phase (Algorithm 1).

  1. The teacher labels the unlabelled images, drops the least confident pixels and weighs the
     rest (Eq. 1, 2, 6).
  2. The assistant learns from them (Eq. 7, 8); its features move the student's (Eq. 9).
  3. The student learns from ground truth (Eq. 10, 11), the teacher follows it (Eq. 12).

  Args:
    network: the network as pure functions.
    method: every choice.
    optimizers: as given to init_state.
    loss: of labelled images; plain cross-entropy by default.
    warmup_steps: steps before the first call; the EMA's ramp counts from there.
    handover_steps: so many steps begin with the student's parameters copied over the others.
    micro: how batches are cut into passes; gta_jax.methods.gradient_step says what stays the same.
  Returns: (state, labelled, unlabelled) -> (state, metrics), to be jitted with the state donated.
    labelled: {'image' uint8 [B,H,W,3], 'label' uint8 [B,H,W]}; unlabelled: {'image', 'valid' bool
    [B,H,W]} and perhaps 'label', which is used for metrics only. Batches of the two may differ.
  """
  loss = loss or SupervisedLoss()
  check_accumulation(loss, micro)
  if method.warmup == 'student':
    handover_steps = max(handover_steps, 1)

  def step(state: TrainState, labelled: Batch, unlabelled: Batch) -> tuple[TrainState, Metrics]:
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
    since_warmup = state.step - warmup_steps
    in_handover = (since_warmup < handover_steps) if handover_steps else None
    teacher, student, assistant = _hand_over(state, in_handover)

    lessons = {LABELLED: labelled_lesson(network, labelled, loss)}
    metrics: Metrics = {}
    if method.uses_unlabelled:
      lessons[PSEUDO], teacher, metrics = pseudo_lesson(
        network, method, teacher, lessons[LABELLED].images, unlabelled, keys[0], micro)
    elif method.teacher_batch_norm == 'own':
      teacher = move_statistics(
        network, teacher, lessons[LABELLED].images, key=keys[0], micro=micro)
    joint = method.batch_norm == 'joint'

    decays = {
      name: ema_decay(since_warmup, decay=decay, ramp=method.ema_ramp)
      for name, decay in (('transmission_decay', method.transmission_decay),
                          ('teacher_decay', method.teacher_decay))
    }
    assistant_opt = state.assistant_opt
    if method.has_assistant:
      assistant, assistant_opt, losses = learn(
        network, optimizers.assistant, assistant, assistant_opt, lessons,
        method.assistant_learns, joint=joint, key=keys[1], micro=micro)
      metrics |= {f'assistant_{name}_loss': value for name, value in losses.items()}
      metrics['assistant_rate'] = optimizers.assistant_rate(state.step)
      teacher, student = _receive(
        method, teacher, student, assistant, decays['transmission_decay'], in_handover)

    student, student_opt, losses = learn(
      network, optimizers.student, student, state.student_opt, lessons,
      method.student_learns, joint=joint, key=keys[2], micro=micro)
    metrics |= {f'student_{name}_loss': value for name, value in losses.items()}
    if method.has_assistant:
      assistant = _share(assistant, student, method.shared)
      if in_handover is not None:
        teacher = _share(teacher, student, method.shared, when=in_handover)

    followed = ('params', 'batch_stats') if method.teacher_batch_norm == 'ema' else ('params',)
    teacher = transmit(teacher, student, decays['teacher_decay'], keys=followed)
    metrics |= {'student_rate': optimizers.student_rate(state.step), **decays}
    state = state.replace(
      step=state.step + 1, teacher=teacher, student=student, assistant=assistant,
      student_opt=student_opt, assistant_opt=assistant_opt)
    return state, metrics

  return step


def _hand_over(
  state: TrainState, in_handover: Array | None
) -> tuple[Variables, Variables, Variables | None]:
  """Teacher, student and assistant, the student's parameters over the others' while it lasts."""
  if in_handover is None:
    return state.teacher, state.student, state.assistant
  params = state.student['params']

  def follow(variables: Variables | None) -> Variables | None:
    if variables is None:
      return None
    return {**variables, 'params': _where(in_handover, params, variables['params'])}

  return follow(state.teacher), state.student, follow(state.assistant)


def _where(condition: Array, yes: Params, no: Params) -> Params:
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _share(
  target: Variables, source: Variables, keys: Iterable[str], *, when: Array | None = None
) -> Variables:
  """`target` with the named parameters of `source`, under a condition if there is one."""
  part = trees.select(source['params'], keys)
  if when is not None:
    part = _where(when, part, trees.select(target['params'], keys))
  return {**target, 'params': trees.replace(target['params'], part)}


def _receive(
  method: Method,
  teacher: Variables,
  student: Variables,
  assistant: Variables,
  decay: Array,
  in_handover: Array | None,
) -> tuple[Variables, Variables]:
  """Teacher and student after the assistant's step: shared keys moved along, others averaged."""
  if method.shared and in_handover is not None:
    # The copy of a hand-over step of the published code shares every tensor of all three networks.
    everything = tuple(assistant['params'])
    student = _share(student, assistant, everything, when=in_handover)
    teacher = _share(teacher, assistant, everything, when=in_handover)
  student = _share(student, assistant, method.shared)
  params = student['params']
  params = transmit(params, assistant['params'], decay, keys=method.transmitted_keys(params))
  return teacher, {**student, 'params': params}
