"""Networks and batches small enough for invariants of the step."""

import jax
import jax.numpy as jnp
import numpy as np

from gta_jax.ops.network import Logits, Network

CLASSES = 3
SIZE = (8, 8)


def linear_network(features: int = 4, classes: int = CLASSES) -> Network:
  """A linear model of single pixels: no statistics, no dropout, no neighbours."""

  def init(key, image_size):
    del image_size
    shapes = {'backbone': (3, features), 'decoder': (features, features),
              'classifier': (features, classes)}
    params = {
      name: {'kernel': jax.random.normal(jax.random.fold_in(key, i), shape),
             'bias': jnp.zeros(shape[1])}
      for i, (name, shape) in enumerate(shapes.items())
    }
    return {'params': params, 'batch_stats': {name: {} for name in shapes}}

  def apply(variables, images, *, train=False, dropout_key=None):
    del train, dropout_key
    x = images
    for name in ('backbone', 'decoder', 'classifier'):
      x = x @ variables['params'][name]['kernel'] + variables['params'][name]['bias']
    return Logits(x), variables['batch_stats']

  return Network(init, apply, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def conv_network(
  classes: int = CLASSES, width: int = 4, *, groups: int = 1, dropout: bool = True
) -> Network:
  """Two 3x3 convolutions at half resolution, batch statistics, dropout: all that can go wrong.

  groups: the batch is normalised in so many parts; running statistics follow the parts' mean.
  """

  def init(key, image_size):
    del image_size
    keys = jax.random.split(key, 3)
    params = {
      'backbone': {'kernel': 0.3 * jax.random.normal(keys[0], (3, 3, 3, width)),
                   'scale': jnp.ones(width)},
      'decoder': {'kernel': 0.3 * jax.random.normal(keys[1], (3, 3, width, width))},
      'classifier': {'kernel': jax.random.normal(keys[2], (width, classes)),
                     'bias': jnp.zeros(classes)},
    }
    stats = {'backbone': {'mean': jnp.zeros(width), 'var': jnp.ones(width)},
             'decoder': {}, 'classifier': {}}
    return {'params': params, 'batch_stats': stats}

  def apply(variables, images, *, train=False, dropout_key=None):
    params, stats = variables['params'], variables['batch_stats']
    x = _conv(images, params['backbone']['kernel'], 2)
    mean, var = stats['backbone']['mean'], stats['backbone']['var']
    if train:
      parts = x.reshape(groups, -1, *x.shape[1:])
      means, variances = jnp.mean(parts, (1, 2, 3)), jnp.var(parts, (1, 2, 3))
      moved = {'mean': 0.9 * stats['backbone']['mean'] + 0.1 * means.mean(0),
               'var': 0.9 * stats['backbone']['var'] + 0.1 * variances.mean(0)}
      stats = {**stats, 'backbone': moved}
      mean, var = (
        jnp.repeat(v, len(x) // groups, axis=0)[:, None, None] for v in (means, variances))
    x = jax.nn.relu(params['backbone']['scale'] * (x - mean) * jax.lax.rsqrt(var + 1e-5))
    x = jax.nn.relu(_conv(x, params['decoder']['kernel'], 1))
    if train and dropout and dropout_key is not None:
      x = x * jax.random.bernoulli(dropout_key, 0.9, (x.shape[0], 1, 1, x.shape[-1])) / 0.9
    return Logits(x @ params['classifier']['kernel'] + params['classifier']['bias']), stats

  return Network(init, apply)


def low_logits(network: Network, variables, images):
  """Logits [B,h,w,K] of uint8 images [B,H,W,3] at the network's own resolution."""
  return network.apply(variables, network.normalize(images), train=False)[0].main


def _conv(x, kernel, stride):
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def make_batches(seed: int = 0, batch: int = 4, size=SIZE, classes: int = CLASSES):
  """A labelled and an unlabelled batch with void and padding."""
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (2, batch, *size, 3), dtype=np.uint8)
  label = rng.integers(0, classes, (batch, *size), dtype=np.uint8)
  label[:, 0] = 255
  valid = np.ones((batch, *size), bool)
  valid[:, :, -1] = False
  return {'image': images[0], 'label': label}, {'image': images[1], 'valid': valid}
