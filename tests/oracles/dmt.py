"""Dynamic mutual training (DMT) on the linear model: sheet A, section 6.

Labelling (line 2 of "Rounds"), by the other network's checkpoint of the round before: label
j = argmax, confidence q = max softmax; class threshold T_j = the confidence of rank int(a n_j) from
the top (+1: counted from 0) among the n_j pixels predicted j of every 16th pixel; 1e-5 if
a n_j < 1; the smallest if a = 1; label 255 where q < T_j.

"Iteration": p = sg softmax f(x); at a pseudo pixel with label y, confidence q
  w = p_y^g1 if argmax p = y;  0 if argmax p != y and max p > q;  p_y^g2 if argmax p != y and
  max p <= q;  labelled pixels: w = 1
  L = sum over the batch of w CE(f(x), y) / #{y != 255}, labelled and pseudo together
No gradient through w. SGD with one rate for all parts (decoder_multiplier 1 in hyper).

Paper and code: for g1 = g2 = 0 the code takes plain cross-entropy, whatever q is; the formula still
has weights of 0. The formula is the default; hyper['plain_at_zero'] = True is the code.
"""

import numpy as np

from tests.oracles.linear_model import (
  IGNORE,
  backward,
  cross_entropy,
  forward,
  learn,
  pixels,
  softmax,
)


def dynamic_weights(probabilities, label, confidence, g1, g2):
  """[N,C], [N], [N] -> [N], 0 where the label is 255."""
  weights = np.zeros(len(label))
  for i, (p, y, q) in enumerate(zip(probabilities, label, confidence, strict=True)):
    if y == IGNORE:
      continue
    if p.argmax() == y:
      weights[i] = p[y] ** g1
    elif p.max() <= q:
      weights[i] = p[y] ** g2
  return weights


def class_thresholds(predicted, confidence, share, classes):
  """T_j [classes] from sampled pixels: predicted class [n], confidence [n], label share a."""
  thresholds = np.full(classes, 1e-5)
  for j in range(classes):
    ranked = np.sort(confidence[predicted == j])[::-1]
    if share * len(ranked) >= 1:
      thresholds[j] = ranked[min(int(share * len(ranked)), len(ranked) - 1)]
  return thresholds


def label_images(params, images, *, share, every=16):
  """Labels and confidences [n,H,W] of all unlabelled images; every 16th pixel of each is ranked."""
  probabilities = softmax(forward(params, pixels({'image': images}))['logits'])
  predicted, confidence = (v.reshape(len(images), -1) for v in
                           (probabilities.argmax(1), probabilities.max(1)))
  thresholds = class_thresholds(predicted[:, ::every].ravel(), confidence[:, ::every].ravel(),
                                share, probabilities.shape[1])
  label = np.where(confidence < thresholds[predicted], IGNORE, predicted)
  return label.reshape(images.shape[:-1]), confidence.reshape(images.shape[:-1])


def objective(params, x, label, weight):
  """L and its gradient: x [N,3], label [N], weight [N] a constant."""
  layers = forward(params, x)
  weight = weight * (label != IGNORE) / max((label != IGNORE).sum(), 1)
  loss, delta = cross_entropy(layers['logits'], label, weight)
  return loss, backward(params, layers, delta)


def step(state, labelled, pseudo, *, name='student', hyper):
  """One step of the network `name`; the other one waits.

  Args:
    state: networks and momentum of the networks; they are trained one after the other, and a round
      starts with zero momentum and step 0.
    labelled: 'image', 'label'; pseudo: 'image', 'label', 'confidence' float [B,H,W], and 'valid' if
      padding is to be zeroed: its label counts as 255.
    hyper: 'gamma1', 'gamma2' (5 on VOC).
  Returns: the next state; losses {'total', 'weight': the mean weight of pseudo pixels}.
  """
  params = state['networks'][name]
  x = pixels(pseudo)
  label, confidence = (pseudo[key].reshape(-1) for key in ('label', 'confidence'))
  if 'valid' in pseudo:
    label = np.where(pseudo['valid'].reshape(-1), label, IGNORE)
  if hyper.get('plain_at_zero', False) and hyper['gamma1'] == hyper['gamma2'] == 0:
    weight = (label != IGNORE).astype(float)
  else:
    probabilities = softmax(forward(params, x)['logits'])
    weight = dynamic_weights(probabilities, label, confidence, hyper['gamma1'], hyper['gamma2'])
  losses = {'weight': weight.sum() / max((label != IGNORE).sum(), 1)}
  known = labelled['label'].reshape(-1)
  loss, gradient = objective(
    params, np.concatenate([pixels(labelled), x]), np.concatenate([known, label]),
    np.concatenate([np.ones(len(known)), weight]))
  return learn(state, {name: gradient}, hyper), {**losses, 'total': loss}
