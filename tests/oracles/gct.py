"""Guided collaborative training (GCT) on the linear model: sheet A, section 5, steps 0-2.

Networks l, r are 'student', 'assistant'; 'detector' is {'flaw': layer} from [x, p] (3 + C values of
a pixel) to one value. x = [x_l; u], H the image's height:
  0  p_k = softmax f_k(x), F_k = D(x, p_k); handled flaw g_k, `handle`; xi = .6; values above xi
     become 1; m_l = [g_r >= g_l], m_r = [g_l >= g_r]; both_bad = [g_l > xi and g_r > xi], before
     that; t_l = m_l p_l + (1 - m_l) p_r, t_r likewise: `mutual_targets`
  1  D frozen; L_k = CE + fc + dc, see `objective`; dc ramps up with s = exp(-5 (1 - k/K)^2)
  2  targets T_k on the labelled half, `flaw_target`; L_D = 10 mean over k of the mean over B H W
     of (F_k - T_k)^2; Adam

The paper's text is not at hand: PixelSSL's step as the sheet gives it is the default.
  hyper['variant']: 'pixelssl' (CE sums over known pixels / (B H W); D learns from step 0's p_k), or
    'torchsemiseg' (CE is the mean over known pixels; D learns from p_k of the updated networks).
  hyper['rectified']: False; True: L_D sees max(F, 0) with the gradient of F (TorchSemiSeg always).
  hyper['unsure']: 'as_coded' (where an image's flaw is zeroed, min and max before that still turn
    the zeros into a constant <= 0), or 'zero'.
Padding of u has no loss; its flaw is 0 before the blur and left out of minimum and maximum.
Labelled pixels with label 255 count in fc, dc and L_D, as in the sheet.
"""

import numpy as np

from tests.oracles.linear_model import (
  IGNORE,
  backward,
  cross_entropy,
  forward,
  learn,
  linear,
  linear_gradient,
  mean_weights,
  pixels,
  softmax,
  softmax_gradient,
  squared_error,
  tree_map,
)

NAMES = ('student', 'assistant')


def odd(size):
  """int(size), at least 1, made odd by adding one."""
  return max(int(size), 1) // 2 * 2 + 1


def blur(image, size):
  """[H,W] with a Gaussian of size x size, cut off and normalised; reflection without the edge."""
  sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
  half = size // 2
  offsets = np.arange(-half, half + 1)
  kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * sigma**2))
  padded = np.pad(image, half, mode='reflect')
  windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
  return (windows * kernel / kernel.sum()).sum((2, 3))


def dilate(image):
  """[H,W]: the largest of 3 x 3 values, reflected without the edge."""
  windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, 1, mode='reflect'), (3, 3))
  return windows.max((2, 3))


def handle(flaw, valid, size, unsure='as_coded'):
  """F [H,W] of one image -> g: rectified, blurred, zeroed if never above .1, scaled to [0,1]."""
  image = blur(np.maximum(flaw, 0) * valid, size)
  low, high = (f(image[valid]) if valid.any() else 0.0 for f in (np.min, np.max))
  if high <= 0.1:
    image = np.zeros_like(image)
    if unsure == 'zero':
      return image
  return (image - low) / (high - low + 1e-9)


def mutual_targets(p_l, p_r, g_l, g_r, threshold):
  """[N,C], [N,C], [N], [N] -> t_l, t_r, both_bad [N]."""
  both_bad = (g_l > threshold) & (g_r > threshold)
  g_l, g_r = (np.where(g > threshold, 1, g) for g in (g_l, g_r))
  own_l, own_r = (g_r >= g_l)[:, None], (g_l >= g_r)[:, None]
  return np.where(own_l, p_l, p_r), np.where(own_r, p_r, p_l), both_bad


def flaw_target(probabilities, label, sizes):
  """[H,W,C], [H,W] -> T [H,W]: |onehot - p| / 2 blurred, dilated, blurred, scaled to [0,1]."""
  onehot = label[..., None] == np.arange(probabilities.shape[-1])  # 255: all zero
  image = 0.5 * np.abs(onehot - probabilities).sum(-1)
  image = blur(dilate(blur(image, sizes[0])), sizes[1])
  return (image - image.min()) / (image.max() - image.min() + 1e-9)


def blur_sizes(height, hyper):
  """Kernels of the handled flaw (H/16) and of the target's two blurs (H/8, H/4)."""
  return hyper.get('blur_sizes', tuple(odd(height / n) for n in (16, 8, 4)))


def detect(detector, x, probabilities):
  """F [N] and D's input."""
  seen = np.concatenate([x, probabilities], 1)
  return linear(detector['flaw'], seen)[:, 0], seen


def objective(params, detector, labelled, x, fixed, ramp, hyper):
  """Losses and gradient of one network; the detector's parameters are constants.

      CE  = sum over known labelled pixels / (B H W)
      fc  = flaw_weight mean over pixels of both_bad D(x, p)^2
      dc  = ramp consistency_weight mean over pixels and classes of (p - t)^2

  Args:
    fixed: 'target' [N,C], 'both_bad' [N], 'weight' [N]: of a mean over [x_l; u] without padding.
  """
  layers = forward(params, x)
  p, weight, n_l = softmax(layers['logits']), fixed['weight'], labelled['label'].size
  label = labelled['label'].reshape(-1)
  known = label != IGNORE
  per_pixel = known / n_l if hyper.get('variant', 'pixelssl') == 'pixelssl' else mean_weights(known)
  ce, delta_l = cross_entropy(layers['logits'][:n_l], label, per_pixel)
  flaw, _ = detect(detector, x, p)
  on_bad = hyper['flaw_weight'] * weight * fixed['both_bad']
  fc = (on_bad * flaw**2).sum()
  on_p = (2 * on_bad * flaw)[:, None] * detector['flaw']['kernel'][3:, 0]
  dc, delta_dc = squared_error(
    layers['logits'], fixed['target'], ramp * hyper['consistency_weight'] * weight)
  delta = softmax_gradient(p, on_p) + delta_dc
  delta[:n_l] += delta_l
  losses = {'labelled': ce, 'flaw': fc, 'consistency': dc, 'total': ce + fc + dc}
  return losses, backward(params, layers, delta)


def detector_objective(detector, x_l, probabilities, targets, rectified):
  """L_D and its gradient: probabilities, targets: of l and r, [N_l,C] and [N_l] constants."""
  loss, gradient = 0.0, tree_map(np.zeros_like, detector)
  for p, target in zip(probabilities, targets, strict=True):
    flaw, seen = detect(detector, x_l, p)
    error = (np.maximum(flaw, 0) if rectified else flaw) - target
    loss += 10 * (error**2).mean() / len(targets)
    delta = 20 * error[:, None] / error.size / len(targets)
    gradient = tree_map(np.add, gradient, {'flaw': linear_gradient(seen, delta)})
  return loss, gradient


def adam_state(params):
  """Count and moments."""
  zeros = tree_map(np.zeros_like, params)
  return {'count': 0, 'mean': zeros, 'square': zeros}


def adam(params, state, gradient, rate, betas=(0.9, 0.99), epsilon=1e-8):
  """Adam without decay; returns parameters and state."""
  count = state['count'] + 1
  mean = tree_map(lambda m, g: betas[0] * m + (1 - betas[0]) * g, state['mean'], gradient)
  square = tree_map(lambda v, g: betas[1] * v + (1 - betas[1]) * g**2, state['square'], gradient)
  params = tree_map(
    lambda w, m, v: w - rate * m / (1 - betas[0]**count)
    / (np.sqrt(v / (1 - betas[1]**count)) + epsilon), params, mean, square)
  return params, {'count': count, 'mean': mean, 'square': square}


def targets(networks, labelled, unlabelled, x, hyper):
  """Step 0: {name: what `objective` calls fixed}."""
  size = labelled['label'].shape[1:]
  valid = np.concatenate([np.ones(labelled['label'].shape, bool), unlabelled['valid']])
  p, g = {}, {}
  for name in NAMES:
    p[name] = softmax(forward(networks[name], x)['logits'])
    flaw, _ = detect(networks['detector'], x, p[name])
    g[name] = np.concatenate([
      handle(f, v, blur_sizes(size[0], hyper)[0], hyper.get('unsure', 'as_coded')).reshape(-1)
      for f, v in zip(flaw.reshape(-1, *size), valid, strict=True)])
  (p_l, p_r), (g_l, g_r) = p.values(), g.values()
  *mutual, both_bad = mutual_targets(p_l, p_r, g_l, g_r, hyper.get('threshold', 0.6))
  weight = mean_weights(valid.reshape(-1))
  return {name: {'target': t, 'both_bad': both_bad, 'weight': weight}
          for name, t in zip(NAMES, mutual, strict=True)}


def detector_step(state, learners, labelled, rate, hyper):
  """Step 2: the detector after Adam's step, its state and L_D; learners are those that are seen."""
  x_l, label = pixels(labelled), labelled['label']
  p = [softmax(forward(learners[name], x_l)['logits']) for name in NAMES]
  sizes = blur_sizes(label.shape[1], hyper)[1:]
  flaws = [np.concatenate([flaw_target(image, mask, sizes).reshape(-1) for image, mask in
                           zip(q.reshape(*label.shape, -1), label, strict=True)]) for q in p]
  detector = state['networks']['detector']
  loss, gradient = detector_objective(detector, x_l, p, flaws, hyper.get('rectified', False))
  return *adam(detector, state['adam'], gradient, rate), loss


def step(state, labelled, unlabelled, *, hyper):
  """One step; nothing is random.

  Args:
    state: networks 'student', 'assistant', 'detector'; momentum of the first two; 'adam', see
      `adam_state`.
    hyper: 'flaw_weight' 1, 'consistency_weight' 100, 'ramp': step -> s, 'detector_rate': step ->
      rate, 'blur_sizes' (odd kernels of H/16, H/8, H/4).
  Returns: the next state; losses {name: {'labelled', 'flaw', 'consistency', 'total'}, 'detector'}
    before the updates; in 'torchsemiseg' the detector's after those of the networks.
  """
  networks, step_number = state['networks'], state['step']
  x = np.concatenate([pixels(labelled), pixels(unlabelled)])
  fixed = targets(networks, labelled, unlabelled, x, hyper)
  losses, gradients = {}, {}
  for name in NAMES:
    losses[name], gradients[name] = objective(
      networks[name], networks['detector'], labelled, x, fixed[name],
      hyper['ramp'](step_number), hyper)
  new = learn(state, gradients, hyper)
  late = hyper.get('variant', 'pixelssl') == 'torchsemiseg'
  detector, adam_memory, losses['detector'] = detector_step(
    state, new['networks'] if late else networks, labelled, hyper['detector_rate'](step_number),
    hyper)
  return {**new, 'networks': {**new['networks'], 'detector': detector}, 'adam': adam_memory}, losses
