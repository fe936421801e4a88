"""PseudoSeg in float64 NumPy (sheet b, section 2).

One step, by the numbers of "One iteration": decoder's output on the weak view (2), its image
labels and Grad-CAM (3), calibrated fusion (4), sharpening (5), L_u (6), L_x (7), L_cls (8),
L_att (9), their sum and SGD (10). Hyper-columns F are the backbone's and the decoder's output;
the image classifier and Grad-CAM stand on the backbone's, in closed form: weight_k = W[k,c]/(hw).

Further keys: 'image_classifier' [F,K-1]; 'attention_query', 'attention_key' [F+D,any] without
bias; 'attention_output' [K,K], whose bias is added after the normalisation.

Paper and code. The paper was not at hand, so the default is the sheet's iteration, the code:
  - `calibration`: 'mean' of squares | 'sum', as the paper is remembered.
  - attention: `residual` A M + M and `norm`, a BatchNorm without scale on batch statistics
    (the code's v2) | neither (v1; its background channel is taken as 1 - max N here).
  - biases' gradients count double, only kernels decay, the attention does not.
Padding: by default it counts nowhere, neither in pools, maxima, BatchNorm nor calibration;
`padding_counts`: everywhere but in the losses and in the attention of valid pixels (the code).
"""

import numpy as np

from tests.oracles import linear_model_b as lm
from tests.oracles.tape_b import Node, exp, log, log_softmax, map_tree

ATTENTION = ('attention_query', 'attention_key', 'attention_output')
PAPER = {**lm.SGD, 'rate': 0.007, 'decoder_multiplier': 1.0, 'weight_decay': 1e-4,
         'decay_biases': False, 'bias_multiplier': 2.0, 'undecayed_keys': ATTENTION,
         'temperature': 0.5, 'calibration': 'mean', 'residual': True, 'norm': True,
         'norm_epsilon': 1e-3, 'padding_counts': False}
RELEASED = {'padding_counts': True}


def pool(features, counted):
  """[B,N,F] and [B,N] -> [B,F], the mean over what counts."""
  share = counted / np.maximum(counted.sum(1, keepdims=True), 1)
  return (features * share[..., None]).sum(1)


def grad_cam(kernel, features, present, counted):
  """Step 3: [B,N,K-1] in [0,1]; kernel [B,F,K-1], image labels present [B,K-1]."""
  heat = np.maximum(features @ kernel, 0) / np.maximum(counted.sum(1), 1)[:, None, None]
  heat = heat * present[:, None] * counted[..., None]
  top = heat.max(1, keepdims=True)
  return np.where(top > 0, heat / np.where(top > 0, top, 1), 0)


def attention_logits(nodes, columns, cam, valid, counted, options):
  """z_a [B,N,K] of constants columns [B,N,F+D], cam [B,N,K-1]; masks [B,N]."""
  query, key = (columns @ nodes[name]['kernel'] for name in ATTENTION[:2])
  scores = query @ key.transpose() / np.sqrt(key.value.shape[-1])
  pair = np.broadcast_to(valid[:, None].astype(float), scores.value.shape)
  if options['padding_counts']:
    pair = pair * valid[..., None]  # a row of padding is uniform
  refined = exp(log_softmax(scores * pair - 1e9 * (1 - pair))) @ cam
  if options['residual']:
    refined = refined + cam
  n = cam.shape[-1]
  largest = np.eye(n)[refined.value.argmax(-1)]
  background = (2.0 if options['residual'] else 1.0) - (refined * largest).sum(-1, keepdims=True)
  z = refined @ np.eye(n + 1)[1:] + background * np.eye(n + 1)[0]
  z = z @ nodes['attention_output']['kernel']
  if options['norm']:
    share = counted[..., None] / max(counted.sum(), 1)
    z = z - (z * share).sum((0, 1))
    z = z / ((z * z * share).sum((0, 1)) + options['norm_epsilon']) ** 0.5
  return z + nodes['attention_output']['bias']


def fuse(z_w, z_a, counted, options):
  """Steps 4 and 5: soft labels [B,N,K]."""
  square = (z_w ** 2 + z_a ** 2) * counted[..., None]
  entries = 2 * z_w.shape[-1] * max(counted.sum(), 1)
  r = np.sqrt(square.sum() / (entries if options['calibration'] == 'mean' else 1) + 1e-8)
  q = ((lm.softmax(z_w / r) + lm.softmax(z_a / r)) / 2) ** (1 / options['temperature'])
  return q / q.sum(-1, keepdims=True)


def present_classes(label, count):
  """[B,N] -> [B,K-1]: the classes but background that the mask holds."""
  return (label[..., None] == np.arange(1, count)).any(1).astype(float)


def columns_of(params, x):
  """Backbone's output, and hyper-columns [B,N,F+D]."""
  features = lm.encode(params, x)
  return features, np.concatenate([features, lm.linear(params['decoder'], features)], -1)


def targets(params, labelled, unlabelled, strong, cutout, dropout, options):
  """What stands under a stop-gradient; see `objective`."""
  classifier, count = params['image_classifier'], params['classifier']['kernel'].shape[1]
  valid, nodes = lm.flat(unlabelled['valid']), map_tree(Node, params)
  counted = np.ones_like(valid) if options['padding_counts'] else valid
  features, columns = columns_of(params, lm.pixels(unlabelled['image'], unlabelled['valid']))
  present = lm.linear(classifier, pool(features, counted)) >= 0
  cam = grad_cam(classifier['kernel'][None], features, present, counted)
  z_a = attention_logits(nodes, columns, cam, valid, counted, options).value
  seen = unlabelled['valid'] & ~lm.inside(cutout, unlabelled['valid'].shape[1:])
  # The labelled images' own maps, with the true image labels.
  valid_l = lm.flat(labelled.get('valid', np.ones(labelled['label'].shape, bool)))
  counted_l = np.ones_like(valid_l) if options['padding_counts'] else valid_l
  x_l, label = lm.pixels(labelled['image'], labelled.get('valid')), lm.flat(labelled['label'])
  features_l, columns_l = columns_of(params, x_l)
  present_l = present_classes(label, count)
  kernel = dropout[..., None] * classifier['kernel']
  return {
    'soft': fuse(lm.decode(params, features), z_a, counted, options),
    'strong': lm.pixels(strong, seen), 'seen': lm.flat(seen), 'image': x_l, 'label': label,
    'present': present_l, 'dropout': dropout, 'attention': (
      columns_l, grad_cam(kernel, features_l, present_l, counted_l), valid_l, counted_l)}


def objective(nodes, target, options):
  loss_x = lm.supervised(lm.forward(nodes, target['image']), target['label'])
  share = target['seen'] / max(target['seen'].sum(), 1)
  log_p = log_softmax(lm.forward(nodes, target['strong']))
  loss_u = -(log_p * (target['soft'] * share[..., None])).sum()
  pooled = pool(lm.encode(nodes, target['image']), target['attention'][-1]) * target['dropout']
  u = lm.linear(nodes['image_classifier'], pooled)
  loss_cls = (log(exp(u) + 1.0) - u * target['present']).sum() / u.value.size
  loss_att = lm.supervised(
    attention_logits(nodes, *target['attention'], options), target['label'])
  return loss_x + loss_u + loss_cls + loss_att, {
    'labelled': loss_x, 'unlabelled': loss_u, 'classification': loss_cls, 'attention': loss_att}


def step(state, labelled, unlabelled, *, strong, cutout, dropout, hyper=None):
  """One training step -> (state, losses before it).

  Args:
    labelled: image uint8 [B,H,W,3], label [B,H,W]; valid bool [B,H,W], all if it is not there.
    unlabelled: image, valid.
    strong: float [B,H,W,3] in [0,1]. cutout: int [B,4] of (top, left, bottom, right).
    dropout: [B,F] of 0 and 1/keep, times the pooled features of labelled images.
    hyper: options that differ from PAPER.
  """
  options = lm.settings(PAPER, hyper)
  params = state['networks']['model']
  target = targets(params, labelled, unlabelled, strong, cutout, dropout, options)
  params, momentum, losses = lm.descend(
    lambda nodes: objective(nodes, target, options), params, state['optimizers']['model'],
    state['step'], options)
  return {'step': state['step'] + 1, 'networks': {'model': params},
          'optimizers': {'model': momentum}, 'memory': state['memory']}, losses


def make_problem(seed, *, features=4, hidden=5, classes=3, width=4, **sizes):
  """(state, labelled, unlabelled, randomness): lists with one entry for each step."""
  columns = features + hidden
  rng, params, labelled, unlabelled = lm.make_batches(
    seed, features=features, hidden=hidden, classes=classes, **sizes, heads={
      'image_classifier': (features, classes - 1, True), 'attention_query': (columns, width, False),
      'attention_key': (columns, width, False), 'attention_output': (classes, classes, True)})
  randomness = []
  for batch in unlabelled:
    n, *size = batch['valid'].shape
    randomness.append({
      'strong': lm.strong_view(rng, batch['image']), 'cutout': lm.random_boxes(rng, n, size),
      'dropout': 2.0 * rng.integers(0, 2, (n, features))})
  return lm.init_state(params, ['model'], ['model']), labelled, unlabelled, randomness
