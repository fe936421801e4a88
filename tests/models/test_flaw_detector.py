"""The flaw detector against the same layers in torch."""

import jax
import numpy as np
import pytest
import torch
from torch import nn

from gta_jax.models.flaw_detector import make_flaw_detector, map_size


class SplitNorm(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.half = channels // 2
    self.batch, self.instance = nn.BatchNorm2d(self.half), nn.InstanceNorm2d(self.half)

  def forward(self, x):
    return torch.cat([self.batch(x[:, :self.half]), self.instance(x[:, self.half:])], 1)


def torch_detector(variables, blocks, inputs):
  layers, channels = [], inputs
  plan = [(64, 2), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)][:2 * blocks - 1]
  for number, (width, stride) in enumerate([*plan, (1, 2)]):
    layer = variables['params'][f'conv_{number}' if number < len(plan) else 'classifier']
    convolution = nn.Conv2d(channels, width, 4, stride, 1)
    kernel = np.asarray(layer['kernel']).transpose(3, 2, 0, 1)
    convolution.weight.data = torch.from_numpy(kernel.copy())
    if number == len(plan):
      convolution.bias.data = torch.from_numpy(np.asarray(layer['bias']).copy())
    layers.append(convolution)
    if number < len(plan):
      layers += [SplitNorm(width), nn.LeakyReLU(0.2)]
    channels = width
  return nn.Sequential(*layers)


@pytest.mark.parametrize('blocks, side', [(1, 24), (2, 40)])
def test_agrees_with_torch(blocks, side):
  rng = np.random.default_rng(0)
  detector = make_flaw_detector(blocks=blocks)
  variables = detector.init(jax.random.key(0), (side, side), 2)
  images = rng.normal(size=(2, side, side, 3)).astype(np.float32)
  probabilities = rng.dirichlet(np.ones(2), (2, side, side)).astype(np.float32)
  flaw, statistics = jax.jit(detector.apply)(variables, images, probabilities)
  x = torch.from_numpy(np.concatenate([images, probabilities], -1).transpose(0, 3, 1, 2))
  with torch.no_grad():
    low = torch_detector(variables, blocks, 5)(x)
    expected = nn.functional.interpolate(low, (side, side), mode='bilinear', align_corners=True)
  assert low.shape[-1] == map_size(side, blocks)
  np.testing.assert_allclose(flaw, expected[:, 0], rtol=1e-4, atol=1e-5)
  assert statistics['norm_0']['batch']['mean'].shape == (32,)


def test_sizes_of_the_map():
  assert [map_size(pixels, 4) for pixels in (32, 64, 321, 513)] == [0, 1, 9, 15]
