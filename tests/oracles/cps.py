"""Cross pseudo supervision (CPS) on the linear model: sheet A, section 1, without CutMix.

Lines of the sheet, and where they are below (k = 1, 2 are 'student' and 'assistant'):
  1  z_k = f_k([x_l; u])                                   forward in `step`
  2  y_k = argmax z_k, integers: no gradient               `step`
  3  L_cps = CE(z_1, y_2) + CE(z_2, y_1)                   `objective`, a mean over labelled and
                                                           unlabelled pixels together
  4  L = CE(z_1^l, y) + CE(z_2^l, y) + lambda L_cps        `objective`; lambda 1.5 (VOC), no ramp
  5  one backward of L, one SGD step for each network      `learn`

hyper, besides those of linear_model:
  cross_weight: lambda.
  cross_mean: 'joint' (default) is line 3's one mean over all 2B images. 'separate' adds a mean over
    the labelled pixels and one over the unlabelled ones.
  labelled_void: 'learn' (default): labelled pixels with label 255 learn from the other network, as
    nothing is 255 in y_k. 'ignore': they are left out of L_cps.
Padding of unlabelled images (valid false) gets pseudo-labels in the official code; here it never
counts, as the sheet's pitfalls recommend.
"""

import numpy as np

from tests.oracles.linear_model import (
  IGNORE,
  add,
  backward,
  cross_entropy,
  forward,
  learn,
  mean_weights,
  pixels,
  scale,
  supervised,
)

OTHER = {'student': 'assistant', 'assistant': 'student'}


def cross_weights(labelled, valid, hyper):
  """Weights [N_l + N_u] of the pixels in L_cps; a sum with them is the mean asked for."""
  known = labelled['label'].reshape(-1) != IGNORE
  counted = known if hyper.get('labelled_void', 'learn') == 'ignore' else np.ones_like(known)
  valid = valid.reshape(-1)
  if hyper.get('cross_mean', 'joint') == 'separate':
    return np.concatenate([mean_weights(counted), mean_weights(valid)])
  return mean_weights(np.concatenate([counted, valid]))


def objective(params, labelled, x, label, weight, cross_weight):
  """One network's part of L: its losses and gradient.

  Args:
    x: [N,3] inputs of L_cps; label: [N] the other network's; weight: [N], see `cross_weights`.
  """
  loss_labelled, gradient = supervised(params, labelled)
  layers = forward(params, x)
  loss_cross, delta = cross_entropy(layers['logits'], label, weight)
  gradient = add(gradient, scale(backward(params, layers, delta), cross_weight))
  losses = {'labelled': loss_labelled, 'cross': loss_cross,
            'total': loss_labelled + cross_weight * loss_cross}
  return losses, gradient


def learn_from_each_other(state, labelled, x, labels, weight, hyper):
  """Lines 3-5: both networks on inputs x, each with the other's labels {name: [N]}."""
  losses, gradients = {}, {}
  for name, other in OTHER.items():
    losses[name], gradients[name] = objective(
      state['networks'][name], labelled, x, labels[other], weight, hyper['cross_weight'])
  return learn(state, gradients, hyper), losses


def step(state, labelled, unlabelled, *, hyper):
  """One step without CutMix; nothing is random.

  Args:
    state: networks and momentum of 'student' (evaluated) and 'assistant'.
    labelled: 'image', 'label'; unlabelled: 'image', 'valid'.
  Returns: the next state; losses {name: {'labelled', 'cross', 'total'}} before the update. L is the
    sum of both totals.
  """
  x = np.concatenate([pixels(labelled), pixels(unlabelled)])
  labels = {name: forward(state['networks'][name], x)['logits'].argmax(1) for name in OTHER}
  weight = cross_weights(labelled, unlabelled['valid'], hyper)
  return learn_from_each_other(state, labelled, x, labels, weight, hyper)
