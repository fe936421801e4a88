"""Cross-consistency training (CCT) on the linear model: sheet A, section 4, "Iteration", lines 1-7.

params['auxiliary_decoders'][name] is a linear layer from the encoder's feature f (the input of the
key 'decoder') to logits; `decoder` and `classifier` are the main decoder.
  1  L_s on z_l = main(enc(x_l)), see hyper['supervised']
  2  f = enc(u), t = sg softmax main(f), fg = argmax main(f) != 0
  3  z_j = aux_j(perturbation_j(f)), see `perturbation`; every perturbation is
     f * multiplier + offset with constants
  4  L_u = mean over j of mean over pixels and classes of (softmax z_j - t)^2
  5  L = L_s + w L_u; w = W exp(-5 (1 - k/K)^2), then W; W = 30
  6  L_s reaches encoder and main decoder, L_u encoder and auxiliary decoders, never the main one
  7  one SGD step (backbone a tenth of the others' rate: decoder_multiplier 10)

Paper and code; the first is the default here:
  hyper['supervised']: 'bootstrapped' (paper: annealed bootstrapped CE) or 'plain' (shipped config).
  hyper['feature']: 'encoded', or 'fused' (TorchSemiSeg, of GTA-Seg's Table 2: f is the classifier's
    input and L_u reaches the key 'decoder', too; it has ramp_steps 0 and bootstrap_top .99).
  VAT takes the exact direction; the shipped code's, lost in rounding, is not here.
Padding of u: no loss, not in fg, not in the maximum of feature drop, not in VAT's norms.
"""

import numpy as np

from tests.oracles.linear_model import (
  IGNORE,
  add,
  backward,
  cross_entropy,
  forward,
  learn,
  linear,
  linear_gradient,
  mean_weights,
  pixels,
  scale,
  softmax,
  softmax_gradient,
  squared_error,
)

LAYER_ON_FEATURE = {'encoded': 'decoder', 'fused': 'classifier'}


def ramp(step, ramp_steps):
  """exp(-5 (1 - k/K)^2), 1 from K on."""
  return float(np.exp(-5 * (1 - step / ramp_steps) ** 2)) if step < ramp_steps else 1.0


def bootstrapped_weights(logits, label, images, threshold):
  """Annealed bootstrapped CE: weights [N] of a mean over hard pixels; all zero if none is.

  Hard: p_true < max(threshold, p_true at rank `images` from below, counted from 0).
  """
  known = label != IGNORE
  true = softmax(logits)[np.arange(len(label)), np.where(known, label, 0)]
  ranked = np.sort(true[known])
  if len(ranked):
    threshold = max(threshold, ranked[min(images, len(ranked) - 1)])
  return mean_weights(known & (true < threshold))


def virtual_adversarial(layer, feature, direction, valid, radius):
  """[B,P,F] r: J^T (diag p - p p^T) J d scaled to the radius in each image, or 0 where that is 0.

  Args:
    layer: the auxiliary decoder, J its kernel; feature, direction: [B,P,F]; valid: [B,P].
  """
  probabilities = softmax(linear(layer, feature))
  moved = softmax_gradient(probabilities, direction @ layer['kernel'])
  gradient = moved @ layer['kernel'].T * valid[..., None]
  norm = np.sqrt((gradient**2).sum((1, 2), keepdims=True))
  return radius * gradient / np.where(norm > 0, norm, 1)


def perturbation(kind, value, layer, feature, foreground, valid, radius):
  """The constants of line 3: multiplier and offset, to [B,P,F] (P = H W) by broadcasting.

  kind, value:
    'identity', None
    'dropout', [B,F]: 0 or 2, channels dropped and others doubled
    'feature_noise', [H,W,F]: n of f (1 + n), one draw for the batch
    'feature_drop', float gamma: keeps where the mean over channels < gamma * its maximum (image)
    'guided_cutout', [B,H,W] bool: true where kept; the caller draws contours' boxes
    'context_masking', None: keeps the foreground; 'object_masking', None: keeps the background
    'vat', [B,H,W,F]: the random direction d
  """
  multiplier, offset = np.ones((1, 1, 1)), 0.0
  if kind == 'dropout':
    multiplier = value[:, None, :]
  elif kind == 'feature_noise':
    multiplier = 1 + value.reshape(1, *feature.shape[1:])
  elif kind == 'feature_drop':
    attention = feature.mean(2)
    largest = np.where(valid, attention, -np.inf).max(1, keepdims=True)
    multiplier = (attention < value * largest)[..., None]
  elif kind == 'guided_cutout':
    multiplier = value.reshape(*valid.shape, 1)
  elif kind == 'context_masking':
    multiplier = foreground[..., None]
  elif kind == 'object_masking':
    multiplier = ~foreground[..., None]
  elif kind == 'vat':
    direction = value.reshape(feature.shape) * valid[..., None]
    offset = virtual_adversarial(layer, feature, direction, valid, radius)
  elif kind != 'identity':
    raise ValueError(f'kind={kind!r} is none of the perturbations of `perturbation`.')
  return multiplier, offset


def targets(params, unlabelled, perturbations, hyper):
  """Line 2 and the constants of line 3: t [N,K] and {name: (multiplier, offset)}."""
  layers = forward(params, pixels(unlabelled))
  valid = unlabelled['valid'].reshape(len(unlabelled['valid']), -1)
  feature = layers[LAYER_ON_FEATURE[hyper.get('feature', 'encoded')]].reshape(*valid.shape, -1)
  foreground = layers['logits'].argmax(1).reshape(valid.shape) != 0
  constants = {
    name: perturbation(kind, value, params['auxiliary_decoders'][name], feature,
                       foreground & valid, valid, hyper.get('vat_radius', 2.0))
    for name, (kind, value) in perturbations.items()}
  return softmax(layers['logits']), constants


def supervised(params, labelled, step, hyper):
  """L_s and its gradient."""
  layers = forward(params, pixels(labelled))
  label, classes = labelled['label'].reshape(-1), layers['logits'].shape[1]
  if hyper.get('supervised', 'bootstrapped') == 'plain':
    weight = mean_weights(label != IGNORE)
  else:
    rise = 1 - np.exp(-5 * min(step / hyper['bootstrap_steps'], 1))
    threshold = 1 / classes + (hyper.get('bootstrap_top', 0.9) - 1 / classes) * rise
    weight = bootstrapped_weights(layers['logits'], label, len(labelled['label']), threshold)
  loss, delta = cross_entropy(layers['logits'], label, weight)
  return loss, backward(params, layers, delta)


def consistency(params, unlabelled, target, constants, hyper):
  """L_u and its gradient."""
  layers = forward(params, pixels(unlabelled))
  key = LAYER_ON_FEATURE[hyper.get('feature', 'encoded')]
  weight = mean_weights(unlabelled['valid'].reshape(-1)) / len(constants)
  feature = layers[key].reshape(len(unlabelled['valid']), -1, layers[key].shape[1])
  loss, heads, on_feature = 0.0, {}, np.zeros_like(layers[key])
  for name, (multiplier, offset) in constants.items():
    layer = params['auxiliary_decoders'][name]
    perturbed = (feature * multiplier + offset).reshape(layers[key].shape)
    part, delta = squared_error(linear(layer, perturbed), target, weight)
    loss += part
    heads[name] = linear_gradient(perturbed, delta)
    pull = (delta @ layer['kernel'].T).reshape(feature.shape) * multiplier
    on_feature += pull.reshape(on_feature.shape)
  gradient = backward(params, layers, np.zeros_like(target), {key: on_feature})
  return loss, {**gradient, 'auxiliary_decoders': heads}


def step(state, labelled, unlabelled, *, perturbations, hyper):
  """One step.

  Args:
    state: network and momentum of 'student'.
    perturbations: {auxiliary decoder: (kind, value)}, see `perturbation`.
    hyper: 'consistency_weight' W, 'ramp_steps' K, 'bootstrap_steps' (40% of all), 'vat_radius' 2.
  Returns: the next state; losses {'labelled', 'consistency', 'total'} before the update.
  """
  params = state['networks']['student']
  target, constants = targets(params, unlabelled, perturbations, hyper)
  loss_s, gradient = supervised(params, labelled, state['step'], hyper)
  loss_u, gradient_u = consistency(params, unlabelled, target, constants, hyper)
  factor = hyper['consistency_weight'] * ramp(state['step'], hyper['ramp_steps'])
  gradient = add(gradient, scale(gradient_u, factor))
  losses = {'labelled': loss_s, 'consistency': loss_u, 'total': loss_s + factor * loss_u}
  return learn(state, {'student': gradient}, hyper), losses
