"""FixMatch as UniMatch's repository has it, in float64 NumPy (sheet b, section 4).

One step, by the numbers of "One iteration": labels of the weak view (2, 6), CutMix of one strong
view (3), L_x (7), L_s (8), L = (L_x + L_s) / 2, SGD (11).

Paper and code, the first being the default here:
  - CutMix's partner: the next image of the batch | another view of the same image, from a second
    loader: give `partner`.
  - rate of step t: lr (1 - t/T)^0.9 | set after the step, so that steps 0 and 1 share it:
    `late_rate`.
  - Cityscapes: `ohem` (0.7, 200000 for each 2 images) and `threshold` 0.
Joint or separate passes are the same without BatchNorm.
"""

import numpy as np

from tests.oracles import linear_model_b as lm

PAPER = {**lm.SGD, 'rate': 0.001, 'threshold': 0.95, 'ohem': None}
RELEASED = {'late_rate': True}


def clean_labels(params, batch):
  """Steps 2 and 6 before mixing: label, confidence and valid of the weak view, [B,H,W]."""
  shape = batch['valid'].shape
  p = lm.softmax(lm.forward(params, lm.pixels(batch['image'], batch['valid'])))
  return {'label': p.argmax(-1).reshape(shape), 'confidence': p.max(-1).reshape(shape),
          'valid': batch['valid']}


def cut_mix(outer, inner, outer_image, inner_image, boxes):
  """Steps 3 and 6: image [B,N,3], and label, confidence, valid with the box from the partner."""
  box = lm.inside(boxes, outer['valid'].shape[1:])
  mixed = {name: lm.paste(outer[name], inner[name], box) for name in outer}
  return lm.pixels(lm.paste(outer_image, inner_image, box), mixed['valid']), mixed


def confident(labels, threshold):
  """Step 8: label [B,N] and weight; the divisor counts every valid pixel, kept or not."""
  kept = labels['valid'] & (labels['confidence'] >= threshold)
  return lm.flat(labels['label']), lm.flat(kept) / max(labels['valid'].sum(), 1)


def targets(params, unlabelled, strong, boxes, partner, options):
  """All that stands under the stop-gradient: [(image, label, weight) for each strong view]."""
  clean = clean_labels(params, unlabelled)
  if partner is None:
    other = {name: np.roll(value, -1, 0) for name, value in clean.items()}
    other_strong = np.roll(strong, -1, 1)
  else:
    other, other_strong = clean_labels(params, partner), partner['strong']
  views = []
  for k, box in enumerate(boxes):
    x, labels = cut_mix(clean, other, strong[k], other_strong[k], box)
    views.append((x, *confident(labels, options['threshold'])))
  return {'clean': clean, 'views': views}


def objective(nodes, labelled, target, options):
  x, label = lm.pixels(labelled['image']), lm.flat(labelled['label'])
  loss_l = lm.supervised(lm.forward(nodes, x), label, options['ohem'])
  (x, label, weight), = target['views']
  loss_s = lm.cross_entropy(lm.forward(nodes, x), label, weight)
  return (loss_l + loss_s) / 2, {'labelled': loss_l, 'strong': loss_s}


def step(state, labelled, unlabelled, *, strong, boxes, partner=None, hyper=None):
  """One training step -> (state, losses before it).

  Args:
    labelled: image uint8 [B,H,W,3], label [B,H,W]. unlabelled: image, valid bool [B,H,W].
    strong: float [B,H,W,3] in [0,1], the strong view before CutMix.
    boxes: int [B,4] of (top, left, bottom, right), taken from the partner.
    partner: None for the next image, or {'image', 'valid', 'strong'} of the same shapes.
    hyper: options that differ from PAPER.
  """
  options = lm.settings(PAPER, hyper)
  params = state['networks']['model']
  partner = partner and {**partner, 'strong': partner['strong'][None]}
  target = targets(params, unlabelled, strong[None], boxes[None], partner, options)
  params, momentum, losses = lm.descend(
    lambda nodes: objective(nodes, labelled, target, options), params,
    state['optimizers']['model'], state['step'], options)
  return {'step': state['step'] + 1, 'networks': {'model': params},
          'optimizers': {'model': momentum}, 'memory': state['memory']}, losses


def make_problem(seed, **sizes):
  """(state, labelled, unlabelled, randomness): lists with one entry for each step."""
  rng, params, labelled, unlabelled = lm.make_batches(seed, **sizes)
  randomness = []
  for batch in unlabelled:
    n, *size = batch['valid'].shape
    randomness.append({'strong': lm.strong_view(rng, batch['image']),
                       'boxes': lm.random_boxes(rng, n, size)})
  return lm.init_state(params, ['model'], ['model']), labelled, unlabelled, randomness
