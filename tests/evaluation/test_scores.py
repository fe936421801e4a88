import dataclasses
import itertools
import threading

import cv2
import jax
import numpy as np
import pytest

from gta_jax.data.sources import DataError
from gta_jax.evaluation.protocols import Protocol
from gta_jax.evaluation.scores import evaluate, label_images
from gta_jax.ops.resizing import resize_bilinear
from tests import tiny
from tests.arrays import ArrayReader, random_dataset

SIZES = [(17, 23), (16, 24), (13, 20), (16, 24), (17, 23)]  # Two buckets of multiples of 8.
NETWORK = tiny.conv_network()


@pytest.fixture(scope='module')
def variables():
  init = jax.jit(NETWORK.init, static_argnums=1)
  return {name: init(jax.random.key(i), (8, 8)) for i, name in enumerate('ba')}


@jax.jit
def expected_labels(variables, image):
  """Of one image alone, without padding."""
  low = tiny.low_logits(NETWORK, variables, image[None])
  return resize_bilinear(low, image.shape[:2]).argmax(-1)[0]


def confusions(evaluation):
  return np.stack([scores.confusion for scores in evaluation.scores.values()])


def test_scores_without_padding_are_those_of_each_image_alone(variables):
  data = random_dataset(SIZES)
  found = evaluate(NETWORK, variables, data, batch_size=2, crop=8, multiple=1)
  labels = {name: {id: np.asarray(expected_labels(v, data.reader.image(id)))
                   for id in data.validation}
            for name, v in variables.items()}
  valid = {id: data.reader.mask(id) != 255 for id in data.validation}
  for name, scores in found.scores.items():
    hits = sum((labels[name][id] == data.reader.mask(id)).sum() for id in data.validation)
    assert np.trace(scores.confusion) == hits
    assert scores.confusion.sum() == sum(v.sum() for v in valid.values())
  alike = sum(((labels['a'][id] == labels['b'][id]) & valid[id]).sum() for id in data.validation)
  assert found.agreement == {'a_b': pytest.approx(alike / sum(v.sum() for v in valid.values()))}
  assert found.scalars()['b_miou'] == found.scores['b'].miou
  assert found.scalars().keys() == {'a_miou', 'b_miou', 'a_pixel_accuracy', 'b_pixel_accuracy',
                                    'agreement_a_b'}


@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_neither_batch_size_nor_order_matters(variables, scale):
  data = random_dataset(SIZES)
  turned = dataclasses.replace(data, validation=data.validation[::-1])
  found = [evaluate(NETWORK, variables, d, batch_size=b, crop=8, multiple=8, image_scale=scale)
           for d, b in ((data, 1), (turned, 4))]
  np.testing.assert_array_equal(confusions(found[0]), confusions(found[1]))
  assert list(found[0].scores) == list(variables)


def test_padded_images_are_predicted_as_larger_ones_and_cut(variables):
  data = random_dataset([(13, 20)])
  larger = np.full((16, 24, 3), np.round(255 * np.array(NETWORK.mean)), np.uint8)
  larger[:13, :20] = data.reader.image('0')
  (_, found), = label_images(
    NETWORK, variables, data.reader, ['0'], batch_size=2, crop=8, multiple=8)
  expected = np.asarray(expected_labels(variables['a'], larger))[:13, :20]
  np.testing.assert_array_equal(found['a'].labels, expected)


@pytest.mark.parametrize('scale', [0.7, 1.5])
def test_logits_of_scaled_images_come_back_to_the_original_size(variables, scale):
  """With a network that keeps logits at full resolution, so that padding changes nothing."""
  linear = tiny.linear_network()
  weights = linear.init(jax.random.key(0), (8, 8))
  data = random_dataset(SIZES)
  found = dict(label_images(linear, {'it': weights}, data.reader, data.validation, batch_size=2,
                            image_scale=scale, crop=8, multiple=8))
  scaled = {id: [max(1, round(s * scale)) for s in data.reader.size(id)] for id in data.validation}
  for id, prediction in found.items():
    image = data.reader.image(id)
    small = cv2.resize(image, scaled[id][::-1], interpolation=cv2.INTER_LINEAR)
    low = np.asarray(tiny.low_logits(linear, weights, small[None])[0])
    logits = cv2.resize(low, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    assert prediction['it'].labels.shape == image.shape[:2]
    assert (prediction['it'].labels == np.asarray(logits.argmax(-1))).mean() > 0.995
    probability = jax.nn.softmax(logits).max(-1)
    np.testing.assert_allclose(prediction['it'].confidence, probability, atol=1e-4)


def test_one_trace_for_each_bucket_however_many_networks_and_evaluations(variables):
  traced = []

  def encode(variables, images, **options):
    traced.append(images.shape)
    return NETWORK.encode(variables, images, **options)

  counting = dataclasses.replace(NETWORK, encode=encode)
  data = random_dataset(SIZES)
  for _ in range(2):
    evaluate(counting, variables, data, batch_size=2, crop=8, multiple=8)
  list(label_images(counting, variables, data.reader, data.validation, batch_size=2, crop=8,
                    multiple=8))
  assert sorted(traced) == [(2, 16, 24, 3), (2, 24, 24, 3)]


def test_padding_is_neutral_colour_and_never_scored():
  """A network that finds class 1 exactly where an image is not of the mean colour."""
  def apply(variables, images, **_):
    strength = abs(images).max(-1)
    return jax.numpy.stack([0.1 - strength, strength], -1)

  network = tiny.network_of(apply, mean=(0.2, 0.4, 0.6))
  data = random_dataset([(5, 6)], classes=2)
  data.reader.images['0'][:] = 255
  data.reader.masks['0'][1:] = 1
  found = evaluate(network, {'it': {}}, data, batch_size=3, crop=8, multiple=8)
  np.testing.assert_array_equal(found.scores['it'].confusion, [[0, 0], [0, 24]])
  padded = []

  def watched(variables, images):
    jax.debug.callback(lambda x: padded.append(np.asarray(x)), images)
    return apply(variables, images)

  watch = tiny.network_of(watched, mean=(0.2, 0.4, 0.6))
  evaluate(watch, {'it': {}}, data, batch_size=3, crop=8, multiple=8)
  jax.effects_barrier()
  assert abs(padded[0][0, 5:]).max() < 0.02
  assert abs(padded[0][1:]).max() < 0.02


def test_each_image_is_decoded_once(variables):
  data = random_dataset(SIZES)
  decoded, lock = [], threading.Lock()

  class Counting(type(data.reader)):
    def image(self, id):
      with lock:
        decoded.append(id)
      return super().image(id)

  reader = Counting(data.reader.images, data.reader.masks)
  evaluate(NETWORK, variables, dataclasses.replace(data, reader=reader), batch_size=4, crop=8)
  assert sorted(decoded) == sorted(data.validation)


def test_nothing_valid_gives_nan_and_nothing_at_all_is_refused(variables):
  data = random_dataset([(8, 8)])
  data.reader.masks['0'][:] = 255
  found = evaluate(NETWORK, variables, data, batch_size=1, crop=8)
  assert np.isnan(list(found.scalars().values())).all()
  with pytest.raises(ValueError, match='0 validation images'):
    evaluate(NETWORK, variables, dataclasses.replace(data, validation=()), batch_size=1, crop=8)
  with pytest.raises(ValueError, match='image_scale=0'):
    evaluate(NETWORK, variables, data, batch_size=1, crop=8, image_scale=0)


@pytest.mark.parametrize('fault', ['gone', 'size'])
def test_an_unreadable_validation_image_is_an_error(variables, fault):
  data = random_dataset(SIZES)
  bad = data.validation[1]

  class Faulty(type(data.reader)):
    def image(self, id):
      if id == bad and fault == 'gone':
        raise DataError(f'{id} is gone.')
      return super().image(id)[1:] if id == bad else super().image(id)

  data = dataclasses.replace(data, reader=Faulty(**vars(data.reader)))
  with pytest.raises(DataError, match=f'{bad}.*{fault}.*validation'):
    evaluate(NETWORK, variables, data, batch_size=2, crop=8, multiple=8)


SCALES_AND_FLIP = Protocol('labels', scales=(0.5, 1.0, 2.0), flip=True)


@pytest.mark.slow
def test_prediction_under_a_protocol_adds_the_probabilities_of_all_views(variables):
  image = random_dataset([(16, 24)]).reader.image('0')
  reader = ArrayReader({'it': image, 'mirror': image[:, ::-1].copy()}, {})
  found = {id: by_name['a'] for id, by_name in label_images(
    NETWORK, {'a': variables['a']}, reader, list(reader.images), batch_size=2, crop=8, multiple=1,
    protocol=SCALES_AND_FLIP)}
  total = 0
  for scale, mirror in itertools.product(SCALES_AND_FLIP.scales, (1, -1)):
    size = [round(side * scale) for side in (16, 24)]
    view = cv2.resize(image, size[::-1]) if scale != 1 else image
    low = tiny.low_logits(NETWORK, variables['a'], view[None, :, ::mirror])
    logits = cv2.resize(np.asarray(resize_bilinear(low, size))[0], (24, 16))
    total += jax.nn.softmax(logits)[:, ::mirror]
  np.testing.assert_array_equal(found['it'].labels, np.argmax(total, -1))
  np.testing.assert_allclose(found['it'].confidence, np.max(total, -1) / 6, atol=1e-5)
  np.testing.assert_array_equal(found['mirror'].labels, found['it'].labels[:, ::-1])


def test_batches_of_what_is_done_are_left_out_and_the_others_stay_as_they_are(variables):
  data = random_dataset(SIZES)
  options = {'batch_size': 2, 'crop': 8, 'multiple': 8}
  given = (NETWORK, {'a': variables['a']}, data.reader, data.validation)
  every = dict(label_images(*given, **options))
  some = dict(label_images(*given, done={'0', '1', '4'}, **options))
  assert list(every) == ['0', '4', '1', '2', '3']  # batches of 0 and 4, 1 and 2, 3
  assert list(some) == ['1', '2', '3']
  for id in some:
    for one, other in zip(some[id]['a'], every[id]['a'], strict=True):
      np.testing.assert_array_equal(one, other)
