"""PC2Seg-like training in float64 NumPy (sheet b, section 3, which is a reconstruction).

One step, by the numbers of "One iteration": L_x (3), consistency L_y (4), contrast L_c (5), their
sum (7), SGD (8). `log_weights` are the rules by which negatives are drawn (6).

The paper's sections and the code were not at hand; default first:
  - `normalised`: L_y on probabilities as they are ("l2", the abstract) | on l2-normalised ones.
  - `key_gradient`: the weak view's embeddings learn too | are constants.
  - a = `consistency_weight` 1, b = `contrast_weight` 0.1, t = `temperature` 0.1: guesses.
The head 'representation' is linear on the decoder's output here.
"""

import numpy as np

from tests.oracles import linear_model_b as lm
from tests.oracles.tape_b import Node, exp, log, log_softmax

PAPER = {**lm.SGD, 'rate': 0.007, 'decoder_multiplier': 1.0, 'temperature': 0.1,
         'consistency_weight': 1.0, 'contrast_weight': 0.1, 'normalised': False,
         'key_gradient': True}


def log_weights(probabilities, anchors, images, valid, rule):
  """Step 6: log of what the chance that pixel j is a negative of anchor i is proportional to.

  Args: probabilities [J,K], images [J], valid [J] of all pixels; anchors [A], indices of pixels.
  Returns: [A,J], -inf where never. Factors of `rule`, joined by '+': 'uniform', 'other_images',
    'other_classes' (1 - sum_c p_i(c) p_j(c)).
  """
  weight = np.broadcast_to(valid.astype(float), (len(anchors), len(valid)))
  factors = {
    'uniform': 1.0, 'other_images': images[anchors][:, None] != images[None],
    'other_classes': np.maximum(1 - probabilities[anchors] @ probabilities.T, 0)}
  for name in rule.split('+'):
    weight = weight * factors[name]
  with np.errstate(divide='ignore'):
    return np.log(weight)


def unit(x):
  return x / ((x * x).sum(-1, keepdims=True) + 1e-8) ** 0.5


def consistency(p_strong, p_weak, valid, options):
  """Step 4: the mean over valid pixels of || n(p_s) - n(p_w) ||^2, p_w constant."""
  if options['normalised']:
    p_strong, p_weak = unit(p_strong), unit(p_weak)
  share = valid / max(valid.sum(), 1)
  return ((p_strong - p_weak) ** 2 * share[..., None]).sum()


def contrast(queries, keys, anchors, negatives, valid, temperature):
  """Step 5: mean over valid anchors; queries and keys [J,D], negatives [A,M], valid [J]."""
  queries, keys = unit(queries)[anchors], unit(keys)
  positive = (queries * keys[anchors]).sum(-1) / temperature
  negative = (queries.reshape(len(anchors), 1, -1) * keys[negatives]).sum(-1) / temperature
  sums = exp(positive) + (exp(negative) * valid[negatives]).sum(-1)
  share = valid[anchors] / max(valid[anchors].sum(), 1)
  return ((log(sums) - positive) * share).sum()


def targets(params, labelled, unlabelled, strong):
  """Images, and what stands under a stop-gradient."""
  valid = unlabelled['valid']
  weak = lm.pixels(unlabelled['image'], valid)
  hidden = lm.linear(params['decoder'], lm.encode(params, weak))
  return {'image': lm.pixels(labelled['image']), 'label': lm.flat(labelled['label']),
          'weak': weak, 'strong': lm.pixels(strong, valid), 'valid': lm.flat(valid),
          'p_weak': lm.softmax(lm.forward(params, weak)),
          'keys': lm.linear(params['representation'], hidden)}


def embed(nodes, x):
  return lm.linear(nodes['representation'], lm.linear(nodes['decoder'], lm.encode(nodes, x)))


def objective(nodes, target, anchors, negatives, options):
  loss_x = lm.supervised(lm.forward(nodes, target['image']), target['label'])
  p_strong = exp(log_softmax(lm.forward(nodes, target['strong'])))
  loss_y = consistency(p_strong, target['p_weak'], target['valid'], options)
  keys = embed(nodes, target['weak']) if options['key_gradient'] else Node(target['keys'])
  width = keys.value.shape[-1]
  loss_c = contrast(embed(nodes, target['strong']).reshape(-1, width), keys.reshape(-1, width),
                    anchors, negatives, target['valid'].reshape(-1), options['temperature'])
  total = (loss_x + options['consistency_weight'] * loss_y
           + options['contrast_weight'] * loss_c)
  return total, {'labelled': loss_x, 'consistency': loss_y, 'contrast': loss_c}


def step(state, labelled, unlabelled, *, strong, anchors, negatives, hyper=None):
  """One training step -> (state, losses before it).

  Args:
    labelled: image uint8 [B,H,W,3], label [B,H,W]. unlabelled: image, valid bool [B,H,W].
    strong: float [B,H,W,3] in [0,1].
    anchors: int [A], pixels of the batch counted through [B,H,W]; not valid ones are left out.
    negatives: int [A,M], the same of the weak view; not valid ones are left out.
    hyper: options that differ from PAPER.
  """
  options = lm.settings(PAPER, hyper)
  params = state['networks']['model']
  target = targets(params, labelled, unlabelled, strong)
  params, momentum, losses = lm.descend(
    lambda nodes: objective(nodes, target, anchors, negatives, options), params,
    state['optimizers']['model'], state['step'], options)
  return {'step': state['step'] + 1, 'networks': {'model': params},
          'optimizers': {'model': momentum}, 'memory': state['memory']}, losses


def make_problem(seed, *, hidden=5, width=3, anchors=6, negatives=4, **sizes):
  """(state, labelled, unlabelled, randomness): lists with one entry for each step."""
  rng, params, labelled, unlabelled = lm.make_batches(
    seed, hidden=hidden, **sizes, heads={'representation': (hidden, width, True)})
  randomness = []
  for batch in unlabelled:
    count = batch['valid'].size
    randomness.append({
      'strong': lm.strong_view(rng, batch['image']),
      'anchors': rng.choice(count, anchors, replace=False),
      'negatives': rng.integers(0, count, (anchors, negatives))})
  return lm.init_state(params, ['model'], ['model']), labelled, unlabelled, randomness
