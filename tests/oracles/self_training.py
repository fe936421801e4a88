"""ST and ST++ on the linear model: sheet A, section 3.

Agreement (stage 2 of ST++): s_i = mean over k < K of mIoU(M_k, M_K), mIoU = mean of IoU over the
classes in the union of both maps; sorted descending, ties in list order; the first floor(n/2) are
reliable. (The paper writes a sum over k, the code a mean: the same order.)

Labelling: argmax of the sum of softmax maps of all views, no threshold, nothing ignored. This model
has no resizing and sees single pixels, so every view (scale, mirror) gives the same map.

Iteration, lines 4-5: L = CE(f(x), label), the mean over labels other than 255 of the whole mixed
batch, labelled and pseudo-labelled pixels alike; SGD; poly over the stage. Networks, momentum and
schedule start afresh in every stage. Strong augmentation of pseudo-labelled images (line 3) is the
caller's, but for its cutout: `cutout`.

Paper and code differ in which epoch is kept (the last; the best on the validation set): here the
last. Checkpoints are taken after steps that the caller names (E//3, 2E//3, E epochs).
"""

import numpy as np

from tests.oracles.linear_model import (
  IGNORE,
  backward,
  cross_entropy,
  forward,
  initial_state,
  learn,
  mean_weights,
  pixels,
)


def mean_iou(first, second):
  """Of two maps of one shape, over the classes that occur in either."""
  scores = []
  for c in np.union1d(first, second):
    intersection = ((first == c) & (second == c)).sum()
    scores.append(intersection / ((first == c) | (second == c)).sum())
  return float(np.mean(scores))


def reliability(maps):
  """[K,H,W] hard predictions of one image by K checkpoints, the last one last -> s_i."""
  return float(np.mean([mean_iou(earlier, maps[-1]) for earlier in maps[:-1]]))


def split(scores):
  """Scores -> indices of the reliable floor(n/2) images and of the rest, best first."""
  order = sorted(range(len(scores)), key=lambda i: -scores[i])
  return order[:len(order) // 2], order[len(order) // 2:]


def predict(params, images):
  """uint8 [B,H,W,3] -> labels [B,H,W]."""
  logits = forward(params, pixels({'image': images}))['logits']
  return logits.argmax(1).reshape(images.shape[:-1]).astype(np.uint8)


def cutout(image, label, box, noise):
  """One image [H,W,3] and label [H,W]: inside the box (top, left, bottom, right) noise and 255.

  Args:
    noise: uint8 [H,W,3], of which the box is used.
  """
  top, left, bottom, right = box
  image, label = image.copy(), label.copy()
  image[top:bottom, left:right] = noise[top:bottom, left:right]
  label[top:bottom, left:right] = IGNORE
  return image, label


def objective(params, batches):
  """The mean over all labels other than 255 of all batches together, and its gradient."""
  x = np.concatenate([pixels(batch) for batch in batches])
  label = np.concatenate([batch['label'].reshape(-1) for batch in batches])
  layers = forward(params, x)
  loss, delta = cross_entropy(layers['logits'], label, mean_weights(label != IGNORE))
  return loss, backward(params, layers, delta)


def step(state, labelled, pseudo=None, *, hyper):
  """One step of any stage.

  Args:
    state: network and momentum of 'student'; 'step' counts within the stage.
    labelled, pseudo: 'image', 'label'; images of the mixed batch may be divided in any way. 'valid'
      in pseudo zeroes an image's padding, whose label must be 255.
  Returns: the next state; losses {'total'}.
  """
  batches = [labelled] if pseudo is None else [labelled, pseudo]
  loss, gradient = objective(state['networks']['student'], batches)
  return learn(state, {'student': gradient}, hyper), {'total': loss}


def train(params, batches, *, hyper, checkpoints=()):
  """One stage: fresh parameters, [(labelled, pseudo or None)] -> last parameters, kept ones.

  Args:
    checkpoints: numbers of steps after which parameters are kept.
  """
  state, kept = initial_state({'student': params}, ('student',)), []
  for labelled, pseudo in batches:
    state, _ = step(state, labelled, pseudo, hyper=hyper)
    if state['step'] in checkpoints:
      kept.append(state['networks']['student'])
  return state['networks']['student'], kept


def st_plus_plus(fresh, labelled, images, *, steps, draw, hyper, checkpoints):
  """All six stages of ST++; ST is stages 1-3 with every image reliable.

  Args:
    fresh: the parameters that stages 1, 4 and 6 start from.
    labelled: [labelled batch of a step] for each of those stages.
    images: uint8 [n,H,W,3], all unlabelled.
    steps: their numbers of steps.
    draw: (stage 4 or 6, step, n) -> indices below n into the stage's list of pseudo-labelled
      images: the reliable ones, best first; in stage 6 the others after them.
    hyper: stage -> hyper; checkpoints: of stage 1, see `train`.
  Returns: {'scores', 'reliable', 'unreliable', 'masks' {index: [H,W]}, 'params' {stage: tree}}.
  """
  first, kept = train(fresh[0], [(batch, None) for batch in labelled[0][:steps[0]]],
                      hyper=hyper(1), checkpoints=checkpoints)
  maps = np.stack([predict(params, images) for params in kept], 1)
  scores = [reliability(image_maps) for image_maps in maps]
  reliable, unreliable = split(scores)
  masks = {i: predict(first, images[i:i + 1])[0] for i in reliable}

  def retrain(stage, number, listed):
    batches = []
    for k in range(steps[number]):
      chosen = [listed[i] for i in draw(stage, k, len(listed))]
      pseudo = {'image': images[chosen], 'label': np.stack([masks[i] for i in chosen])}
      batches.append((labelled[number][k], pseudo))
    return train(fresh[number], batches, hyper=hyper(stage))[0]

  second = retrain(4, 1, reliable)
  masks |= {i: predict(second, images[i:i + 1])[0] for i in unreliable}
  last = retrain(6, 2, reliable + unreliable)
  return {'scores': scores, 'reliable': reliable, 'unreliable': unreliable, 'masks': masks,
          'params': {1: first, 4: second, 6: last}}
