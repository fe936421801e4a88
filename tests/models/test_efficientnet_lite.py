"""EfficientNet-Lite with its ImageNet weights against the torch package, at every stride."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.devices import sharding
from gta_jax.models import weights
from gta_jax.models.efficientnet_lite import VARIANTS, EfficientNetLite, Group, groups_of
from gta_jax.models.pretrained import convert, load_state_dict
from gta_jax.models.segmenter import make_segmenter

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 75, 96, 3), np.uint8)
TINY = (Group(1, 3, 1, 1, 8, 1), Group(1, 3, 2, 2, 8, 1), Group(2, 3, 2, 2, 16, 2))


def torch_network(variant):
  torch = pytest.importorskip('torch')
  package = pytest.importorskip('efficientnet_lite_pytorch')
  network = package.EfficientNet.from_name(variant.replace('_', '-'), image_size=None)
  network.load_state_dict(torch.load(weights.fetch(variant), weights_only=True))
  return network.double()


def torch_features(network, variant):
  """Outputs of the blocks after which the stride grows, float64 [B,h,w,C]."""
  ends = np.cumsum([group.repeats for group in groups_of(variant)]) - 1
  x = network._fc.weight.new_tensor((IMAGES.astype(np.float64) - 127) / 128).permute(0, 3, 1, 2)
  x, outputs = network._swish(network._bn0(network._conv_stem(x))), []
  for block in network._blocks:
    x = block(x)  # without stochastic depth
    outputs.append(x.permute(0, 2, 3, 1).detach().numpy())
  return [outputs[ends[group]] for group in (0, 1, 2, 4, 6)]


def loaded(variant):
  """The network and its variables with the weights, whose names are all accounted for."""
  network = make_segmenter(num_classes=3, backbone=variant, decoder='unet', output_stride=32)
  variables = jax.eval_shape(lambda: network.init(jax.random.key(0), (64, 64)))
  variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)
  variables, report = convert(load_state_dict(weights.fetch(variant)), variables, scope='backbone')
  assert {name.split('.')[0] for name in report.ignored if 'num_batches' not in name} == {
    '_conv_head', '_bn1', '_fc'}
  return network, variables


@pytest.mark.parametrize('variant', [
  'efficientnet_lite0', *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS
                          if name != 'efficientnet_lite0')])
def test_features_are_those_of_torch(variant):
  network, variables = loaded(variant)
  expected = torch_features(torch_network(variant).eval(), variant)
  stages, _ = jax.jit(network.encode)(variables, network.normalize(jnp.asarray(IMAGES)))
  for stage, of_torch in zip(stages[1:], expected, strict=True):
    assert stage.shape == of_torch.shape
    assert np.linalg.norm(stage - of_torch) < 1e-5 * np.linalg.norm(of_torch)


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS)
def test_features_of_a_training_step_and_its_statistics_are_those_of_torch(variant):
  network, variables = loaded(variant)
  reference = torch_network(variant).train()
  expected = torch_features(reference, variant)
  stages, statistics = jax.jit(network.encode, static_argnames='train')(
    variables, network.normalize(jnp.asarray(IMAGES)), train=True)
  for stage, of_torch in zip(stages[1:], expected, strict=True):
    # The last stage normalises by 18 values a channel, which amplifies rounding.
    few = stage.shape[1] * stage.shape[2] < 16
    assert np.linalg.norm(stage - of_torch) < (5e-5 if few else 1e-5) * np.linalg.norm(of_torch)
  for name, buffer in reference.named_buffers():
    if name.startswith('_blocks.0') and 'num_batches' not in name:
      _, index, norm, kind = name.split('.')
      found = statistics['backbone'][f'_blocks_{index}'][norm][kind.removeprefix('running_')]
      np.testing.assert_allclose(found, buffer.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('output_stride, sizes', [(32, (24, 12, 6, 3)), (16, (24, 12, 6, 6)),
                                                  (8, (24, 12, 12, 12))])
def test_stages_have_the_size_of_their_stride(output_stride, sizes):
  module = EfficientNetLite(groups_of('efficientnet_lite0'), output_stride)
  stages, _ = jax.eval_shape(
    lambda: module.init_with_output(jax.random.key(0), jnp.zeros((1, 96, 96, 3)), train=False))
  assert [stage.shape[1] for stage in stages] == [48, *sizes]
  assert [stage.shape[3] for stage in stages] == [16, 24, 40, 112, 320]


def tiny_gradient(module):
  """A jitted gradient and statistics of a step in train mode, and its inputs."""
  images = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))
  variables = module.init(jax.random.key(0), images, train=False)
  leaves, tree = jax.tree.flatten(variables['params'])
  keys = jax.random.split(jax.random.key(2), len(leaves))
  variables['params'] = tree.unflatten([
    x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)])

  @jax.jit
  def gradient(variables, images):
    def loss(params):
      stages, state = module.apply({**variables, 'params': params}, images, train=True,
                                   mutable=['batch_stats'])
      return sum(jnp.mean(jnp.square(stage)) for stage in stages), state

    return jax.grad(loss, has_aux=True)(variables['params'])

  return gradient, variables, images


def assert_close(found, expected):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(b) + 1e-7


@pytest.mark.slow
def test_rematerialised_gradients_are_the_plain_ones():
  plain, variables, images = tiny_gradient(EfficientNetLite(TINY, 8))
  again, _, _ = tiny_gradient(EfficientNetLite(TINY, 8, remat=True))
  assert_close(again(variables, images), plain(variables, images))


def compare_devices():
  """What the process with four devices runs."""
  assert jax.device_count() == 4
  gradient, variables, images = tiny_gradient(EfficientNetLite(TINY, 8))
  mesh = sharding.make_mesh()
  images = sharding.global_batch({'image': np.asarray(images)}, mesh)['image']
  found = gradient(sharding.replicate(variables, mesh), images)
  assert_close(jax.device_get(found), jax.device_get(gradient(variables, jax.device_get(images))))


@pytest.mark.slow
def test_statistics_are_those_of_the_whole_batch_on_any_number_of_devices():
  environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '4', 'JAX_PLATFORMS': 'cpu'}
  subprocess.run([sys.executable, '-m', 'tests.models.test_efficientnet_lite'], env=environment,
                 cwd=Path(__file__).parents[2], check=True, timeout=600)


@pytest.mark.slow
def test_frozen_stages_have_no_gradient_and_keep_their_statistics():
  module = EfficientNetLite(TINY, 8, frozen_stages=1)
  gradient, variables, images = tiny_gradient(module)
  found, state = gradient(variables, images)
  assert set(module.frozen_modules) == {'_conv_stem', '_bn0', '_blocks_0', '_blocks_1'}
  for name, part in found.items():
    assert any(np.any(x) for x in jax.tree.leaves(part)) == (name not in module.frozen_modules)
  for name, part in state['batch_stats'].items():
    kept = all(np.array_equal(a, b) for a, b in zip(
      jax.tree.leaves(part), jax.tree.leaves(variables['batch_stats'][name]), strict=True))
    assert kept == (name in module.frozen_modules), name


def test_grids_are_refused():
  with pytest.raises(ValueError, match=r'multi_grid=\(2, 2, 4\) is for ResNets'):
    make_segmenter(num_classes=3, backbone='efficientnet_lite1', multi_grid=(2, 2, 4))


if __name__ == '__main__':
  compare_devices()
