"""Algorithm 1: one warm-up step and one semi-supervised step, as pure functions.

Every choice is read from the Method while tracing; the compiled program holds no branch for it.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gta_jax import trees
from gta_jax.losses import IGNORE, SupervisedLoss, cross_entropy
from gta_jax.methods import LABELLED, PSEUDO, Method
from gta_jax.mixing import mix
from gta_jax.network import Array, Logits, Network, Params, Variables
from gta_jax.photometric import augment
from gta_jax.pseudo_labels import confidence_threshold, confidence_weights, pseudo_labels
from gta_jax.resizing import resize_bilinear
from gta_jax.state import Optimizers, TrainState
from gta_jax.transmission import ema_decay, transmit

Metrics = dict[str, Array]
Batch = Mapping[str, Array]
Step = Callable[[TrainState, Batch, Batch], tuple[TrainState, Metrics]]


class Lesson(NamedTuple):
  """Images and what a network's logits on them cost.

  images: [B,H,W,3] normalised float.
  loss: Logits -> [] float32.
  """

  images: Array
  loss: Callable[[Logits], Array]


def make_warmup_step(
  network: Network,
  method: Method,
  optimizers: Optimizers,
  *,
  loss: SupervisedLoss | None = None,
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

  def step(state: TrainState, labelled: Batch, unlabelled: Batch) -> tuple[TrainState, Metrics]:
    del unlabelled
    key = jax.random.fold_in(state.key, state.step)
    lessons = {LABELLED: _labelled_lesson(network, labelled, loss)}
    student, student_opt, losses = _learn(
      network, optimizers.student, state.student, state.student_opt, lessons, (LABELLED,),
      joint=False, key=key,
    )
    followers = {'teacher': state.teacher, 'assistant': state.assistant}
    assistant_opt = state.assistant_opt
    if method.warmup == 'all':
      followers = {name: old and student for name, old in followers.items()}
      assistant_opt = assistant_opt and student_opt
    else:
      images = lessons[LABELLED].images
      for name, old in followers.items():
        if old is not None:
          _, stats = network.apply(old, images, train=True, dropout_key=key)
          followers[name] = {**old, 'batch_stats': stats}
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
  Returns: (state, labelled, unlabelled) -> (state, metrics), to be jitted with the state donated.
    labelled: {'image' uint8 [B,H,W,3], 'label' uint8 [B,H,W]}; unlabelled: {'image', 'valid' bool
    [B,H,W]} and perhaps 'label', which is used for metrics only. Batches of the two may differ.
  """
  loss = loss or SupervisedLoss()
  if method.warmup == 'student':
    handover_steps = max(handover_steps, 1)

  def step(state: TrainState, labelled: Batch, unlabelled: Batch) -> tuple[TrainState, Metrics]:
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
    since_warmup = state.step - warmup_steps
    in_handover = (since_warmup < handover_steps) if handover_steps else None
    teacher, student, assistant = _hand_over(state, in_handover)

    lessons = {LABELLED: _labelled_lesson(network, labelled, loss)}
    metrics: Metrics = {}
    if method.uses_unlabelled:
      lessons[PSEUDO], teacher, metrics = _pseudo_lesson(
        network, method, teacher, lessons[LABELLED].images, unlabelled, keys[0])
    elif method.teacher_batch_norm == 'own':
      _, stats = network.apply(
        teacher, lessons[LABELLED].images, train=True, dropout_key=keys[0])
      teacher = {**teacher, 'batch_stats': stats}
    joint = method.batch_norm == 'joint'

    decays = {
      name: ema_decay(since_warmup, decay=decay, ramp=method.ema_ramp)
      for name, decay in (('transmission_decay', method.transmission_decay),
                          ('teacher_decay', method.teacher_decay))
    }
    assistant_opt = state.assistant_opt
    if method.has_assistant:
      assistant, assistant_opt, losses = _learn(
        network, optimizers.assistant, assistant, assistant_opt, lessons,
        method.assistant_learns, joint=joint, key=keys[1])
      metrics |= {f'assistant_{name}_loss': value for name, value in losses.items()}
      metrics['assistant_rate'] = optimizers.assistant_rate(state.step)
      student = _receive(method, student, assistant, decays['transmission_decay'], in_handover)

    student, student_opt, losses = _learn(
      network, optimizers.student, student, state.student_opt, lessons,
      method.student_learns, joint=joint, key=keys[2])
    metrics |= {f'student_{name}_loss': value for name, value in losses.items()}
    if method.has_assistant and method.shared:
      shared = trees.select(student['params'], method.shared)
      assistant = {**assistant, 'params': trees.replace(assistant['params'], shared)}

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


def _receive(
  method: Method,
  student: Variables,
  assistant: Variables,
  decay: Array,
  in_handover: Array | None,
) -> Variables:
  """The student after the assistant's step: shared keys are the assistant's, others averaged."""
  params, taught = student['params'], assistant['params']
  if method.shared:
    if in_handover is not None:
      # In the published code the copy of a hand-over step shares every tensor, not only these.
      params = _where(in_handover, taught, params)
    params = trees.replace(params, trees.select(taught, method.shared))
  return {**student, 'params': transmit(params, taught, decay, keys=method.transmitted)}


def _labelled_lesson(network: Network, labelled: Batch, loss: SupervisedLoss) -> Lesson:
  labels = labelled['label'].astype(jnp.int32)
  return Lesson(network.normalize(labelled['image']), lambda logits: loss(logits, labels))


def _pseudo_lesson(
  network: Network,
  method: Method,
  teacher: Variables,
  labelled_images: Array,
  unlabelled: Batch,
  key: Array,
) -> tuple[Lesson, Variables, Metrics]:
  """Step 1 of Algorithm 1. Also returns the teacher, whose running statistics may have moved."""
  key_mix, key_photometric, key_dropout = jax.random.split(key, 3)
  valid = unlabelled['valid']
  size = valid.shape[1:3]
  # Padding is blanked, so that whatever stands there has no influence through a receptive field.
  images = jnp.where(valid[..., None], network.normalize(unlabelled['image']), 0.0)
  logits, _ = network.apply(teacher, images)
  probabilities = jax.nn.softmax(resize_bilinear(logits.main, size))
  num_classes = probabilities.shape[-1]
  labels, confidence = pseudo_labels(probabilities)
  labels = jnp.where(valid, labels, IGNORE)
  metrics = _oracle_metrics(labels, unlabelled, num_classes) if 'label' in unlabelled else {}
  metrics['confidence'] = jnp.mean(confidence, where=valid)
  if method.confidence_pass == 'clean':
    labels, metrics['threshold'] = _drop(method, labels, confidence)

  images, labels, confidence = mix(
    key_mix, images, labels, confidence, kind=method.mixing, num_classes=num_classes,
    probability=method.mixing_probability)
  images = augment(
    key_photometric, images, network, jitter=method.jitter, greyscale=method.greyscale,
    blur=method.blur)

  if method.confidence_pass == 'mixed' or method.teacher_batch_norm == 'own':
    seen = jnp.concatenate([labelled_images, images]) if method.batch_norm == 'joint' else images
    logits, stats = network.apply(teacher, seen, train=True, dropout_key=key_dropout)
    if method.teacher_batch_norm == 'own':
      teacher = {**teacher, 'batch_stats': stats}
    if method.confidence_pass == 'mixed':
      logits_full = resize_bilinear(logits.main[-images.shape[0]:], size)
      _, confidence = pseudo_labels(jax.nn.softmax(logits_full))
      labels, metrics['threshold'] = _drop(method, labels, confidence)

  kept = labels != IGNORE
  weights = _weigh(method, kept, confidence)

  def pseudo_loss(logits: Logits) -> Array:
    logits_full = resize_bilinear(logits.main, size)
    unscaled = cross_entropy(logits_full, labels, weights, reduction=method.reduction)
    return method.unlabelled_weight * unscaled

  pixels = jnp.maximum(jnp.sum(kept), 1)
  metrics |= {
    'kept_share': jnp.mean(kept),
    'mean_weight': jnp.sum(weights) / pixels,
    'kept_share_by_class': _class_counts(labels, num_classes) / pixels,
  }
  return Lesson(images, pseudo_loss), teacher, metrics


def _by_group(method: Method, function: Callable, *arrays: Array) -> Any:
  """Maps `function` over groups of images that share a threshold: the whole batch, or fewer."""
  batch = len(arrays[0])
  group = method.threshold_images or batch
  if batch % group:
    raise ValueError(
      f'threshold_images={group} does not split a batch of {batch} unlabelled images; '
      'use a divisor of it, or 0 for the whole batch.')
  return jax.vmap(function)(*(x.reshape(-1, group, *x.shape[1:]) for x in arrays))


def _drop(method: Method, labels: Array, confidence: Array) -> tuple[Array, Array]:
  """Labels without the least confident of each group (Eq. 2), and the mean threshold."""
  def of_group(labels: Array, confidence: Array) -> tuple[Array, Array]:
    labelled = labels != IGNORE
    threshold = confidence_threshold(confidence, labelled, drop_fraction=method.drop_fraction)
    return jnp.where(confidence > threshold, labels, IGNORE), threshold

  dropped, threshold = _by_group(method, of_group, labels, confidence)
  return dropped.reshape(labels.shape), jnp.mean(threshold)


def _weigh(method: Method, kept: Array, confidence: Array) -> Array:
  """The weights of the kept pixels, normalised within each group (Eq. 6)."""
  if not method.reweight:
    return kept.astype(jnp.float32)
  weigh = functools.partial(
    confidence_weights, smoothing=method.smoothing, normalizer=method.weight_normalizer)
  return _by_group(method, weigh, confidence, kept).reshape(kept.shape)


def _class_counts(labels: Array, num_classes: int) -> Array:
  return jnp.sum(labels[..., None] == jnp.arange(num_classes), axis=tuple(range(labels.ndim)))


def _oracle_metrics(labels: Array, unlabelled: Batch, num_classes: int) -> Metrics:
  """Accuracy of the teacher's labels where masks happen to exist; nothing learns from it."""
  truth = unlabelled['label'].astype(jnp.int32)
  known = (truth != IGNORE) & (labels != IGNORE)
  right = _class_counts(jnp.where(known & (labels == truth), truth, IGNORE), num_classes)
  there = _class_counts(jnp.where(known, truth, IGNORE), num_classes)
  return {
    'oracle_accuracy': jnp.sum(right) / jnp.maximum(jnp.sum(there), 1),
    'oracle_accuracy_by_class': right / there,
  }


def _learn(
  network: Network,
  optimizer: optax.GradientTransformation,
  variables: Variables,
  opt_state: optax.OptState,
  lessons: Mapping[str, Lesson],
  learns: Iterable[str],
  *,
  joint: bool,
  key: Array,
) -> tuple[Variables, optax.OptState, Metrics]:
  """One gradient step on the lessons it learns from (Eq. 8 or 11).

  joint: all lessons' images go through as one batch and share their batch statistics, also those
  that it does not learn from. Otherwise each lesson it learns from is a batch of its own.
  """
  learns = tuple(learns)

  def objective(params: Params) -> tuple[Array, tuple[Params, Metrics]]:
    stats = variables['batch_stats']
    if joint:
      images = jnp.concatenate([lesson.images for lesson in lessons.values()])
      logits, stats = network.apply(
        {'params': params, 'batch_stats': stats}, images, train=True, dropout_key=key)
      outputs, start = {}, 0
      for name, lesson in lessons.items():
        part = slice(start, start + len(lesson.images))
        outputs[name] = jax.tree.map(lambda x, part=part: x[part], logits)
        start = part.stop
    else:
      outputs = {}
      for i, name in enumerate(learns):
        outputs[name], stats = network.apply(
          {'params': params, 'batch_stats': stats}, lessons[name].images, train=True,
          dropout_key=jax.random.fold_in(key, i))
    losses = {name: lessons[name].loss(outputs[name]) for name in learns}
    return sum(losses.values()), (stats, losses)

  gradient, (stats, losses) = jax.grad(objective, has_aux=True)(variables['params'])
  updates, opt_state = optimizer.update(gradient, opt_state, variables['params'])
  params = optax.apply_updates(variables['params'], updates)
  return {'params': params, 'batch_stats': stats}, opt_state, losses
