"""Networks and batches small enough for invariants of the step."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gta_jax.methods.accumulation import WHOLE
from gta_jax.methods.contract import Tools
from gta_jax.ops.losses import SupervisedLoss
from gta_jax.ops.network import Decoded, Logits, Network
from gta_jax.ops.optim import make_sgd, poly_schedule

CLASSES = 3
SIZE = (8, 8)


def linear_network(
  features: int = 4, classes: int = CLASSES, *, heads=types.MappingProxyType({})
) -> Network:
  """A linear model of single pixels: no statistics, no dropout, no neighbours.

  heads: name -> channels of further linear heads, on whatever inputs they are given; those that
    read the backbone or the decoder have `features` inputs alike.
  """

  def init(key, image_size):
    del image_size
    shapes = {'backbone': (3, features), 'decoder': (features, features),
              'classifier': (features, classes)}
    shapes |= {name: (features, channels) for name, channels in heads.items()}
    params = {
      name: {'kernel': jax.random.normal(jax.random.fold_in(key, i), shape),
             'bias': jnp.zeros(shape[1])}
      for i, (name, shape) in enumerate(shapes.items())
    }
    return {'params': params, 'batch_stats': {name: {} for name in shapes}}

  def layer(variables, name, x):
    return x @ variables['params'][name]['kernel'] + variables['params'][name]['bias']

  def encode(variables, images, *, train=False, dropout_key=None):
    del train, dropout_key
    return (layer(variables, 'backbone', images),), variables['batch_stats']

  def decode(variables, stages, *, train=False, dropout_key=None):
    del train, dropout_key
    fused = layer(variables, 'decoder', stages[-1])
    decoded = Decoded(Logits(layer(variables, 'classifier', fused)), fused)
    return decoded, variables['batch_stats']

  def head(variables, name, inputs, *, train=False, dropout_key=None):
    del train, dropout_key
    return layer(variables, name, inputs), variables['batch_stats']

  return Network(init, encode, decode, head, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def network_of(logits_of, **options) -> Network:
  """A network without parameters: (variables, images) -> logits [B,h,w,K]."""
  def encode(variables, images, **_):
    return (images,), {}

  def decode(variables, stages, **_):
    return Decoded(Logits(logits_of(variables, stages[0])), stages[0]), {}

  return Network(lambda key, size: {}, encode, decode, no_head, **options)


def no_head(variables, name, inputs, **_):
  raise ValueError(f'{name} is no head of this network.')


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

  def encode(variables, images, *, train=False, dropout_key=None):
    del dropout_key
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
    return (x,), stats

  def decode(variables, stages, *, train=False, dropout_key=None):
    params, stats = variables['params'], variables['batch_stats']
    x, = stages
    x = jax.nn.relu(_conv(x, params['decoder']['kernel'], 1))
    if train and dropout and dropout_key is not None:
      x = x * jax.random.bernoulli(dropout_key, 0.9, (x.shape[0], 1, 1, x.shape[-1])) / 0.9
    logits = x @ params['classifier']['kernel'] + params['classifier']['bias']
    return Decoded(Logits(logits), x), stats

  return Network(init, encode, decode, no_head)


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


def make_tools(network: Network, *, rate=0.05, total_steps=20, epoch_steps=1, batch=4, size=SIZE,
               loss=None, accumulation=WHOLE, weight_decay=1e-4, **optim) -> Tools:
  """What a method is given, for a tiny network; the decoder's rate is ten times the backbone's."""
  def make_optimizer(*, schedule='poly', first_step=0, steps=None, undecayed=()):
    constant, poly = optax.constant_schedule(rate), poly_schedule(
      rate, total_steps=steps or total_steps, first_step=first_step)
    return make_sgd(constant if schedule == 'constant' else poly,
                    **{'multiplier': 10.0, 'weight_decay': weight_decay, 'undecayed': undecayed,
                       **optim})

  return Tools(network, loss or SupervisedLoss(), make_optimizer, total_steps, epoch_steps, CLASSES,
               size[0], batch, batch, accumulation)


def first_state(method, tools: Tools, variables=None, *, seed: int = 1):
  """The method's state at step 0, from these variables or drawn ones."""
  key = jax.random.key(seed)

  def draw(own=None):
    if variables is not None and own is None:
      return variables
    return tools.network.init(key if own is None else own, SIZE)

  return method.init(key, draw, tools)


def make_steps(method, tools: Tools, **jit_options):
  """Stage's name -> jitted (state, labelled, unlabelled) -> (state, metrics)."""
  def positional(stage):
    def step(state, labelled, unlabelled):
      batches = {'labelled': labelled, 'unlabelled': unlabelled, 'pseudo_labelled': unlabelled}
      return stage.step(state, {name: batches[name] for name in stage.streams})

    return jax.jit(step, **jit_options)

  return {stage.name: positional(stage) for stage in method.stages(tools)}
