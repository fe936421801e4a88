"""A linear model of three classes and a data set of unlabelled images, in memory."""

import jax
import numpy as np

from gta_jax.data.sources import Dataset
from gta_jax.inference.model import Model
from tests import tiny

NETWORK = tiny.linear_network()
VARIABLES = NETWORK.init(jax.random.key(0), (8, 8))
PALETTE = np.eye(3, dtype=np.uint8) * 200


class Reader:
  """Images in memory; nobody may look at a mask."""

  def __init__(self, images):
    self.images = images

  def image(self, id):
    return self.images[id]

  def size(self, id):
    return self.images[id].shape[:2]


def model(**options):
  return Model(NETWORK, {'one': VARIABLES}, classes=('a', 'b', 'c'), palette=PALETTE, crop=8,
               multiple=8, batch_size=2, **options)


def dataset(images):
  return Dataset('drawn', ('a', 'b', 'c'), PALETTE, (), tuple(images), (), Reader(images))
