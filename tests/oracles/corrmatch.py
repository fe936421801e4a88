"""CorrMatch in float64 NumPy (sheet b, section 6).

One step, by the numbers of "One iteration": labels and correlation maps of the weak view (1, 2),
threshold (4), CutMix of one strong view (5), region propagation (6), losses (7, 8), SGD (9).
Further keys: 'projection' on the backbone's output, 'correlation_query' (g1) and
'correlation_key' (g2) on the projection, K outputs each.

Paper and code, the first being the default here:
  - KL's target in the box: the partner's p_w, as for labels | the unmixed p_w: `unmixed_kl`.
  - pads left out of the threshold's update: the weak view's own | the mixed ones:
    `mixed_threshold_pads`.
  - partner and `late_rate` as in `fixmatch`; Cityscapes: `ohem`, threshold fixed at 0:
    `threshold_decay` 1.
Choices where the sheet is silent: `backbone_learns`, the correlation's gradient goes through the
projection into the backbone (its invariant b can also be read as ending there); padding is no
column of A and gives no logits, `padding_counts`: only its image is zero.
"""

import numpy as np

from tests.oracles import linear_model_b as lm
from tests.oracles.tape_b import Node, exp, log_softmax, map_tree

PAPER = {**lm.SGD, 'rate': 0.001, 'threshold_decay': 0.999, 'ohem': None, 'unmixed_kl': False,
         'mixed_threshold_pads': False, 'backbone_learns': True, 'padding_counts': False}
RELEASED = {'unmixed_kl': True, 'mixed_threshold_pads': True, 'padding_counts': True,
            'late_rate': True}
WEIGHTS = {'labelled': 1.0, 'strong': 0.25, 'kl': 0.25, 'features': 0.25,
           'strong_correlation': 0.125, 'weak_correlation': 0.125}


def correlation(nodes, features, counted):
  """A [B,N,N], rows summing to one over the columns that count [B,N]."""
  projected = lm.linear(nodes['projection'], features)
  query = lm.linear(nodes['correlation_query'], projected)
  key = lm.linear(nodes['correlation_key'], projected)
  scores = query @ key.transpose() / np.sqrt(key.value.shape[-1])
  return exp(log_softmax(scores - 1e9 * ~counted[:, None]))


def correlation_logits(nodes, features, logits, counted):
  """z_j = sum_i logit_i A_ij, logits constant; [B,N,K]."""
  return correlation(nodes, features, counted).transpose() @ (logits * counted[..., None])


def region_maps(rows, counted):
  """Rows of A [B,R,N] -> bool, above the middle between their least and largest entry."""
  columns = counted[:, None]
  low = np.where(columns, rows, np.inf).min(-1, keepdims=True)
  high = np.where(columns, rows, -np.inf).max(-1, keepdims=True)
  spread = np.where(high > low, high - low, 1.0)
  return ((rows - low) / spread > 0.5) & columns


def update_threshold(threshold, probabilities, valid, decay):
  """Step 4; probabilities [B,N,K], valid [B,N]. Without valid pixels it stays."""
  label, kappa = probabilities.argmax(-1)[valid], probabilities.max(-1)[valid]
  if not label.size:
    return threshold
  mean = np.mean([kappa[label == c].max() for c in np.unique(label)])
  return decay * threshold + (1 - decay) * mean


def propagate(label, confident, regions, blocked, threshold):
  """Step 6 for one image: arrays [N], regions bool [R,N] -> labels, kept."""
  label, kept = label.copy(), confident.copy()
  for region in regions & ~blocked:
    voters = region & confident
    if not voters.any() or voters.sum() / region.sum() < threshold:
      continue
    votes = np.bincount(label[voters])
    if votes.max() / votes.sum() > threshold:
      label[region] = votes.argmax()
      kept |= region
  return label, kept


def targets(params, threshold, labelled, unlabelled, strong, boxes, rows, partner, options):
  """What stands under the stop-gradient, and the new threshold."""
  shape, valid = unlabelled['valid'].shape, lm.flat(unlabelled['valid'])
  weak, nodes = lm.pixels(unlabelled['image'], unlabelled['valid']), map_tree(Node, params)
  z = lm.forward(params, weak)
  p = lm.softmax(z)
  inner = {'p': np.roll(p.reshape(*shape, -1), -1, 0), 'valid': np.roll(unlabelled['valid'], -1, 0),
           'strong': np.roll(strong, -1, 0)}
  if partner is not None:
    inner_p = lm.softmax(lm.forward(params, lm.pixels(partner['image'], partner['valid'])))
    inner = {**partner, 'p': inner_p.reshape(*shape, -1)}
  box = lm.inside(boxes, shape[1:])
  mixed_valid = lm.paste(unlabelled['valid'], inner['valid'], box)
  mixed_p = lm.paste(p.reshape(*shape, -1), inner['p'], box).reshape(p.shape)
  x = lm.pixels(lm.paste(strong, inner['strong'], box), mixed_valid)
  mixed_valid = lm.flat(mixed_valid)
  threshold = update_threshold(
    threshold, p, mixed_valid if options['mixed_threshold_pads'] else valid,
    options['threshold_decay'])
  confident = (mixed_p.max(-1) >= threshold) & mixed_valid
  counts = [np.ones_like(valid) if options['padding_counts'] else v for v in (valid, mixed_valid)]
  maps = region_maps(correlation(nodes, lm.encode(params, weak), counts[0]).value[:, rows],
                     counts[0])
  label, kept = zip(*(propagate(*image, threshold) for image in zip(
    mixed_p.argmax(-1), confident, maps, lm.flat(box) | ~mixed_valid, strict=True)), strict=True)
  x_l, mixed_count = lm.pixels(labelled['image']), max(mixed_valid.sum(), 1)

  def view(x, counted, label, weight):
    return {'image': x, 'counted': counted, 'features': lm.encode(params, x),
            'logits': lm.forward(params, x), 'label': label, 'weight': weight}

  label_l = lm.flat(labelled['label'])
  return threshold, {
    'labelled': view(x_l, np.ones(label_l.shape, bool), label_l, None),
    'weak': view(weak, counts[0], p.argmax(-1),
                 (valid & (p.max(-1) >= threshold)) / max(valid.sum(), 1)),
    'strong': view(x, counts[1], np.stack(label), np.stack(kept) / mixed_count),
    'kl': (p if options['unmixed_kl'] else mixed_p, confident / mixed_count)}


def objective(nodes, target, feature_masks, options):
  """Steps 7 and 8."""
  def passed(view):
    features = lm.encode(nodes, view['image'])
    seen = features if options['backbone_learns'] else Node(view['features'])
    return features, lm.decode(nodes, features), correlation_logits(
      nodes, seen, view['logits'], view['counted'])

  labelled, weak, strong = (target[name] for name in ('labelled', 'weak', 'strong'))
  (_, p_l, z_l), (features, _, z_w), (_, p_s, z_s) = map(passed, (labelled, weak, strong))
  dropped = lm.decode(nodes, features * feature_masks[:, None])
  kl, kl_weight = target['kl']
  parts = {
    'labelled': (lm.supervised(p_l, labelled['label'], options['ohem'])
                 + lm.supervised(z_l, labelled['label'], options['ohem'])) / 2,
    'strong': lm.cross_entropy(p_s, strong['label'], strong['weight']),
    'kl': ((np.log(kl) - log_softmax(p_s)) * (kl * kl_weight[..., None])).sum(),
    'features': lm.cross_entropy(dropped, weak['label'], weak['weight']),
    'strong_correlation': lm.cross_entropy(z_s, strong['label'], strong['weight']),
    'weak_correlation': lm.cross_entropy(z_w, weak['label'], weak['weight'])}
  return sum(WEIGHTS[name] * part for name, part in parts.items()) / 2, parts


def step(state, labelled, unlabelled, *, strong, boxes, feature_masks, rows, partner=None,
         hyper=None):
  """One training step -> (state, losses before it).

  Args:
    state: memory {'threshold'}, 0.85 at first.
    labelled: image uint8 [B,H,W,3], label [B,H,W]. unlabelled: image, valid bool [B,H,W].
    strong: float [B,H,W,3] in [0,1], the strong view before CutMix.
    boxes: int [B,4] of (top, left, bottom, right), taken from the partner.
    feature_masks: [B,F] of 0 and 2, times the features of the weak view.
    rows: int [R], places of [H,W] whose rows of A become regions, in this order.
    partner: None for the next image, or {'image', 'valid', 'strong'} of the same shapes.
    hyper: options that differ from PAPER.
  """
  options = lm.settings(PAPER, hyper)
  params = state['networks']['model']
  threshold, target = targets(params, state['memory']['threshold'], labelled, unlabelled, strong,
                              boxes, rows, partner, options)
  new_params, momentum, losses = lm.descend(
    lambda nodes: objective(nodes, target, feature_masks, options), params,
    state['optimizers']['model'], state['step'], options)
  return {'step': state['step'] + 1, 'networks': {'model': new_params},
          'optimizers': {'model': momentum}, 'memory': {'threshold': threshold}}, losses


def make_problem(seed, *, features=4, classes=3, width=4, regions=5, threshold=0.85, **sizes):
  """(state, labelled, unlabelled, randomness): lists with one entry for each step."""
  rng, params, labelled, unlabelled = lm.make_batches(
    seed, features=features, classes=classes, **sizes, heads={
      'projection': (features, width, True), 'correlation_query': (width, classes, True),
      'correlation_key': (width, classes, True)})
  randomness = []
  for batch in unlabelled:
    n, *size = batch['valid'].shape
    randomness.append({
      'strong': lm.strong_view(rng, batch['image']), 'boxes': lm.random_boxes(rng, n, size),
      'feature_masks': 2.0 * rng.integers(0, 2, (n, features)),
      'rows': rng.choice(size[0] * size[1] - 1, regions, replace=False)})
  memory = {'threshold': threshold}
  return lm.init_state(params, ['model'], ['model'], memory), labelled, unlabelled, randomness
