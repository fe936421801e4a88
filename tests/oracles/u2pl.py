"""U2PL on the linear model: sheet A, section 2, "Iteration", lines 1-11.

A network has a further key 'representation', a linear layer on the fused feature (the classifier's
input), whose output of size D is r. Student s, teacher t, u' = CutMix of u with image i + 1:
  1-2  y_u = argmax f_t(u); label, image and validity are mixed alike
  6-7  h = -sum_c p' log(p' + 1e-10), p' = softmax f_t(u'); labels with
       h >= percentile(h, 100 - alpha) are dropped, alpha = 20 (1 - e/E), linear interpolation
  8    L_u = N / N_kept mean over kept of CE(f_s(u'), y_u)
  9    L_c: see `contrast`
  10   L = CE(f_s(x_l), y) + L_u + lambda_c L_c
  11   SGD of s; t = a t + (1 - a) s, heads included; a = min(1 - 1/k, .99), k from 1:
       hyper['ema_decay'], a function of k - 1, the state's step

Paper and code, the paper being the default:
  hyper['negatives']: 'paper' or 'code' (multiplied by label == c, which leaves next to none).
  lambda_c: .1 in the paper, 1 over the number of GPUs in the code: hyper['contrast_weight'].
  Anchors and negatives: 50 and 256 in the paper, exchanged in the code: the draws' shapes.
  The code's index bug (anchors of class i, queue of the i-th present class) is not here.
  hyper['handover_steps'] (0): in the code's first semi-supervised epoch the teacher is the
    student's copy before every step.
Only valid pixels of u' count: in percentiles, N, labels, anchors and negatives.
"""

import numpy as np

from tests.oracles.linear_model import (
  IGNORE,
  add,
  average,
  backward,
  cross_entropy,
  following,
  forward,
  learn,
  linear,
  linear_gradient,
  mean_weights,
  mix,
  mix_batch,
  pixels,
  softmax,
  supervised,
)


def from_uniforms(numbers):
  """[C,...] in [0,1) -> a draw: (class, n) -> floor(numbers[class] n), indices below n."""
  return lambda c, n: np.floor(numbers[c] * n).astype(int)


def pseudo_label(teacher, unlabelled, inside):
  """The mixed batch u' with the teacher's labels of clean images, 255 on padding."""
  label = forward(teacher, pixels(unlabelled))['logits'].argmax(1).reshape(inside.shape)
  partner = following(unlabelled)
  mixed = mix_batch(unlabelled, partner, inside)
  return {**mixed, 'label': np.where(mixed['valid'], mix(label, np.roll(label, -1, 0), inside),
                                     IGNORE).reshape(-1)}


def entropy(probabilities):
  """[N,C] -> [N]."""
  return -(probabilities * np.log(probabilities + 1e-10)).sum(1)


def targets(teacher, labelled, mixed, memory, hyper, progress):
  """All that is constant for the student.

  Returns: 'kept' [N_u] bool (line 7), 'present' [C] bool: P_c is not empty; by class 'positive'
    q_c [D], 'candidates': pixels of A_c, numbered as in [x_l; u']; 'queues': K_c appended; both in
    the order of hyper['order'], numbers of pixels, which is that of [x_l; u'] by default.
  """
  x = np.concatenate([pixels(labelled), pixels(mixed)])
  layers = forward(teacher, x)
  probabilities = softmax(layers['logits'])
  representation = linear(teacher['representation'], layers['classifier'])
  y = labelled['label'].reshape(-1)
  label = np.concatenate([y, mixed['label']])
  supervised_pixel = np.arange(len(label)) < len(y)
  valid = label != IGNORE
  h, known = entropy(probabilities), valid & ~supervised_pixel
  alpha = hyper['alpha'] * (1 - progress)
  low, high = ((np.percentile(h[known], q) if known.any() else 0.0) for q in (alpha, 100 - alpha))
  sure = valid & (supervised_pixel | (h <= low))
  unsure = known & (h >= high)
  rank = np.argsort(np.argsort(-probabilities, 1, kind='stable'), 1, kind='stable')
  order = hyper.get('order', np.arange(len(label)))
  queues, present, positive, candidates = [], [], {}, {}
  for c in range(probabilities.shape[1]):
    members = sure & (label == c)
    present.append(members.any())
    if members.any():
      positive[c] = representation[members].mean(0)
    anchor = members & (probabilities[:, c] > hyper['confidence'])
    candidates[c] = order[anchor[order]]
    likely = rank[:, c] < hyper['low_rank']
    middle = (rank[:, c] >= hyper['low_rank']) & (rank[:, c] < hyper['high_rank'])
    other = label != c
    negative = (supervised_pixel & valid & other & likely) | (unsure & middle)
    if hyper.get('negatives', 'paper') == 'code':
      negative &= label == c
    queue = np.concatenate([memory[c], representation[order[negative[order]]]])
    queues.append(queue[max(len(queue) - hyper['queue_sizes'][c], 0):])
  return {'kept': known[len(y):] & (h[len(y):] < high), 'present': np.array(present),
          'positive': positive, 'candidates': candidates, 'queues': queues}


def cosine(anchors, others):
  """Cosines of [A,D] with [A,M,D], and the unit vectors of both."""
  a = anchors / np.linalg.norm(anchors, axis=-1, keepdims=True)
  b = others / np.linalg.norm(others, axis=-1, keepdims=True)
  return np.einsum('ad,amd->am', a, b), a, b


def contrast(representation, fixed, draw_anchors, draw_keys, temperature):
  """Line 9: L_c and d L_c / d representation [N,D], which is zero off the anchors.

      l_c = mean over anchors a of -log(e(q_c) / (e(q_c) + sum_k e(k))), e(v) = exp(cos(a, v) / T)
      L_c = sum l_c / number of classes with P_c; 0 if at most one has

  A class without anchors or keys adds nothing but counts in the divisor.
  """
  loss, delta = 0.0, np.zeros_like(representation)
  classes = fixed['present'].sum()
  if classes <= 1:
    return loss, delta
  for c in np.flatnonzero(fixed['present']):
    candidates, queue = fixed['candidates'][c], fixed['queues'][c]
    if not len(candidates) or not len(queue):
      continue
    chosen = candidates[draw_anchors(c, len(candidates))]  # [A]
    keys = queue[draw_keys(c, len(queue))]  # [A,M,D]
    positive = np.broadcast_to(fixed['positive'][c], (len(chosen), 1, queue.shape[1]))
    anchors = representation[chosen]
    cosines, a, b = cosine(anchors, np.concatenate([positive, keys], 1))
    share = softmax(cosines / temperature)
    divisor = len(chosen) * classes
    loss -= np.log(share[:, 0]).sum() / divisor
    share[:, 0] -= 1
    slope = share / temperature / divisor  # d loss / d cosines
    pull = np.einsum('am,amd->ad', slope, b) - (slope * cosines).sum(1, keepdims=True) * a
    np.add.at(delta, chosen, pull / np.linalg.norm(anchors, axis=1, keepdims=True))
  return loss, delta


def objective(student, labelled, mixed, fixed, draw_anchors, draw_keys, hyper):
  """Line 10: losses and the student's gradient."""
  loss_l, gradient = supervised(student, labelled)
  kept = fixed['kept']
  layers = forward(student, np.concatenate([pixels(labelled), pixels(mixed)]))
  n_l = labelled['label'].size
  total_pixels = mixed['valid'].sum()
  weight = mean_weights(kept) * total_pixels / max(kept.sum(), 1)
  loss_u, delta_u = cross_entropy(layers['logits'][n_l:], mixed['label'], weight)
  representation = linear(student['representation'], layers['classifier'])
  loss_c, delta_r = contrast(representation, fixed, draw_anchors, draw_keys, hyper['temperature'])
  delta_r = delta_r * hyper['contrast_weight']
  delta = np.concatenate([np.zeros((n_l, delta_u.shape[1])), delta_u])
  extra = {'classifier': delta_r @ student['representation']['kernel'].T}
  gradient = add(gradient, backward(student, layers, delta, extra))
  gradient['representation'] = linear_gradient(layers['classifier'], delta_r)
  losses = {'labelled': loss_l, 'unlabelled': loss_u, 'contrast': loss_c,
            'total': loss_l + loss_u + hyper['contrast_weight'] * loss_c}
  return losses, gradient


def step(state, labelled, unlabelled, *, inside, draw_anchors, draw_keys, hyper):
  """One step.

  Args:
    state: networks 'student' and 'teacher', momentum of 'student', 'queues': list of [n_c,D], the
      oldest key first.
    inside: [B,H,W] bool, true where u' shows image i + 1; all false without CutMix.
    draw_anchors: (c, n) -> [A] indices below n into A_c; draw_keys: (c, n) -> [A,M] into queue c.
    hyper: 'alpha' 20, 'confidence' .3, 'low_rank' 3, 'high_rank' 20, 'temperature' .5,
      'queue_sizes' [C], 'contrast_weight', 'ema_decay', 'progress': step -> e/E.
  Returns: the next state; losses {'labelled', 'unlabelled', 'contrast', 'total', 'kept'}.
  """
  student, teacher = (state['networks'][name] for name in ('student', 'teacher'))
  if state['step'] < hyper.get('handover_steps', 0):
    teacher = student
  mixed = pseudo_label(teacher, unlabelled, inside)
  progress = hyper['progress'](state['step'])
  fixed = targets(teacher, labelled, mixed, state['queues'], hyper, progress)
  losses, gradient = objective(student, labelled, mixed, fixed, draw_anchors, draw_keys, hyper)
  decay = hyper['ema_decay'](state['step'])
  state = learn(state, {'student': gradient}, hyper)
  teacher = average(teacher, state['networks']['student'], decay)
  networks = {**state['networks'], 'teacher': teacher}
  return ({**state, 'networks': networks, 'queues': fixed['queues']},
          {**losses, 'kept': int(fixed['kept'].sum())})
