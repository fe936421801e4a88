"""What the NumPy oracles of AEL, PseudoSeg, PC2Seg, UniMatch and CorrMatch share.

The model treats every pixel alone, without resizing, BatchNorm or dropout:

    features = x Wf + bf        key 'backbone'
    hidden   = features Wd + bd key 'decoder'
    logits   = hidden Wg + bg   key 'classifier'

x is the image in [0,1], zero where a pixel is not valid. Further heads are linear as well.
Images are flattened to [B,N,3], N = H W. Parameters are {key: {'kernel': [in,out], 'bias':
[out]}}; a state is {'step', 'networks', 'optimizers', 'memory'}.
"""

import copy

import numpy as np

from tests.oracles.tape_b import Node, gradient, log_softmax, map_tree

IGNORE = 255
SGD = {'rate': 0.1, 'total_steps': 10, 'power': 0.9, 'late_rate': False, 'momentum': 0.9,
       'weight_decay': 1e-4, 'decoder_multiplier': 10.0, 'decay_biases': True,
       'undecayed_keys': (), 'bias_multiplier': 1.0}


def softmax(x):
  """Of a plain array, over the last axis."""
  scores = np.exp(x - x.max(-1, keepdims=True))
  return scores / scores.sum(-1, keepdims=True)


def pixels(image, valid=None):
  """[B,H,W,3] uint8, or float in [0,1], -> [B,N,3] in [0,1], zero where not valid."""
  x = image / 255.0 if image.dtype == np.uint8 else image.astype(float)
  x = x if valid is None else x * valid[..., None]
  return x.reshape(len(x), -1, 3)


def flat(values):
  """[B,H,W] -> [B,N]."""
  return values.reshape(len(values), -1)


def linear(layer, x):
  return x @ layer['kernel'] + layer['bias'] if 'bias' in layer else x @ layer['kernel']


def encode(params, x):
  return linear(params['backbone'], x)


def decode(params, features):
  return linear(params['classifier'], linear(params['decoder'], features))


def forward(params, x):
  return decode(params, encode(params, x))


def cross_entropy(logits, label, weight):
  """sum(weight CE) of logits [B,N,K]; a label [B,N] counts where its weight is not 0."""
  label = np.where(weight != 0, label, 0).astype(int)
  return (log_softmax(logits) * (-weight[..., None] * np.eye(logits.value.shape[-1])[label])).sum()


def supervised(logits, label, ohem=None):
  """Mean CE over pixels that are not 255; ohem (threshold, least) keeps the hard ones only.

  OHEM keeps p_true <= max(threshold, the least-th smallest p_true), all if fewer are known.
  """
  kept = label != IGNORE
  if ohem is not None and kept.sum() > ohem[1]:
    known = np.where(kept, label, 0)[..., None]
    true = np.take_along_axis(softmax(logits.value), known, -1)[..., 0]
    kept = kept & (true <= max(ohem[0], np.sort(true[kept])[ohem[1] - 1]))
  return cross_entropy(logits, label, kept / max(kept.sum(), 1))


def inside(boxes, size):
  """[B,4] of (top, left, bottom, right) -> [B,H,W], true within the box."""
  y, x = np.arange(size[0])[None, :, None], np.arange(size[1])[None, None, :]
  top, left, bottom, right = (boxes[:, i, None, None] for i in range(4))
  return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def paste(outer, inner, box):
  """Inner values where `box` [B,H,W] is true, outer ones elsewhere; [B,H,W] or [B,H,W,D]."""
  return np.where(box.reshape(box.shape + (1,) * (outer.ndim - 3)), inner, outer)


def settings(defaults, hyper):
  unknown = set(hyper or {}) - set(defaults)
  if unknown:
    raise ValueError(f'hyper has {sorted(unknown)}; the options are {sorted(defaults)}.')
  return {**defaults, **(hyper or {})}


def poly_rate(step, hyper):
  """rate (1 - t/T)^power; late_rate: the rate is set after each step, so t is step - 1."""
  t = max(step - 1, 0) if hyper['late_rate'] else step
  return hyper['rate'] * (1 - t / hyper['total_steps']) ** hyper['power']


def sgd(params, momentum, grads, rate, hyper):
  """torch's SGD; keys but 'backbone' learn decoder_multiplier times faster."""
  new_params, new_momentum = {}, {}
  for key, layer in params.items():
    multiplier = 1.0 if key == 'backbone' else hyper['decoder_multiplier']
    new_params[key], new_momentum[key] = {}, {}
    for name, value in layer.items():
      bias = name == 'bias'
      decays = key not in hyper['undecayed_keys'] and (hyper['decay_biases'] or not bias)
      g = grads[key][name] + (hyper['weight_decay'] * value if decays else 0.0)
      g = g * hyper['bias_multiplier'] if bias else g
      buffer = hyper['momentum'] * momentum[key][name] + g
      new_params[key][name] = value - rate * multiplier * buffer
      new_momentum[key][name] = buffer
  return new_params, new_momentum


def descend(objective, params, momentum, step, hyper):
  """One SGD step -> parameters, momentum, {'total', ...} losses before the step."""
  nodes = map_tree(Node, params)
  loss, parts = objective(nodes)
  new = sgd(params, momentum, gradient(loss, nodes), poly_rate(step, hyper), hyper)
  return *new, {'total': float(loss.value), **{k: float(v.value) for k, v in parts.items()}}


def average(target, source, decay):
  """decay target + (1 - decay) source."""
  return map_tree(lambda t, s: decay * t + (1 - decay) * s, target, source)


def ramped_decay(step, limit):
  return min(1 - 1 / (step + 1), limit)


def init_state(params, names, learning, memory=None):
  """All networks start at `params`, momentum at zero."""
  return {'step': 0, 'networks': {name: copy.deepcopy(params) for name in names},
          'optimizers': {name: map_tree(np.zeros_like, params) for name in learning},
          'memory': memory or {}}


def make_batches(seed, *, steps=3, batch=2, size=(4, 5), features=4, hidden=5, classes=3,
                 heads=None):
  """Random (rng, params, labelled, unlabelled); heads are {key: (inputs, outputs, has bias)}.

  One {'image', 'label'} and one {'image', 'valid'} for each step. Some labels are 255, some
  pixels are not valid, and those hold images too.
  """
  rng = np.random.default_rng(seed)
  shapes = {'backbone': (3, features, True), 'decoder': (features, hidden, True),
            'classifier': (hidden, classes, True), **(heads or {})}
  params = {key: {'kernel': 1.5 * rng.normal(size=(a, b)) / np.sqrt(a),
                  **({'bias': 0.1 * rng.normal(size=b)} if bias else {})}
            for key, (a, b, bias) in shapes.items()}
  shape = (batch, *size)
  labelled, unlabelled = [], []
  for _ in range(steps):
    image = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    label = rng.integers(0, classes, shape).astype(np.uint8)
    label[rng.random(shape) < 0.2] = IGNORE
    labelled.append({'image': image[0], 'label': label})
    unlabelled.append({'image': image[1], 'valid': rng.random(shape) > 0.15})
  return rng, params, labelled, unlabelled


def random_boxes(rng, batch, size):
  """[B,4] of (top, left, bottom, right), sides at least one."""
  corners = [np.sort(rng.permuted(np.tile(np.arange(n + 1), (batch, 1)), axis=1)[:, :2], axis=1)
             for n in size]
  return np.stack([corners[0][:, 0], corners[1][:, 0], corners[0][:, 1], corners[1][:, 1]], axis=1)


def strong_view(rng, image):
  """A float image in [0,1] of the same places."""
  return 0.8 * image / 255.0 + 0.2 * rng.random(image.shape)
