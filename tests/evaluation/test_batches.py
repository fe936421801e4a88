"""Sizes of validation batches: members fit for every scale, corners line up as in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gta_jax.data.files import DataError
from gta_jax.data.sources import Dataset
from gta_jax.evaluation import batches
from gta_jax.evaluation.batches import make_batches
from gta_jax.evaluation.protocols import WHOLE, make_protocols
from gta_jax.models.resnet import ResNet
from tests.arrays import ArrayReader, random_dataset


def batches_of(
    data: Dataset, ids=None, *, image_scale=1.0, crop=32, multiple=32, names=('whole',), devices=1,
    num_classes=256):
  return list(make_batches(
    (0.5, 0.5, 0.5), data.reader, ids or data.validation, make_protocols(names, crop=crop),
    batch_size=2, image_scale=image_scale, crop=crop, multiple=multiple, threads=1,
    num_classes=num_classes, devices=devices))


def columns(*sides):
  """Images of one column, so that thousands of rows cost little."""
  return Dataset('columns', ('a',), np.zeros((1, 3), np.uint8), (), (), tuple(map(str, sides)),
                 ArrayReader({str(s): np.zeros((s, 1, 3), np.uint8) for s in sides},
                             {str(s): np.full((s, 1), s % 200, np.uint8) for s in sides}))


@given(st.integers(1, 2000), st.floats(0.05, 3.0) | st.integers(5, 300).map(lambda n: n / 100),
       st.integers(1, 100))
@example(475, 0.54, 32)
@example(495, 1.1, 32)
@example(990, 0.55, 32)
@settings(max_examples=150, deadline=None)
def test_an_image_fits_into_its_group_at_every_scale(side, image_scale, crop):
  data = columns(side)
  (batch,) = batches_of(data, image_scale=image_scale, crop=crop, names=('whole+multiscale',))
  ((_, size),) = batch.items
  assert size == (side, 1)
  (labels,) = batch.arrays.labels.values()
  assert (labels[0, :side, :1] == side % 200).all() and (labels[0, side:] == 255).all()
  # Not larger than it must be: one pixel more would belong to another group.
  height = batch.output_sizes[0][0]
  (whole,) = (of for view, of in batch.arrays.images.items() if view.scale == 1)
  padded = whole.image.shape[1]
  assert round(height * image_scale) <= padded < round((height + 1) * image_scale) + 1


def test_shapes_follow_the_padded_size_alone_so_that_few_images_share_the_programs_of_all():
  data = random_dataset([(33, 60), (64, 64), (40, 50)])
  shapes = {
    (tuple(batch.output_sizes.items()),
     *(of.image.shape for of in batch.arrays.images.values()))
    for ids in (data.validation, *((id,) for id in data.validation))
    for batch in batches_of(data, ids, image_scale=0.7)}
  assert len(shapes) == 2


@pytest.mark.parametrize('devices, rows', [(1, [2, 1]), (2, [2, 2])])
def test_batches_of_large_images_have_fewer_rows_but_one_for_every_device(
    monkeypatch, devices, rows):
  monkeypatch.setattr(batches, '_MOST_PIXELS', 70 * 64)
  data = random_dataset([(32, 60), (32, 61), (64, 64), (64, 63)])
  found = batches_of(data, devices=devices)
  assert [len(batch.arrays.images[WHOLE.views[0]].image) for batch in found] == [
    rows[0], *[rows[1]] * (2 // rows[1])]
  assert [id for batch in found for id, _ in batch.items] == list(data.validation)


@pytest.mark.parametrize('crop', [321, 96, 97, 75])
@pytest.mark.parametrize('output_stride', [8, 16, 32])
@pytest.mark.parametrize('stem', ['deep', 'torchvision'])
def test_corners_of_padded_images_line_up_as_those_of_training_crops(stem, output_stride, crop):
  """The last cell of a feature map, at stride x index, is as far from the last pixel."""
  network = ResNet(10, stem, output_stride, None, 0.125)

  def offsets(side):
    image = jax.ShapeDtypeStruct((1, side, 64, 3), jnp.float32)
    stages, _ = jax.eval_shape(
      lambda x: network.init_with_output(jax.random.key(0), x, train=False), image)
    strides = (min(stride, output_stride) for stride in (4, 8, 16, 32))
    return [stride * (of.shape[1] - 1) - (side - 1)
            for stride, of in zip(strides, stages[1:], strict=True)]

  expected = offsets(crop)
  assert crop % 32 != 1 or expected == [0, 0, 0, 0]
  for side in (41, 180, 240):
    (batch,) = batches_of(columns(side), crop=crop)
    (whole,) = batch.arrays.images.values()
    padded = whole.image.shape[1]
    assert 0 <= padded - side < 32
    assert offsets(padded) == expected


def test_a_mask_that_got_ids_without_a_class_during_a_run_is_refused():
  data = columns(3, 5)
  assert len(batches_of(data, num_classes=6)) == 1
  with pytest.raises(DataError, match=r"mask of '5' has changed, and holds \[5\].* start again"):
    batches_of(data, num_classes=5)
