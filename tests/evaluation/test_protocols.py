"""Every protocol against a naive loop over single images, windows and views."""

import dataclasses
import math

import cv2
import jax
import numpy as np
import pytest

from gta_jax.evaluation.batches import centre_crop, make_batches
from gta_jax.evaluation.protocols import MULTISCALE, Protocol, make_protocols
from gta_jax.evaluation.scores import evaluate_protocols
from gta_jax.evaluation.windows import predict_batch
from gta_jax.ops.resizing import interpolation_matrix
from tests import tiny
from tests.arrays import random_dataset

NETWORK = tiny.conv_network()
LINEAR = tiny.linear_network()
CROP = 13
# Smaller than the crop, larger in one side, in both; one and two of a bucket of multiples of 16.
SIZES = [(9, 12), (10, 31), (27, 20), (28, 31), (32, 18)]
MEAN = np.round(255 * np.array(NETWORK.mean)).astype(np.uint8)


@pytest.fixture(scope='module')
def weights():
  return {network: network.init(jax.random.key(7), (8, 8)) for network in (NETWORK, LINEAR)}


def protocol(name):
  return make_protocols([name], crop=CROP)[0]


def predictions(network, variables, data, protocol, multiple=16, image_scale=1.0):
  """What the package finds: id -> labels and confidence; crops whole, others of the own size."""
  batches = make_batches(
    network.mean, data.reader, data.validation, [protocol], batch_size=2, crop=16,
    multiple=multiple, image_scale=image_scale, threads=1)
  found = {}
  for batch in batches:
    labels, confidence = predict_batch(network, variables, batch.arrays.images, protocol,
                                       output_size=batch.output_sizes[protocol.crop])
    for i, (id, (height, width)) in enumerate(batch.items):
      cut = np.s_[i] if protocol.crop else np.s_[i, :height, :width]
      found[id] = np.asarray(labels[cut]), np.asarray(confidence[cut])
  return found


def resize(x, size):
  """Bilinear with aligned corners, [h,w,K] to [H,W,K]; without jax nothing is compiled."""
  rows, columns = (interpolation_matrix(size[i], x.shape[i]) for i in (0, 1))
  return np.einsum('Hh,Ww,hwk->HWk', rows, columns, x, optimize=True)


def restore(x, size):
  """Bilinear about the centres of pixels, as images are resized, [h,w,K] to [H,W,K]."""
  return cv2.resize(np.ascontiguousarray(x), size[::-1], interpolation=cv2.INTER_LINEAR)


def logits(network, variables, image):
  """[H,W,K] of one image alone."""
  low = jax.jit(tiny.low_logits, static_argnums=0)(network, variables, image[None])
  return resize(np.asarray(low)[0], image.shape[:2])


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def check(found, probability):
  labels, confidence = found
  assert labels.shape == probability.shape[:2]
  np.testing.assert_allclose(confidence, probability.max(-1), atol=2e-5)
  best = np.sort(probability, -1)
  clear = best[..., -1] - best[..., -2] > 1e-4
  assert clear.mean() > 0.9
  np.testing.assert_array_equal(labels[clear], probability.argmax(-1)[clear])


def naive_sliding(network, variables, image, side):
  """Fills up, then adds window after window, as the published evaluation does."""
  height, width = image.shape[:2]
  spare = [max(side - length, 0) for length in (height, width)]
  top, left = (n // 2 for n in spare)
  full = cv2.copyMakeBorder(image, top, spare[0] - top, left, spare[1] - left,
                            cv2.BORDER_CONSTANT, value=MEAN.tolist())
  stride = math.ceil(side * 2 / 3)
  total, count = 0 * logits(network, variables, full), np.zeros((*full.shape[:2], 1))
  steps = [math.ceil((n - side) / stride) + 1 for n in full.shape[:2]]
  for i in range(steps[0]):
    for j in range(steps[1]):
      y, x = (min(n * stride, full.shape[axis] - side) for axis, n in enumerate((i, j)))
      window = np.s_[y : y + side, x : x + side]
      total[window] += logits(network, variables, full[window])
      count[window] += 1
  return (total / count)[top : top + height, left : left + width]


def test_names_may_come_as_one_text():
  """As --config.evaluate.protocols=whole,crop gives them."""
  assert make_protocols(['whole,crop'], crop=CROP) == make_protocols(['whole', 'crop'], crop=CROP)


@pytest.mark.slow
def test_sliding_windows_are_those_of_a_loop(weights):
  data = random_dataset(SIZES)
  found = predictions(NETWORK, weights[NETWORK], data, protocol('sliding'))
  for id, of_image in found.items():
    image = data.reader.image(id)
    check(of_image, softmax(naive_sliding(NETWORK, weights[NETWORK], image, CROP)))


def test_sliding_windows_are_averaged_as_logits():
  """Where a window of strong and one of weak logits overlap, probabilities would differ."""
  def apply(variables, images, **_):
    strength = images.mean((1, 2, 3))[:, None, None]
    one = strength * jax.numpy.ones(images.shape[:3])
    return jax.numpy.stack([one, 0 * one], -1)

  network = tiny.network_of(apply, mean=(0.5,) * 3, std=(0.1,) * 3)
  data = random_dataset([(6, 10)])
  data.reader.images['0'][:] = 255
  data.reader.images['0'][:, 4:] = 100
  found = predictions(network, {}, data, protocol('sliding6'))['0']
  check(found, softmax(naive_sliding(network, {}, data.reader.images['0'], 6)))


@pytest.mark.parametrize('side', [CROP, 24])
def test_crops_are_cut_and_filled_up_as_published(weights, side):
  data = random_dataset(SIZES)
  found = predictions(NETWORK, weights[NETWORK], data, protocol(f'crop{side}'))
  for id, of_image in found.items():
    image, truth = data.reader.image(id), data.reader.mask(id)
    height, width = truth.shape
    crop, label = np.tile(MEAN, (side, side, 1)), np.full((side, side), 9, np.uint8)
    for y in range(side):
      for x in range(side):
        # int(pad / 2) before a smaller image; floor of half the rest before a larger one's crop.
        source = [(y, height), (x, width)]
        source = [a - (side - n) // 2 if n < side else a + (n - side) // 2 for a, n in source]
        if 0 <= source[0] < height and 0 <= source[1] < width:
          crop[y, x], label[y, x] = image[*source], truth[*source]
    np.testing.assert_array_equal(centre_crop(truth, (side, side), 9), label)
    check(of_image, softmax(logits(NETWORK, weights[NETWORK], crop)))


def test_filling_up_counts_as_class_0_or_not_at_all(weights):
  data = random_dataset([(9, 12), (30, 30)])
  protocols = make_protocols(['crop', 'crop_padding0', 'whole'], crop=CROP)
  found = evaluate_protocols(NETWORK, {'it': weights[NETWORK]}, data, protocols, batch_size=2,
                             crop=32)
  ignored, counted, whole = (found[p.name].scores['it'].confusion for p in protocols)
  filled = CROP**2 - 9 * 12
  # The first row is void.
  assert ignored.sum() == CROP**2 + 8 * 12
  assert whole.sum() == 29 * 30 + 8 * 12
  np.testing.assert_array_equal((counted - ignored).sum(1), [filled, 0, 0])


@pytest.mark.parametrize('scales, flip', [((1.0,), True), ((0.5, 1.75), True), ((1.0, 1.5), False)])
@pytest.mark.parametrize('name', ['whole', 'sliding', 'crop'])
def test_flip_and_scales_average_probabilities(weights, name, scales, flip):
  """Whole images with a network of single pixels, for which padding to a bucket is neutral."""
  network = LINEAR if name == 'whole' else NETWORK
  data = random_dataset(SIZES[2:4])
  varied = dataclasses.replace(protocol(name), scales=scales, flip=flip)
  found = predictions(network, weights[network], data, varied)
  for id, of_image in found.items():
    image = data.reader.image(id)
    if name == 'crop':
      image = centre_crop(image, (CROP, CROP), MEAN)
    views = []
    for scale in scales:
      size = [round(scale * n) for n in image.shape[:2]]
      small = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
      for mirror in (1, -1)[: 1 + flip]:
        shown = np.ascontiguousarray(small[:, ::mirror])
        of_view = (naive_sliding(network, weights[network], shown, CROP) if name == 'sliding'
                   else logits(network, weights[network], shown))
        views.append(softmax(restore(of_view[:, ::mirror], image.shape[:2])))
    check(of_image, np.mean(views, 0))


def test_crops_and_windows_are_of_resized_images_and_scored_at_full_size(weights):
  data = random_dataset([(40, 52)])
  image = data.reader.image('0')
  found = predictions(NETWORK, weights[NETWORK], data, protocol('sliding'), image_scale=0.5)['0']
  small = cv2.resize(image, (26, 20), interpolation=cv2.INTER_LINEAR)
  low = naive_sliding(NETWORK, weights[NETWORK], small, CROP)
  check(found, softmax(restore(low, (40, 52))))
  found = predictions(NETWORK, weights[NETWORK], data, protocol('crop'), image_scale=0.5)['0']
  small = cv2.resize(centre_crop(image, (26, 26), 0), (13, 13), interpolation=cv2.INTER_LINEAR)
  low = logits(NETWORK, weights[NETWORK], small)
  check(found, softmax(restore(low, (26, 26))))


@pytest.mark.parametrize('name', ['whole', 'sliding'])
@pytest.mark.parametrize('image_scale', [0.0625, 0.25, 0.5, 2.0])
def test_an_edge_stays_where_it_is_whatever_the_scale(image_scale, name):
  def apply(variables, images, **_):
    return jax.numpy.stack([images.mean(-1), 0 * images.mean(-1)], -1)

  network = tiny.network_of(apply, mean=(0.5,) * 3, std=(0.1,) * 3)
  data = random_dataset([(32, 400)])
  edges = (16, 32, 200, 368, 384)
  for i, (start, end) in enumerate(zip((0, *edges), (*edges, 400), strict=True)):
    data.reader.images['0'][:, start:end] = 255 * (i % 2)
  labels, _ = predictions(network, {}, data, make_protocols([name], crop=16)[0],
                          image_scale=image_scale)['0']
  np.testing.assert_array_equal(np.flatnonzero(np.diff(labels[16])) + 1, edges)


def test_each_image_is_decoded_once_for_all_protocols_and_networks(weights):
  data = random_dataset(SIZES)
  decoded = []

  class Counting(type(data.reader)):
    def image(self, id):
      decoded.append(id)
      return super().image(id)

  reader = Counting(data.reader.images, data.reader.masks)
  networks = {'teacher': weights[NETWORK], 'student': NETWORK.init(jax.random.key(0), (8, 8))}
  protocols = make_protocols(['whole', 'sliding', 'crop_padding0', 'crop'], crop=CROP)
  found = evaluate_protocols(NETWORK, networks, dataclasses.replace(data, reader=reader),
                             protocols, batch_size=2, crop=32, threads=1)
  assert sorted(decoded) == sorted(data.validation)
  assert list(found) == [p.name for p in protocols]
  assert all(list(of.scores) == ['teacher', 'student'] for of in found.values())


def test_names_say_everything():
  assert make_protocols(['whole', 'crop', 'crop513_padding0', 'sliding+multiscale+flip'],
                        crop=321) == (
    Protocol(), Protocol('crop', crop=321),
    Protocol('crop513_padding0', crop=513, padding_label=0),
    Protocol('sliding+multiscale+flip', window=321, scales=MULTISCALE, flip=True))


@pytest.mark.parametrize('name', ['', 'hole', 'whole513', 'whole_padding0', 'sliding_padding0',
                                  'crop0', 'crop+flip+flip', 'crop+', 'crop-513'])
def test_other_names_are_refused_with_the_known_ones(name):
  with pytest.raises(ValueError, match='whole, crop, crop_padding0, sliding'):
    make_protocols([name], crop=CROP)
  with pytest.raises(ValueError, match='repeats'):
    make_protocols(['crop', 'crop'], crop=CROP)
