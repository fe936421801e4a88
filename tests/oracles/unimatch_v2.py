"""UniMatch V2 in float64 NumPy (sheet b, section 5).

One step, by the numbers of "One iteration": the EMA teacher's labels (2), CutMix with the
reversed batch (3), complementary dropout on the encoder's features (4), L_x and L_k (5), AdamW
(6), EMA (7). One strong view without dropout is the FixMatch of that repository.

Paper and code, the first being the default here:
  - rate of step t: lr (1 - t/T)^0.9 | set after the step: `late_rate`.
  - CutMix's partner: the sheet names the code's only, `reversed`; `next` is UniMatch V1's.
  - dropout: the paper reads as on the last layer, the code drops all taps; here there is one.
  - Cityscapes: `ohem`. Optimiser: `adamw`; `sgd` for hosts without it.
"""

import numpy as np

from tests.oracles import fixmatch
from tests.oracles import linear_model_b as lm
from tests.oracles.tape_b import Node, gradient, map_tree

PAPER = {**lm.SGD, 'rate': 5e-6, 'decoder_multiplier': 40.0, 'weight_decay': 0.01,
         'optimizer': 'adamw', 'betas': (0.9, 0.999), 'epsilon': 1e-8, 'threshold': 0.95,
         'ohem': None, 'ema_decay': 0.996, 'partner': 'reversed'}
RELEASED = {'late_rate': True}


def complementary_masks(bernoulli, undropped):
  """Step 4: M1 = 2 Bernoulli, M2 = 2 - M1, both one for undropped pairs; [2,B,F]."""
  first = np.where(undropped[:, None], 1.0, 2.0 * bernoulli)
  return np.stack([first, 2.0 - first])


def targets(teacher, unlabelled, strong, boxes, options):
  """Steps 2 and 3: [(image, label, weight) for each strong view]."""
  clean = fixmatch.clean_labels(teacher, unlabelled)
  order = np.arange(len(clean['label']))
  order = order[::-1] if options['partner'] == 'reversed' else np.roll(order, -1)
  other = {name: value[order] for name, value in clean.items()}
  views = []
  for image, box in zip(strong, boxes, strict=True):
    x, labels = fixmatch.cut_mix(clean, other, image, image[order], box)
    views.append((x, *fixmatch.confident(labels, options['threshold'])))
  return views


def objective(nodes, labelled, views, masks, options):
  x, label = lm.pixels(labelled['image']), lm.flat(labelled['label'])
  loss_l = lm.supervised(lm.forward(nodes, x), label, options['ohem'])
  loss_s, parts = 0.0, {}
  for k, ((x, label, weight), mask) in enumerate(zip(views, masks, strict=True)):
    logits = lm.decode(nodes, lm.encode(nodes, x) * mask[:, None])
    parts[f'strong_{k + 1}'] = lm.cross_entropy(logits, label, weight)
    loss_s = loss_s + parts[f'strong_{k + 1}'] / len(views)
  return (loss_l + loss_s) / 2, {'labelled': loss_l, **parts}


def adamw(params, moments, grads, rate, options):
  """Step 6: torch's AdamW, decay decoupled and times each key's rate."""
  (b1, b2), count = options['betas'], moments['count'] + 1
  mean = map_tree(lambda m, g: b1 * m + (1 - b1) * g, moments['mean'], grads)
  variance = map_tree(lambda v, g: b2 * v + (1 - b2) * g * g, moments['variance'], grads)

  def descended(p, m, v, key_rate):
    p = p * (1 - key_rate * options['weight_decay'])
    root = np.sqrt(v / (1 - b2 ** count)) + options['epsilon']
    return p - key_rate * m / (1 - b1 ** count) / root

  new = {}
  for key in params:
    key_rate = rate * (1.0 if key == 'backbone' else options['decoder_multiplier'])
    new[key] = {name: descended(params[key][name], mean[key][name], variance[key][name], key_rate)
                for name in params[key]}
  return new, {'count': count, 'mean': mean, 'variance': variance}


def step(state, labelled, unlabelled, *, strong, boxes, bernoulli, undropped, hyper=None):
  """One training step -> (state, losses before it).

  Args:
    labelled: image uint8 [B,H,W,3], label [B,H,W]. unlabelled: image, valid bool [B,H,W].
    strong: float [2,B,H,W,3] in [0,1], the strong views before CutMix; or [1,B,H,W,3].
    boxes: int [2,B,4] (or [1,B,4]) of (top, left, bottom, right), taken from the partner.
    bernoulli: [B,F] of 0 and 1. undropped: bool [B], floor(B/2) of them true.
    hyper: options that differ from PAPER.
  """
  options = lm.settings(PAPER, hyper)
  networks, student = state['networks'], state['networks']['student']
  views = targets(networks['teacher'], unlabelled, strong, boxes, options)
  masks = complementary_masks(bernoulli, undropped)
  if len(strong) == 1:
    masks = np.ones_like(masks[:1])
  nodes = map_tree(Node, student)
  loss, parts = objective(nodes, labelled, views, masks, options)
  descend = adamw if options['optimizer'] == 'adamw' else lm.sgd
  student, optimizer = descend(student, state['optimizers']['student'], gradient(loss, nodes),
                               lm.poly_rate(state['step'], options), options)
  decay = lm.ramped_decay(state['step'], options['ema_decay'])
  networks = {'student': student, 'teacher': lm.average(networks['teacher'], student, decay)}
  losses = {'total': loss, **parts}
  return ({'step': state['step'] + 1, 'networks': networks, 'memory': state['memory'],
           'optimizers': {'student': optimizer}},
          {name: float(value.value) for name, value in losses.items()})


def make_problem(seed, *, optimizer='adamw', **sizes):
  """(state, labelled, unlabelled, randomness): lists with one entry for each step."""
  rng, params, labelled, unlabelled = lm.make_batches(seed, **sizes)
  randomness = []
  for batch in unlabelled:
    n, *size = batch['valid'].shape
    randomness.append({
      'strong': np.stack([lm.strong_view(rng, batch['image']) for _ in range(2)]),
      'boxes': np.stack([lm.random_boxes(rng, n, size) for _ in range(2)]),
      'bernoulli': rng.integers(0, 2, (n, len(params['backbone']['bias']))),
      'undropped': rng.permutation(n) < n // 2})
  state = lm.init_state(params, ['student', 'teacher'], ['student'])
  if optimizer == 'adamw':
    zeros = state['optimizers']['student']
    state['optimizers']['student'] = {'count': 0, 'mean': zeros, 'variance': zeros}
  return state, labelled, unlabelled, randomness
