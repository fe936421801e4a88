"""Sizes of validation batches: corners line up as in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.data.sources import Dataset
from gta_jax.evaluation.batches import make_batches
from gta_jax.evaluation.protocols import make_protocols
from gta_jax.models.resnet import ResNet
from tests.arrays import ArrayReader


def batches_of(data: Dataset, ids=None, *, image_scale=1.0, crop=32, multiple=32, names=('whole',)):
  return list(make_batches(
    (0.5, 0.5, 0.5), data.reader, ids or data.validation, make_protocols(names, crop=crop),
    batch_size=2, image_scale=image_scale, crop=crop, multiple=multiple, threads=1, masks=True))


def columns(*sides):
  """Images of one column, so that thousands of rows cost little."""
  return Dataset('columns', ('a',), np.zeros((1, 3), np.uint8), (), (), tuple(map(str, sides)),
                 ArrayReader({str(s): np.zeros((s, 1, 3), np.uint8) for s in sides},
                             {str(s): np.full((s, 1), s % 200, np.uint8) for s in sides}))


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
            for stride, of in zip(strides, stages, strict=True)]

  expected = offsets(crop)
  assert crop % 32 != 1 or expected == [0, 0, 0, 0]
  for side in (41, 180, 240):
    (batch,) = batches_of(columns(side), crop=crop)
    (whole,) = batch.arrays.images.values()
    padded = whole.image.shape[1]
    assert 0 <= padded - side < 32
    assert offsets(padded) == expected
