"""UniMatch V1 in float64 NumPy (sheet b, section 4).

One step, by the numbers of "One iteration": labels of the weak view (2, 6), CutMix of two strong
views (3), the weak view with dropped features (4), L_x (7), L_1 and L_2 (8), L_fp (9), their sum
(10), SGD (11). The features that are perturbed are the backbone's output.

Paper and code, the first being the default here: as in `fixmatch`, partner and `late_rate`.
"""

import numpy as np

from tests.oracles import fixmatch
from tests.oracles import linear_model_b as lm

PAPER = {**fixmatch.PAPER, 'strong_weight': 0.25, 'features_weight': 0.5}
RELEASED = fixmatch.RELEASED


def targets(params, unlabelled, strong, boxes, partner, options):
  """Fixmatch's, and image, label, weight of the weak view, which is never mixed."""
  target = fixmatch.targets(params, unlabelled, strong, boxes, partner, options)
  weak = lm.pixels(unlabelled['image'], unlabelled['valid'])
  return {**target, 'weak': (weak, *fixmatch.confident(target['clean'], options['threshold']))}


def objective(nodes, labelled, target, feature_masks, options):
  x, label = lm.pixels(labelled['image']), lm.flat(labelled['label'])
  loss_l = lm.supervised(lm.forward(nodes, x), label, options['ohem'])
  strong = [lm.cross_entropy(lm.forward(nodes, x), label, weight)
            for x, label, weight in target['views']]
  x, label, weight = target['weak']
  dropped = lm.encode(nodes, x) * feature_masks[:, None]
  loss_fp = lm.cross_entropy(lm.decode(nodes, dropped), label, weight)
  total = (loss_l + options['strong_weight'] * (strong[0] + strong[1])
           + options['features_weight'] * loss_fp) / 2
  return total, {'labelled': loss_l, 'strong_1': strong[0], 'strong_2': strong[1],
                 'features': loss_fp}


def step(state, labelled, unlabelled, *, strong, boxes, feature_masks, partner=None, hyper=None):
  """One training step -> (state, losses before it).

  Args:
    labelled: image uint8 [B,H,W,3], label [B,H,W]. unlabelled: image, valid bool [B,H,W].
    strong: float [2,B,H,W,3] in [0,1], the strong views before CutMix.
    boxes: int [2,B,4] of (top, left, bottom, right), taken from the partner.
    feature_masks: [B,F] of 0 and 2, times the features of the weak view.
    partner: None for the next image, or {'image', 'valid', 'strong'} of the same shapes.
    hyper: options that differ from PAPER.
  """
  options = lm.settings(PAPER, hyper)
  params = state['networks']['model']
  target = targets(params, unlabelled, strong, boxes, partner, options)
  params, momentum, losses = lm.descend(
    lambda nodes: objective(nodes, labelled, target, feature_masks, options), params,
    state['optimizers']['model'], state['step'], options)
  return {'step': state['step'] + 1, 'networks': {'model': params},
          'optimizers': {'model': momentum}, 'memory': state['memory']}, losses


def make_problem(seed, **sizes):
  """(state, labelled, unlabelled, randomness): lists with one entry for each step."""
  rng, params, labelled, unlabelled = lm.make_batches(seed, **sizes)
  randomness = []
  for batch in unlabelled:
    n, *size = batch['valid'].shape
    randomness.append({
      'strong': np.stack([lm.strong_view(rng, batch['image']) for _ in range(2)]),
      'boxes': np.stack([lm.random_boxes(rng, n, size) for _ in range(2)]),
      'feature_masks': 2.0 * rng.integers(0, 2, (n, len(params['backbone']['bias'])))})
  return lm.init_state(params, ['model'], ['model']), labelled, unlabelled, randomness
