"""Backbones and decoders of every combination; what is frozen; what is refused."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gta_jax.models.backbones import BACKBONES
from gta_jax.models.layers import add_bias
from gta_jax.models.segmenter import DECODERS, make_segmenter
from gta_jax.ops.optim import make_adam, make_sgd
from tests.narrow_sums import narrow_sums

TINY = {'num_classes': 3, 'depth': 10, 'width': 0.125, 'aspp_rates': (1, 2, 3)}


def shapes_of(size, *, crop=64, **options):
  """Shapes of stages, main and auxiliary logits and features, of two images, nothing computed."""
  network = make_segmenter(**TINY | options)

  def run(key):
    variables = network.init(key, (crop, crop))
    stages, _ = network.encode(variables, jnp.zeros((2, *size, 3)), train=True)
    return stages, network.decode(variables, stages, train=True)[0]

  stages, decoded = jax.eval_shape(run, jax.random.key(0))
  return [x.shape for x in stages], decoded


PYRAMIDS = [name for name, kind in BACKBONES.items() if not kind.head]


# The larger EfficientNets differ from the first in the number of blocks alone.
@pytest.mark.parametrize('backbone, output_stride', [
  *((name, stride) for name in ('resnet', 'efficientnet_lite0') for stride in (8, 16, 32)),
  *(pytest.param(name, 16, marks=pytest.mark.slow) for name in PYRAMIDS
    if name not in ('resnet', 'efficientnet_lite0'))])
@pytest.mark.parametrize('decoder', [name for name in DECODERS if name != 'dpt'])
def test_every_pair_gives_logits(backbone, decoder, output_stride):
  stages, decoded = shapes_of((61, 97), backbone=backbone, decoder=decoder, auxiliary=True,
                              output_stride=output_stride)
  assert len(stages) == (6 if decoder == 'unet' else 4)
  size = (61, 97) if decoder == 'unet' else stages[0][1:3]
  assert decoded.logits.main.shape == (2, *size, 3)
  assert decoded.features.shape[:3] == (2, *size)
  assert decoded.logits.auxiliary.shape == (2, *stages[-2][1:3], 3)


@pytest.mark.parametrize('backbone, decoder, enlarged', [
  *(pytest.param(name, 'dpt', 8, marks=pytest.mark.slow if name.startswith('dinov2_l') else ())
    for name in BACKBONES if name not in PYRAMIDS),
  ('dinov2_s', 'deeplab', 1), ('dinov2_s_reg', 'deeplab', 1)])
def test_every_transformer_gives_logits(backbone, decoder, enlarged):
  """Four stages of one size; images need not be as large as those in training."""
  stages, decoded = shapes_of((56, 98), crop=70, backbone=backbone, decoder=decoder, auxiliary=True)
  width = stages[0][-1]
  assert stages == [(2, 4, 7, width)] * 4
  assert decoded.logits.main.shape == (2, 4 * enlarged, 7 * enlarged, 3)
  assert decoded.features.shape[:3] == decoded.logits.main.shape[:3]
  assert decoded.logits.auxiliary.shape == (2, 4, 7, 3)


@pytest.mark.parametrize('stem', ['deep', 'torchvision'])
def test_unet_joins_every_stride(stem):
  stages, decoded = shapes_of((64, 96), stem=stem, decoder='unet', output_stride=32, width=1.0)
  first = 17 if stem == 'deep' else 16
  assert [height for _, height, _, _ in stages] == [64, 32, first, -(-first // 2), -(-first // 4),
                                                    -(-first // 8)]
  assert stages[0][-1] == decoded.features.shape[-1] == 24


@pytest.mark.slow
def test_unet_sees_single_pixels():
  """Logits of a pixel answer to it: what is coarser than the image does not decide alone."""
  network = make_segmenter(**TINY, decoder='unet')
  variables = network.init(jax.random.key(0), (32, 32))
  images = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))

  @jax.jit
  def logits(images):
    return network.apply(variables, images)[0].main[0, 16, 16]

  slope = np.abs(jax.jacobian(logits)(images)).sum((0, 1, 4))
  assert slope[16, 16] > 0
  assert slope[16, 16] > 10 * slope[:8].mean()


def test_image_pooling_without_batch_norm_has_a_bias():
  with_norm, without = (
    jax.eval_shape(lambda norm=norm: make_segmenter(**TINY, pool_norm=norm).init(
      jax.random.key(0), (32, 32)))['params']['decoder']['aspp'] for norm in (True, False))
  assert 'conv1_2' in with_norm and set(with_norm['conv1_1']) == {'kernel'}
  assert 'conv1_2' not in without and set(without['conv1_1']) == {'kernel', 'bias'}


@pytest.mark.slow
@pytest.mark.parametrize('make_optimizer', [make_sgd, make_adam])
def test_frozen_stages_stay(make_optimizer):
  """Parameters under weight decay and statistics of a train-mode step; the rest moves."""
  network = make_segmenter(**TINY, decoder='unet', frozen_stages=1, output_stride=8)
  variables = network.init(jax.random.key(0), (32, 32))
  images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  optimizer = make_optimizer(
    optax.constant_schedule(0.1), weight_decay=0.1, frozen=network.frozen)

  @jax.jit
  def step(variables):
    def loss(params):
      logits, stats = network.apply({**variables, 'params': params}, images, train=True)
      return jnp.mean(jnp.square(logits.main - 1)), stats

    gradient, stats = jax.grad(loss, has_aux=True)(variables['params'])
    params = variables['params']
    updates, _ = optimizer.update(gradient, optimizer.init(params), params, step=0)
    return gradient, {'params': optax.apply_updates(params, updates), 'batch_stats': stats}

  gradient, moved = step(variables)
  assert set(network.frozen) == {'conv1_0', 'conv1_1', 'conv1_3', 'conv1_4', 'conv1_6', 'bn1',
                                 'layer1_0'}
  of_backbone = variables['params']['backbone']
  for name in of_backbone:
    frozen = name in network.frozen
    zero = all(not np.any(x) for x in jax.tree.leaves(gradient['backbone'][name]))
    assert zero == frozen, name
    for kind in ('params', 'batch_stats'):
      before, after = (tree[kind]['backbone'].get(name, {}) for tree in (variables, moved))
      for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.array_equal(a, b) == frozen, (kind, name)


@pytest.mark.parametrize('options, message', [
  ({'backbone': 'vgg'}, "backbone='vgg' is unknown; use one of resnet"),
  ({'decoder': 'fcn'}, "decoder='fcn' is unknown; use one of deeplab, unet"),
  ({'frozen_stages': 5}, 'frozen_stages=5 is unknown; use one of 0, 1, 2, 3, 4'),
])
def test_unknown_parts_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    make_segmenter(**TINY | options)


@pytest.mark.parametrize('options', [
  {'auxiliary': True}, {'pool_norm': False}, {'decoder': 'unet'},
  {'decoder': 'dpt', 'backbone': 'dinov2_s', 'auxiliary': True},
  *(pytest.param(options, marks=pytest.mark.slow) for options in (
    {'decoder': 'unet', 'backbone': 'efficientnet_lite0'},
    {'decoder': 'deeplab', 'backbone': 'dinov2_s_reg'}))], ids=str)
def test_no_gradient_is_summed_in_bfloat16(options):
  side = 56 if 'dinov2' in options.get('backbone', '') else 64
  network = make_segmenter(**TINY | options, dtype='bfloat16')

  def loss(params, batch_stats, images):
    logits, _ = network.apply(
      {'params': params, 'batch_stats': batch_stats}, images, train=True)
    return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(logits))

  variables = jax.eval_shape(lambda: network.init(jax.random.key(0), (side, side)))
  images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
  program = jax.make_jaxpr(jax.grad(loss))(
    variables['params'], variables['batch_stats'], images)
  assert list(narrow_sums(program.jaxpr)) == []


def test_the_gradient_of_a_bias_is_as_large_as_in_float32():
  gradient = jax.random.uniform(jax.random.key(0), (2, 65, 65, 3))
  found = jax.grad(
    lambda bias: (add_bias(jnp.zeros(gradient.shape, jnp.bfloat16), bias) * gradient).sum())(
    jnp.zeros(3))
  np.testing.assert_allclose(found, gradient.sum((0, 1, 2)), rtol=1e-3)


def test_adding_a_bias_makes_no_array_of_float32():
  """Such arrays were a tenth of the memory of a step of DINOv2-B."""
  program = jax.make_jaxpr(add_bias)(jnp.zeros((2, 5, 5, 3), jnp.bfloat16), jnp.zeros(3))
  inner = [*jax.extend.core.subjaxprs(program.jaxpr), program.jaxpr]
  made = [result.aval for part in inner for equation in part.eqns for result in equation.outvars]
  assert made and not [aval for aval in made if aval.ndim == 4 and aval.dtype == jnp.float32]
