"""The DPT head against torch, and its transposed convolutions."""

import jax
import numpy as np
import pytest

from gta_jax.models.dpt import Unfold
from gta_jax.models.pretrained import convert, to_state_dict
from tests.models.tiny_dinov2 import FEATURES, WIDTH, make_dinov2

torch = pytest.importorskip('torch')
NEVER = 'head.scratch.refinenet4.resConfUnit1.'


def torch_head(state, taps):
  """UniMatch V2's head on taps [B,C,h,w], written from its specification: low-resolution logits."""
  functional = torch.nn.functional

  def conv(name, x, **options):
    return functional.conv2d(x, state[f'{name}.weight'], state.get(f'{name}.bias'), **options)

  def unit(name, x):
    inner = conv(f'{name}.conv1', functional.relu(x), padding=1)
    return x + conv(f'{name}.conv2', functional.relu(inner), padding=1)

  maps = [conv(f'head.projects.{i}', tap) for i, tap in enumerate(taps)]
  for i, stride in ((0, 4), (1, 2)):
    name = f'head.resize_layers.{i}'
    maps[i] = functional.conv_transpose2d(
      maps[i], state[f'{name}.weight'], state[f'{name}.bias'], stride=stride)
  maps[3] = conv('head.resize_layers.3', maps[3], stride=2, padding=1)
  maps = [conv(f'head.scratch.layer{i}_rn', x, padding=1) for i, x in enumerate(maps, start=1)]
  path = None
  for i in (4, 3, 2, 1):
    name, x = f'head.scratch.refinenet{i}', maps[i - 1]
    path = x if path is None else path + unit(f'{name}.resConfUnit1', x)
    path = unit(f'{name}.resConfUnit2', path)
    size = [2 * side for side in x.shape[2:]] if i == 1 else maps[i - 2].shape[2:]
    path = functional.interpolate(path, size, mode='bilinear', align_corners=True)
    path = conv(f'{name}.out_conv', path)
  inner = functional.relu(conv('head.scratch.output_conv.0', path, padding=1))
  return conv('head.scratch.output_conv.2', inner)


def seeded(network):
  variables = network.init(jax.random.key(0), (28, 28))
  leaves, tree = jax.tree.flatten(variables['params'])
  random = np.random.default_rng(2)
  return {**variables, 'params': tree.unflatten([
    x + 0.1 * random.standard_normal(x.shape, np.float32) for x in leaves])}


@pytest.mark.parametrize('grid', [(6, 7), (5, 3)])
def test_logits_are_those_of_torch(grid):
  network = make_dinov2()
  variables = seeded(network)
  random = np.random.default_rng(3)
  taps = [random.standard_normal((2, *grid, WIDTH), np.float32) for _ in range(4)]
  decoded, _ = jax.jit(network.decode)(variables, tuple(taps))
  state = {name: torch.tensor(value) for name, value in to_state_dict(variables)[0].items()}
  expected = torch_head(state, [torch.tensor(tap).permute(0, 3, 1, 2) for tap in taps])
  expected = expected.permute(0, 2, 3, 1).numpy()
  assert decoded.features.shape == (2, 8 * grid[0], 8 * grid[1], FEATURES)
  assert decoded.logits.main.shape == expected.shape
  assert np.linalg.norm(decoded.logits.main - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize('stride', [2, 4])
def test_unfolding_is_a_transposed_convolution(stride):
  module, x = Unfold(stride), np.random.default_rng(0).standard_normal((2, 3, 5, 6), np.float32)
  kernel = np.random.default_rng(1).standard_normal((stride, stride, 6, 6), np.float32)
  bias = np.arange(6, dtype=np.float32)
  found = module.apply({'params': {'kernel': kernel, 'bias': bias}}, x)
  expected = torch.nn.functional.conv_transpose2d(
    torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(kernel).permute(3, 2, 0, 1),
    torch.tensor(bias), stride=stride)
  np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_unimatch_v2_is_read_and_written():
  """Its names, with what it never uses; a class layer of other classes stays."""
  network = make_dinov2()
  variables = seeded(network)
  state, left_out = to_state_dict(variables)
  assert left_out == () and {name.split('.')[0] for name in state} == {'backbone', 'head'}
  unused = {f'{NEVER}conv1.bias': np.zeros(FEATURES, np.float32),
            'backbone.mask_token': np.zeros((1, WIDTH), np.float32)}
  shipped = {f'module.{name}': value for name, value in (state | unused).items()}
  zero = jax.tree.map(np.zeros_like, variables)
  back, report = convert(shipped, zero)
  assert set(report.ignored) == set(unused)
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back, variables)))
  others = make_dinov2(num_classes=5).init(jax.random.key(1), (28, 28))
  moved, report = convert(shipped, others, allow_other_classes=True)
  assert report.kept == ('head.scratch.output_conv.2.bias', 'head.scratch.output_conv.2.weight')
  assert np.array_equal(moved['params']['decoder']['projects_0']['kernel'],
                        variables['params']['decoder']['projects_0']['kernel'])
