"""CPS with CutMix on the linear model: sheet A, section 1, "Iteration with CutMix".

Lines of the sheet (k = 1, 2 are 'student' and 'assistant'):
  1  a mask of boxes, exclusive or          given: `inside`, see linear_model.box_mask
  2  z_k^0, z_k^1 = sg f_k(u0), f_k(u1); u_mix = u0 (1 - m) + u1 m
  3  y_k = argmax(z_k^0 (1 - m) + z_k^1 m)
  4  L_cps = CE(f_1(u_mix), y_2) + CE(f_2(u_mix), y_1)
  5  L = CE(f_1(x_l), y) + CE(f_2(x_l), y) + lambda L_cps; lambda 1 (VOC); two SGD steps

Paper and code differ in line 4. hyper['cross_on']:
  'both' (default, the paper's formula): L_cps also counts the labelled images, unmixed, each with
    the other network's labels of them, in a mean of their own (hyper['cross_mean'], 'separate' by
    default here, and hyper['labelled_void'] as in cps).
  'unlabelled' (the official code): the mixed images alone.
A mixed pixel is valid if the pixel it came from is.
"""

import numpy as np

from tests.oracles.cps import OTHER, cross_weights, learn_from_each_other
from tests.oracles.linear_model import following, forward, mean_weights, mix, mix_batch, pixels


def step(state, labelled, unlabelled, *, inside, partner=None, hyper):
  """One step.

  Args:
    state, labelled: as in cps.step. unlabelled: u0.
    inside: [B,H,W] bool, m: true where the mixed image shows the partner.
    partner: u1, a batch like u0; by default image i + 1 of u0, cyclically.
  Returns: the next state; losses as in cps.step.
  """
  partner = following(unlabelled) if partner is None else partner
  mixed = mix_batch(unlabelled, partner, inside)
  labels = {}
  for name in OTHER:
    first, second = (
      forward(state['networks'][name], pixels(batch))['logits'].reshape(*inside.shape, -1)
      for batch in (unlabelled, partner))
    labels[name] = mix(first, second, inside).argmax(-1).reshape(-1)
  if hyper.get('cross_on', 'both') == 'unlabelled':
    weight = mean_weights(mixed['valid'].reshape(-1))
    return learn_from_each_other(state, labelled, pixels(mixed), labels, weight, hyper)
  x_l = pixels(labelled)
  for name in OTHER:
    own = forward(state['networks'][name], x_l)['logits'].argmax(1)
    labels[name] = np.concatenate([own, labels[name]])
  weight = cross_weights(labelled, mixed['valid'], {'cross_mean': 'separate', **hyper})
  x = np.concatenate([x_l, pixels(mixed)])
  return learn_from_each_other(state, labelled, x, labels, weight, hyper)
