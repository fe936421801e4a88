"""What the oracles share: a linear network of single pixels, its gradient, SGD and EMA, in float64.

    encoded = x W_b + b_b        key 'backbone'
    fused   = encoded W_d + b_d  key 'decoder'
    logits  = fused W_c + b_c    key 'classifier'

x [N,3] is the image in [0,1]. There is no resizing, BatchNorm or dropout, so that nothing but the
method is left; low and full resolution are one. Gradients are written by hand. A state is

    {'step': int, 'networks': {name: {key: {'kernel', 'bias'}}}, 'momentum': {name: the same}}

and steps are pure: they return new dicts. Every method takes from its `hyper`:
  rate: step -> rate of the backbone (see `poly`);
  momentum, weight_decay; decoder_multiplier: of all keys but 'backbone' (default 10);
  decayed: leaves that weight decay acts on (default kernels and biases).
"""

import numpy as np

KEYS = ('backbone', 'decoder', 'classifier')
IGNORE = 255


def poly(base, total, power=0.9):
  """The poly schedule: step -> base (1 - step / total)^power."""
  return lambda step: base * (1 - step / total) ** power


def tree_map(function, *trees):
  """Applies the function to the leaves of nested dicts of one structure."""
  if isinstance(trees[0], dict):
    return {key: tree_map(function, *(tree[key] for tree in trees)) for key in trees[0]}
  return function(*trees)


def linear(layer, x):
  """x [N,inputs] -> [N,outputs]."""
  return x @ layer['kernel'] + layer['bias']


def linear_gradient(x, delta):
  """The gradient of a layer that saw x, given d loss / d output."""
  return {'kernel': x.T @ delta, 'bias': delta.sum(0)}


def softmax(logits):
  """Over the last axis."""
  scores = np.exp(logits - logits.max(-1, keepdims=True))
  return scores / scores.sum(-1, keepdims=True)


def softmax_gradient(probabilities, delta):
  """d loss / d logits from d loss / d probabilities: (diag p - p p^T) delta, symmetric."""
  return probabilities * (delta - (probabilities * delta).sum(-1, keepdims=True))


def pixels(batch):
  """uint8 [B,H,W,3] -> [N,3] in [0,1], zero where 'valid' (if the batch has one) is false."""
  x = batch['image'].reshape(-1, 3) / 255.0
  return x * batch['valid'].reshape(-1, 1) if 'valid' in batch else x


def forward(params, x):
  """The inputs of the three layers under their keys, and 'logits'."""
  layers = {}
  for key in KEYS:
    layers[key] = x
    x = linear(params[key], x)
  return {**layers, 'logits': x}


def backward(params, layers, delta, extra=None):
  """The gradient of the three layers.

  Args:
    layers: what `forward` returned; delta: d loss / d logits [N,K].
    extra: {key: d loss / d the input of that layer by other ways than the layer itself}.
  """
  gradient = {}
  for key in reversed(KEYS):
    gradient[key] = linear_gradient(layers[key], delta)
    delta = delta @ params[key]['kernel'].T + (extra or {}).get(key, 0)
  return gradient


def mean_weights(mask):
  """[N] booleans -> weights that turn a sum over these pixels into a mean; all zero if none is."""
  return mask / max(mask.sum(), 1)


def cross_entropy(logits, label, weight):
  """sum_i weight_i CE_i and d / d logits; labels count where the weight is not zero."""
  label = np.where(weight > 0, label, 0).astype(int)
  index = np.arange(len(label))
  probabilities = softmax(logits)
  loss = -(weight * np.log(probabilities[index, label])).sum()
  delta = probabilities.copy()
  delta[index, label] -= 1
  return loss, delta * weight[:, None]


def squared_error(logits, target, weight):
  """sum_i weight_i mean_c (softmax_ic - target_ic)^2 and d / d logits; the target is constant."""
  probabilities = softmax(logits)
  difference = probabilities - target
  loss = (weight[:, None] * difference**2).sum() / logits.shape[1]
  delta = 2 * weight[:, None] * difference / logits.shape[1]
  return loss, softmax_gradient(probabilities, delta)


def supervised(params, batch):
  """Mean cross-entropy over labels other than 255, and its gradient."""
  layers = forward(params, pixels(batch))
  label = batch['label'].reshape(-1)
  loss, delta = cross_entropy(layers['logits'], label, mean_weights(label != IGNORE))
  return loss, backward(params, layers, delta)


def add(first, second):
  """The sum of two trees; keys of one only stay as they are."""
  if not isinstance(first, dict):
    return first + second
  return {key: add(first[key], second[key]) if key in first and key in second
          else first.get(key, second.get(key)) for key in first | second}


def scale(tree, factor):
  """Every leaf times the factor."""
  return tree_map(lambda leaf: factor * leaf, tree)


def initial_state(networks, learners, **memory):
  """Step 0, with zero momentum for those that learn."""
  momentum = {name: scale(networks[name], 0.0) for name in learners}
  return {'step': 0, 'networks': networks, 'momentum': momentum, **memory}


def iterate(step, state, labelled_batches, unlabelled_batches, *, draws=lambda k: {}, hyper):
  """Several steps of a method: [(state, losses)] after each.

  Args:
    draws: number of the step -> the keyword arguments that carry the method's randomness.
  """
  results = []
  for k, batches in enumerate(zip(labelled_batches, unlabelled_batches, strict=True)):
    state, losses = step(state, *batches, **draws(k), hyper=hyper)
    results.append((state, losses))
  return results


def sgd(params, buffers, gradient, rate, hyper):
  """torch's SGD: decay joins the gradient before the momentum; returns parameters and buffers.

  Keys without a gradient learn with zero, so that they decay.
  """
  decayed = hyper.get('decayed', ('kernel', 'bias'))

  def follow(params, buffers, gradient, rate, name):
    if isinstance(params, dict):
      pairs = {key: follow(value, buffers[key], gradient.get(key, {}), rate, key)
               for key, value in params.items()}
      return tuple({key: pair[i] for key, pair in pairs.items()} for i in (0, 1))
    gradient = 0 if isinstance(gradient, dict) else gradient
    buffer = hyper['momentum'] * buffers + gradient
    if name in decayed:
      buffer = buffer + hyper['weight_decay'] * params
    return params - rate * buffer, buffer

  new_params, new_buffers = {}, {}
  for key in params:
    factor = 1 if key == 'backbone' else hyper.get('decoder_multiplier', 10.0)
    new_params[key], new_buffers[key] = follow(
      params[key], buffers[key], gradient.get(key, {}), rate * factor, key)
  return new_params, new_buffers


def learn(state, gradients, hyper):
  """One SGD step of each network that has a gradient; 'step' is advanced by one."""
  networks, momentum = dict(state['networks']), dict(state['momentum'])
  rate = hyper['rate'](state['step'])
  for name, gradient in gradients.items():
    networks[name], momentum[name] = sgd(networks[name], momentum[name], gradient, rate, hyper)
  return {**state, 'step': state['step'] + 1, 'networks': networks, 'momentum': momentum}


def average(target, source, decay):
  """EMA of all keys: decay target + (1 - decay) source."""
  return tree_map(lambda a, b: decay * a + (1 - decay) * b, target, source)


def mix(values, partner, inside):
  """[B,H,W,...] with partner's values where `inside` [B,H,W] is true: CutMix with a given mask."""
  inside = inside.reshape(inside.shape + (1,) * (values.ndim - inside.ndim))
  return np.where(inside, partner, values)


def following(batch):
  """The batch with image i + 1 in the place of image i, cyclically: CutMix's usual partner."""
  return {key: np.roll(value, -1, axis=0) for key, value in batch.items()}


def box_mask(boxes, size):
  """boxes [B,n,4] of (top, left, bottom, right) -> [B,H,W]: true in an odd number of boxes."""
  inside = np.zeros((len(boxes), *size), bool)
  for image, image_boxes in zip(inside, boxes, strict=True):
    for top, left, bottom, right in image_boxes:
      image[top:bottom, left:right] ^= True
  return inside


def mix_batch(batch, partner, inside):
  """'image' and 'valid' of the mixed batch."""
  return {key: mix(batch[key], partner[key], inside) for key in ('image', 'valid')}


def random_layer(rng, inputs, outputs):
  """A layer with a random bias as well."""
  return {'kernel': rng.normal(size=(inputs, outputs)) / np.sqrt(inputs),
          'bias': 0.1 * rng.normal(size=outputs)}


def make_problem(seed, *, names=('student',), steps=3, batch=2, size=(4, 5), features=4, hidden=5,
                 classes=3):
  """Small random (networks, labelled_batches, unlabelled_batches), each network with its own draw.

  Labelled: 'image' uint8 [B,H,W,3], 'label' uint8 [B,H,W], some of them 255.
  Unlabelled: 'image' and 'valid' bool [B,H,W], false on some pixels.
  """
  rng = np.random.default_rng(seed)
  widths = (3, features, hidden, classes)
  networks = {name: {key: random_layer(rng, a, b) for key, a, b in
                     zip(KEYS, widths[:-1], widths[1:], strict=True)} for name in names}
  for params in networks.values():
    # Mid-grey gives small logits, and kernels are large: all classes are predicted somewhere.
    params['backbone']['kernel'] *= 4
    params['backbone']['bias'] -= params['backbone']['kernel'].sum(0) / 2
  shape = (batch, *size)
  labelled, unlabelled = [], []
  for _ in range(steps):
    images = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    label = rng.integers(0, classes, shape).astype(np.uint8)
    label[rng.random(shape) < 0.2] = IGNORE
    labelled.append({'image': images[0], 'label': label})
    unlabelled.append({'image': images[1], 'valid': rng.random(shape) > 0.15})
  return networks, labelled, unlabelled


def finite_differences(function, params, epsilon=1e-5):
  """The gradient of a function of a tree by central differences."""
  gradient = tree_map(np.zeros_like, params)

  def leaves(tree, other):
    for key, value in tree.items():
      yield from leaves(value, other[key]) if isinstance(value, dict) else [(value, other[key])]

  params = tree_map(np.copy, params)
  for values, slopes in leaves(params, gradient):
    for index in np.ndindex(values.shape):
      kept, ends = values[index], []
      for sign in (1, -1):
        values[index] = kept + sign * epsilon
        ends.append(function(params))
      values[index] = kept
      slopes[index] = (ends[0] - ends[1]) / (2 * epsilon)
  return gradient


def assert_trees_close(actual, expected, atol=1e-8):
  """Same keys, same numbers."""
  if isinstance(expected, dict):
    assert actual.keys() == expected.keys()
    for key in expected:
      assert_trees_close(actual[key], expected[key], atol)
  else:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def tiny_hyper(**more):
  """Hyper-parameters that make every term visible in a few steps."""
  return {'rate': poly(0.05, 10), 'momentum': 0.9, 'weight_decay': 0.01,
          'decoder_multiplier': 3.0, **more}
