"""AEL, adaptive equalisation learning, in float64 NumPy (sheet b, section 1).

One step, by the numbers of "One iteration": copy-paste (2), mixing of the teacher's labels (6,
8), bank (7), confidences (10), sampling (11), weights (12), losses (13), SGD and EMA
(14). What is drawn is given; `ael_draws` says how it is drawn: classes (2, 3) and regions (5).

Paper and code, the first being the default here:
  - images with a loss on the teacher's labels: unlabelled | also labelled: `labelled_term`.
  - pasting: softmax(1 - conf) | softmax(sqrt(1 - conf)): `ael_draws`.
  - confidences: mean over images of per-image means, a class absent everywhere stays |
    pixels pooled, an absent class has mean 0: `pooled_confidence`.
  - loss: weights sum to one in each image, then mean over images | in the batch: `pooled_loss`.
  - threshold: none, 0 | 0.7 on VOC: `threshold`.
  - `ohem` (0.7, 100000), and 0.4 x a head 'auxiliary' on the backbone if there is one: in the
    code; the sheet does not say what the paper has.
  - rates: the code's are divided by the number of processes; here the rate is as given.
  - padding is never labelled or counted here; the code labels it class 0.
"""

import numpy as np

from tests.oracles import linear_model_b as lm

PAPER = {**lm.SGD, 'rate': 0.001, 'decoder_multiplier': 10.0, 'threshold': 0.0, 'beta': 1.0,
         'confidence_decay': 0.999, 'bank_area': 0.01, 'ema_decay': 0.99, 'ohem': None,
         'labelled_term': False, 'pooled_confidence': False, 'pooled_loss': False,
         'auxiliary_weight': 0.4}
RELEASED = {'labelled_term': True, 'pooled_confidence': True, 'pooled_loss': True,
            'ohem': (0.7, 100000)}  # and threshold 0.7, bank_area 0.03 on VOC


def copy_paste(labelled, source, pasted, classes):
  """Step 2 on uint8 images; image i takes pixels of `classes` from source i if pasted[i]."""
  mask = np.isin(source['label'], classes) & pasted[:, None, None]
  return {name: lm.paste(labelled[name], source[name], mask) for name in ('image', 'label')}


def update_confidence(confidence, probabilities, label, options):
  """Step 10; probabilities [B,N,K] of the student on labelled images, label [B,N]."""
  count = len(confidence)
  member = (label[..., None] == np.arange(count)).astype(float)
  summed, number = (member * probabilities).sum(1), member.sum(1)
  if options['pooled_confidence']:
    mean = summed.sum(0) / np.maximum(number.sum(0), 1)
  else:
    held = (number > 0).sum(0)
    mean = (summed / np.maximum(number, 1)).sum(0) / np.maximum(held, 1)
    mean = np.where(held > 0, mean, confidence)
  decay = options['confidence_decay']
  return decay * confidence + (1 - decay) * mean


def weights(confidence, kappa, student, uniform, valid, options):
  """Steps 8, 11, 12: weight of each pixel [B,N], 0 where below the threshold; arrays [B,N].

  Args: student: the student's class; uniform: [B,K,N] in [0,1), one map for each class.
  """
  rate = ((1 - confidence) / (1 - confidence).max()) ** options['beta']
  drawn = np.take_along_axis(uniform, student[:, None], 1)[:, 0]
  v = kappa ** 2 * (drawn < rate[student]) * valid
  # Ignored pixels add nothing to the loss but stay in the divisor.
  v_sum = v.sum() if options['pooled_loss'] else len(v) * v.sum(1, keepdims=True)
  return v / (v_sum + 1e-12) * (kappa >= options['threshold'])


def targets(state, labelled, unlabelled, donor, boxes, uniform, uniform_labelled, options):
  """What stands under the stop-gradient: {name: (image, label, weight)}, and the new memory."""
  student, teacher = state['networks']['student'], state['networks']['teacher']
  memory, shape = state['memory'], unlabelled['valid'].shape
  box = lm.inside(boxes, shape[1:])
  valid = lm.paste(unlabelled['valid'], donor['valid'], box)
  x = lm.pixels(lm.paste(unlabelled['image'], donor['image'], box), valid)
  x_l, label_l = lm.pixels(labelled['image']), lm.flat(labelled['label'])
  bank, whole = memory['bank'].copy(), {}
  for name, batch in (('unlabelled', unlabelled), ('donor', donor)):  # step 7
    logits = lm.forward(teacher, lm.pixels(batch['image'], batch['valid']))
    whole[name] = logits.reshape(*shape, -1)
    for i, n in enumerate(batch['index']):
      for c in range(len(bank)):
        held = (logits[i].argmax(-1) == c) & batch['valid'][i].reshape(-1)
        bank[c, n] = held.sum() >= options['bank_area'] * held.size
  # Step 6: logits are mixed.
  p = lm.softmax(lm.paste(whole['unlabelled'], whole['donor'], box)).reshape(len(x), -1, len(bank))
  student_l = lm.softmax(lm.forward(student, x_l))
  confidence = update_confidence(memory['confidence'], student_l, label_l, options)

  def pseudo(p, own, uniform, valid):
    uniform, kappa = uniform.reshape(*uniform.shape[:2], -1), p.max(-1)
    return p.argmax(-1), weights(confidence, kappa, own.argmax(-1), uniform, valid, options)

  found = {'mixed': (x, *pseudo(p, lm.forward(student, x), uniform, lm.flat(valid)))}
  if options['labelled_term']:
    p = lm.softmax(lm.forward(teacher, x_l))
    found['labelled_pseudo'] = (
      x_l, *pseudo(p, student_l, uniform_labelled, np.ones(label_l.shape, bool)))
  return found, {'confidence': confidence, 'bank': bank}


def objective(nodes, labelled, found, options):
  """Step 13."""
  x, label = lm.pixels(labelled['image']), lm.flat(labelled['label'])
  total = lm.supervised(lm.forward(nodes, x), label, options['ohem'])
  parts = {'labelled': total}
  if 'auxiliary' in nodes:
    logits = lm.linear(nodes['auxiliary'], lm.encode(nodes, x))
    parts['auxiliary'] = lm.supervised(logits, label, options['ohem'])
    total = total + options['auxiliary_weight'] * parts['auxiliary']
  for name, (x, label, weight) in found.items():
    parts[name] = lm.cross_entropy(lm.forward(nodes, x), label, weight)
    total = total + parts[name]
  return total, parts


def step(state, labelled, unlabelled, *, source, pasted, pasted_classes, donor, boxes, uniform,
         uniform_labelled=None, hyper=None):
  """One training step -> (state, losses before it).

  Args:
    state: memory {'confidence' [K], 'bank' [K,number of unlabelled images] of 0 and 1}.
    labelled: image uint8 [B,H,W,3], label [B,H,W].
    unlabelled: image, valid bool [B,H,W], index int [B] in the list: I2.
    source: a labelled batch to paste from. pasted: bool [B]. pasted_classes: int [any].
    donor: an unlabelled batch to cut from, I1. boxes: int [B,4] of (top, left, bottom, right).
    uniform: [B,K,H,W] in [0,1) for mixed images; the code shares one [K,H,W] in the batch.
    uniform_labelled: the same for labelled images, with `labelled_term`.
    hyper: options that differ from PAPER.
  """
  options = lm.settings(PAPER, hyper)
  labelled = copy_paste(labelled, source, pasted, pasted_classes)
  found, memory = targets(
    state, labelled, unlabelled, donor, boxes, uniform, uniform_labelled, options)
  student, momentum, losses = lm.descend(
    lambda nodes: objective(nodes, labelled, found, options), state['networks']['student'],
    state['optimizers']['student'], state['step'], options)
  decay = lm.ramped_decay(state['step'], options['ema_decay'])
  teacher = lm.average(state['networks']['teacher'], student, decay)
  return {'step': state['step'] + 1, 'networks': {'student': student, 'teacher': teacher},
          'optimizers': {'student': momentum}, 'memory': memory}, losses


def make_problem(seed, *, images=5, auxiliary=True, features=4, classes=3, **sizes):
  """(state, labelled, unlabelled, randomness): lists with one entry for each step."""
  rng, params, labelled, unlabelled = lm.make_batches(
    seed, features=features, classes=classes, **sizes,
    heads={'auxiliary': (features, classes, True)} if auxiliary else None)
  randomness = []
  for i, batch in enumerate(unlabelled):
    n, *size = batch['valid'].shape
    index = rng.permutation(images)
    batch['index'] = index[:n]
    donor = {**unlabelled[i - 1], 'index': index[-n:]}
    randomness.append({
      'source': labelled[i - 1], 'pasted': rng.random(n) < 0.5,
      'pasted_classes': rng.integers(0, classes, 1), 'donor': donor,
      'boxes': lm.random_boxes(rng, n, size), 'uniform': rng.random((n, classes, *size)),
      'uniform_labelled': rng.random((n, classes, *size))})
  memory = {'confidence': rng.random(classes), 'bank': np.zeros((classes, images))}
  return lm.init_state(params, ['student', 'teacher'], ['student'], memory), labelled, \
    unlabelled, randomness
