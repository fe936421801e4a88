"""Mean teacher with soft consistency on the linear model: the row MT of GTA-Seg's Table 2.

Sheet A, section 5, "TorchSemiSeg MT":
  L = CE(f_s(x_l), y) + w mean over pixels and classes of (softmax f_s(x) - sg softmax f_t(x))^2,
  x = [x_l; u], w = 100 without a ramp, no perturbation; SGD of the student; the student is scored.

Where descriptions differ; the first is the default here:
  hyper['average']: 'after' (GTA-Seg's Eq. 5: "after the parameters of the student model are
    updated"), or 'before' (TorchSemiSeg: inside the labelled call, before both the teacher's pass
    and the SGD step; the teacher becomes the student's copy at step 0).
  hyper['consistency_on']: 'both' (TorchSemiSeg) or 'unlabelled' (PixelSSL's MT).
  hyper['consistency_of']: 'probabilities' (TorchSemiSeg) or 'logits' (PixelSSL's MT).
  hyper['consistency_weight'], hyper['ema_decay']: functions of the step, so that ramps can be
    given: PixelSSL has exp(-5 (1 - k/K)^2) and min(1 - 1/(k+1), .99), see `ramped`.
Padding of unlabelled images does not count; labelled pixels with label 255 do in the consistency,
unless hyper['labelled_void'] is 'ignore'.
"""

import numpy as np

from tests.oracles.linear_model import (
  IGNORE,
  add,
  average,
  backward,
  forward,
  learn,
  mean_weights,
  pixels,
  scale,
  softmax,
  squared_error,
  supervised,
)


def ramped(decay):
  """k -> min(1 - 1 / (k + 1), decay): the usual start of an EMA."""
  return lambda step: min(1 - 1 / (step + 1), decay)


def consistency(logits, target, weight, of):
  """The squared error of probabilities or logits, and d / d logits."""
  if of == 'probabilities':
    return squared_error(logits, target, weight)
  difference, classes = logits - target, logits.shape[1]
  return ((weight[:, None] * difference**2).sum() / classes,
          2 * weight[:, None] * difference / classes)


def objective(params, labelled, x, target, weight, factor, of='probabilities'):
  """The student's losses and gradient.

  Args:
    x: [N,3]; target: [N,K] the teacher's; weight: [N] summing to one; factor: w.
  """
  loss_labelled, gradient = supervised(params, labelled)
  layers = forward(params, x)
  loss, delta = consistency(layers['logits'], target, weight, of)
  gradient = add(gradient, scale(backward(params, layers, delta), factor))
  return {'labelled': loss_labelled, 'consistency': loss,
          'total': loss_labelled + factor * loss}, gradient


def consistency_weights(labelled, valid, hyper):
  """[N_l + N_u] weights of the pixels in the consistency's mean."""
  counted = np.ones(labelled['label'].size, bool)
  if hyper.get('labelled_void', 'learn') == 'ignore':
    counted = labelled['label'].reshape(-1) != IGNORE
  if hyper.get('consistency_on', 'both') == 'unlabelled':
    counted = np.zeros_like(counted)
  return mean_weights(np.concatenate([counted, valid.reshape(-1)]))


def step(state, labelled, unlabelled, *, noise=(0.0, 0.0), hyper):
  """One step.

  Args:
    state: networks 'student' and 'teacher', momentum of 'student'.
    noise: of student and teacher, added to x = [x_l; u], each 0 or [N_l + N_u, 3] in units of
      x in [0,1]; the supervised loss sees none.
  Returns: the next state; losses {'labelled', 'consistency', 'total'} before the update.
  """
  student, teacher = (state['networks'][name] for name in ('student', 'teacher'))
  decay = hyper['ema_decay'](state['step'])
  before = hyper.get('average', 'after') == 'before'
  if before:
    teacher = average(student if state['step'] == 0 else teacher, student, decay)
  x = np.concatenate([pixels(labelled), pixels(unlabelled)])
  of = hyper.get('consistency_of', 'probabilities')
  target = forward(teacher, x + noise[1])['logits']
  target = softmax(target) if of == 'probabilities' else target
  weight = consistency_weights(labelled, unlabelled['valid'], hyper)
  factor = hyper['consistency_weight'](state['step'])
  losses, gradient = objective(student, labelled, x + noise[0], target, weight, factor, of)
  state = learn(state, {'student': gradient}, hyper)
  if not before:
    teacher = average(teacher, state['networks']['student'], decay)
  return {**state, 'networks': {**state['networks'], 'teacher': teacher}}, losses
