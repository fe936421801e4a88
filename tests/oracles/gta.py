"""Algorithm 1 of the paper in float64 NumPy, on a linear model of single pixels.

The model has no resizing, BatchNorm or dropout, so that nothing but the method is left:

    features = x Wf + bf        key 'backbone'
    z        = features Wd + bd key 'decoder'
    logits   = z Wg + bg        key 'classifier', the mask predictor

with x the image in [0,1] and a softmax over K classes. Parameters are
{key: {'kernel': [inputs, outputs], 'bias': [outputs]}}. Gradients are written by hand.
"""

import copy

import numpy as np

KEYS = ('backbone', 'decoder', 'classifier')
IGNORE = 255


def forward(params, images):
  """uint8 [B,H,W,3] -> the inputs of the three layers, [N,C] each, and probabilities [N,K]."""
  inputs = [images.reshape(-1, 3) / 255.0]
  for key in KEYS:
    inputs.append(inputs[-1] @ params[key]['kernel'] + params[key]['bias'])
  logits = inputs.pop()
  scores = np.exp(logits - logits.max(1, keepdims=True))
  return inputs, scores / scores.sum(1, keepdims=True)


def loss_and_gradient(params, images, label, weight, count):
  """sum(weight * cross-entropy) / count and its gradient; the label counts where weight > 0.

  Args:
    label: [N] integers; weight: [N] >= 0; count: what the sum is divided by, 0 gives 0.
  """
  inputs, probabilities = forward(params, images)
  weight = weight / max(count, 1)
  label = np.where(weight > 0, label, 0).astype(int)
  pixels = np.arange(len(label))
  loss = -(weight * np.log(probabilities[pixels, label])).sum()
  delta = probabilities.copy()
  delta[pixels, label] -= 1
  delta *= weight[:, None]  # d loss / d logits
  gradient = {}
  for key, x in zip(reversed(KEYS), reversed(inputs), strict=True):
    gradient[key] = {'kernel': x.T @ delta, 'bias': delta.sum(0)}
    delta = delta @ params[key]['kernel'].T
  return loss, gradient


def supervised(params, batch):
  """Eq. 10: the mean cross-entropy over labelled pixels, and its gradient."""
  label = batch['label'].reshape(-1)
  known = (label != IGNORE).astype(float)
  return loss_and_gradient(params, batch['image'], label, known, known.sum())


def pseudo_labels(teacher, images, valid, drop_fraction):
  """Eq. 1-2: labels, confidence and whether a pixel is kept, [N] each.

  Of n valid pixels the floor(drop_fraction * n) least confident are dropped: the threshold is
  the largest confidence among them, and Eq. 2's strict inequality drops ties with it.
  """
  _, probabilities = forward(teacher, images)
  confidence, valid = probabilities.max(1), valid.reshape(-1)
  dropped = int(np.floor(drop_fraction * valid.sum()))
  threshold = np.sort(confidence[valid])[dropped - 1] if dropped else -np.inf
  return probabilities.argmax(1), confidence, valid & (confidence > threshold)


def confidence_weights(confidence, kept, smoothing):
  """Eq. 6: mean one over kept pixels, zero elsewhere."""
  weight = (confidence + smoothing) * kept
  return weight / weight.sum() * kept.sum() if kept.any() else weight


def mix(values, boxes):
  """[B,H,W,...] with the inside of each image's box taken from the next image of the batch."""
  mixed = values.copy()
  for i, (top, left, bottom, right) in enumerate(boxes):
    following = values[(i + 1) % len(values)]
    mixed[i, top:bottom, left:right] = following[top:bottom, left:right]
  return mixed


def descend(params, momentum, gradient, rate, hyper):
  """Eq. 8 and 11 as torch's SGD does it; returns new parameters and momentum buffers."""
  new_params, new_momentum = {}, {}
  for key in KEYS:
    multiplier = 1 if key == 'backbone' else hyper['decoder_multiplier']
    new_params[key], new_momentum[key] = {}, {}
    for name, value in params[key].items():
      decayed = gradient[key][name] + hyper['weight_decay'] * value
      buffer = hyper['momentum'] * momentum[key][name] + decayed
      new_momentum[key][name] = buffer
      new_params[key][name] = value - rate * multiplier * buffer
  return new_params, new_momentum


def average(target, source, decay, keys):
  """Eq. 9 and 12: the exponential moving average of the given keys; other keys stay."""
  return {key: {name: decay * value + (1 - decay) * source[key][name] if key in keys else value
                for name, value in target[key].items()} for key in KEYS}


def algorithm_1(networks, buffers, labelled, unlabelled, *, rate, boxes, hyper):
  """One pass of Algorithm 1's loop: new networks, new momentum buffers, losses."""
  teacher, student, assistant = (networks[name] for name in ('teacher', 'student', 'assistant'))
  # Step 1: pseudo-labels and weights.
  image, valid = unlabelled['image'], unlabelled['valid']
  targets = pseudo_labels(teacher, image, valid, hyper['drop_fraction'])
  if boxes is not None:
    image = mix(image, boxes)
    targets = (mix(v.reshape(valid.shape), boxes).reshape(-1) for v in targets)
  label, confidence, kept = targets
  weight = confidence_weights(confidence, kept, hyper['smoothing'])
  # Step 2. The sums of Eq. 7 and 10 are both taken as means here, over kept and known pixels.
  loss_u, gradient = loss_and_gradient(assistant, image, label, weight, kept.sum())
  assistant, assistant_buffer = descend(assistant, buffers['assistant'], gradient, rate, hyper)
  student = average(student, assistant, hyper['ema_decay'], hyper['transmitted'])
  # Step 3: the gradient is taken where the transmission has left the student.
  loss_l, gradient = supervised(student, labelled)
  student, student_buffer = descend(student, buffers['student'], gradient, rate, hyper)
  teacher = average(teacher, student, hyper['ema_decay'], KEYS)
  return (
    {'teacher': teacher, 'student': student, 'assistant': assistant},
    {'student': student_buffer, 'assistant': assistant_buffer},
    {'labelled': loss_l, 'unlabelled': loss_u, 'kept': int(kept.sum())})


def warm_up(networks, buffers, labelled, rate, hyper):
  """One supervised step of all three networks, each with its own momentum."""
  new_networks, new_buffers = {}, {}
  for name, params in networks.items():
    loss, gradient = supervised(params, labelled)
    new_networks[name], new_buffers[name] = descend(params, buffers[name], gradient, rate, hyper)
  return new_networks, new_buffers, {'labelled': loss}


def run(params0, labelled_batches, unlabelled_batches, *, lr_schedule, weight_decay, ema_decay,
        warmup_steps, decoder_multiplier=10.0, momentum=0.9, drop_fraction=0.2, smoothing=1.0,
        transmitted=('backbone', 'decoder'), mixing=None):
  """Warm-up, then Algorithm 1.

  Args:
    params0: where all three networks start.
    labelled_batches: one {'image', 'label'} for each step.
    unlabelled_batches: one {'image', 'valid'} for each step, unused during the warm-up.
    lr_schedule: step -> rate of the backbone; steps count from 0, warm-up included.
    drop_fraction: share of valid pixels dropped by Eq. 2.
    smoothing: tau.
    transmitted: keys of Eq. 9.
    mixing: None, or step -> boxes [B,4] of (top, left, bottom, right): CutMix, not in the paper.
      Eq. 1-2 see the clean image; image, label, confidence and kept are mixed; Eq. 6 follows.
  Returns: a list of states after each step: parameters under 'teacher', 'student', 'assistant';
    'student_momentum', 'assistant_momentum'; 'losses' before the updates, {'labelled'} and, after
    the warm-up, 'unlabelled', 'kept' (a number of pixels).
  """
  hyper = {'decoder_multiplier': decoder_multiplier, 'momentum': momentum,
           'weight_decay': weight_decay, 'ema_decay': ema_decay, 'drop_fraction': drop_fraction,
           'smoothing': smoothing, 'transmitted': transmitted}
  networks = {name: params0 for name in ('teacher', 'student', 'assistant')}
  zeros = {key: {name: np.zeros_like(v) for name, v in params0[key].items()} for key in KEYS}
  buffers = dict.fromkeys(networks, zeros)
  states = []
  batches = zip(labelled_batches, unlabelled_batches, strict=True)
  for step, (labelled, unlabelled) in enumerate(batches):
    rate = lr_schedule(step)
    if step < warmup_steps:
      networks, buffers, losses = warm_up(networks, buffers, labelled, rate, hyper)
    else:
      networks, buffers, losses = algorithm_1(
        networks, buffers, labelled, unlabelled, rate=rate, hyper=hyper,
        boxes=mixing(step) if mixing else None)
    # A copy, so that a caller who changes one state changes no other.
    states.append(copy.deepcopy({
      **networks, 'student_momentum': buffers['student'],
      'assistant_momentum': buffers['assistant'], 'losses': losses}))
  return states


def make_problem(seed, *, steps=6, batch=2, size=(5, 7), features=4, hidden=5, classes=3):
  """Small random (params0, labelled_batches, unlabelled_batches) for `run`.

  Some labels are 255 and some pixels are not valid.
  """
  rng = np.random.default_rng(seed)
  widths = (3, features, hidden, classes)
  params = {key: {'kernel': rng.normal(size=(a, b)) / np.sqrt(a), 'bias': 0.1 * rng.normal(size=b)}
            for key, a, b in zip(KEYS, widths[:-1], widths[1:], strict=True)}
  shape = (batch, *size)
  labelled, unlabelled = [], []
  for _ in range(steps):
    image = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    label = rng.integers(0, classes, shape).astype(np.uint8)
    label[rng.random(shape) < 0.2] = IGNORE
    labelled.append({'image': image[0], 'label': label})
    unlabelled.append({'image': image[1], 'valid': rng.random(shape) > 0.15})
  return params, labelled, unlabelled
