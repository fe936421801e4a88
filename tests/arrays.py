"""A data set of arrays in memory."""

import dataclasses

import numpy as np

from gta_jax.data.sources import Dataset


@dataclasses.dataclass(frozen=True)
class ArrayReader:
  images: dict
  masks: dict

  def image(self, id):
    return self.images[id]

  def mask(self, id):
    return self.masks[id]

  def has_mask(self, id):
    return id in self.masks

  def size(self, id):
    return self.images[id].shape[:2]


def random_dataset(sizes, classes=3, seed=0):
  """Validation images '0', '1', ... of these (height, width), with a void row on top."""
  rng = np.random.default_rng(seed)
  images, masks = {}, {}
  for i, size in enumerate(sizes):
    # Blocks, so that resizing and neighbourhoods have something to hold on to.
    coarse = rng.integers(0, 256, (size[0] // 4 + 1, size[1] // 4 + 1, 3), dtype=np.uint8)
    images[str(i)] = coarse.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]
    masks[str(i)] = rng.integers(0, classes, size, dtype=np.uint8)
    masks[str(i)][0] = 255
  palette = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)[:classes]
  return Dataset('arrays', tuple('abc')[:classes], palette, (), (), tuple(images),
                 ArrayReader(images, masks))
