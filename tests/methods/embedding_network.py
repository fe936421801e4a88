"""tiny.conv_network with an embedding head on the decoder's features."""

import dataclasses

import jax

from gta_jax.methods.representation import REPRESENTATION
from tests import tiny


def conv_network(channels: int, width: int = 4, **options):
  """The network; the head is one linear layer on single pixels of the decoder's features."""
  plain = tiny.conv_network(width=width, **options)

  def init(key, image_size):
    variables = plain.init(key, image_size)
    kernel = jax.random.normal(jax.random.fold_in(key, 9), (width, channels))
    return {'params': variables['params'] | {REPRESENTATION: {'kernel': kernel}},
            'batch_stats': variables['batch_stats'] | {REPRESENTATION: {}}}

  def head(variables, name, inputs, **_):
    return inputs @ variables['params'][name]['kernel'], variables['batch_stats']

  return dataclasses.replace(plain, init=init, head=head)
