"""ResNets of basic blocks against torch's, in the layout of torchvision's and timm's weights."""


import jax
import numpy as np
import pytest

from gta_jax.models.pretrained import convert
from gta_jax.models.segmenter import make_segmenter

torch = pytest.importorskip('torch')
networks = pytest.importorskip('torch_networks')


class TorchvisionResNet(torch.nn.Module):
  """A ResNet of basic blocks as torchvision and timm lay it out; returns its four stages."""

  def __init__(self, blocks):
    super().__init__()
    self.conv1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    self.bn1 = torch.nn.BatchNorm2d(64)
    channels = 64
    for stage, count in enumerate(blocks):
      layers = []
      for index in range(count):
        stride = 2 if stage and not index else 1
        layers.append(networks.Block(channels, 64 * 2**stage, stride=stride, dilation=1,
                                     bottleneck=False))
        channels = 64 * 2**stage
      self.add_module(f'layer{stage + 1}', torch.nn.Sequential(*layers))
    self.fc = torch.nn.Linear(512, 1000)

  def forward(self, x):
    x = torch.nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
    stages = []
    for number in range(1, 5):
      x = getattr(self, f'layer{number}')(x)
      stages.append(x)
    return stages


@pytest.mark.parametrize('depth, blocks', [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3))])
def test_stages_with_its_weights_are_those_of_torch(depth, blocks):
  torch.manual_seed(0)
  reference = TorchvisionResNet(blocks).eval()
  for norm in (m for m in reference.modules() if isinstance(m, torch.nn.BatchNorm2d)):
    torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    torch.nn.init.normal_(norm.running_mean)
  network = make_segmenter(num_classes=3, depth=depth, stem='torchvision', output_stride=32)
  variables = jax.eval_shape(lambda: network.init(jax.random.key(0), (64, 64)))
  variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
  state = {name: value.numpy() for name, value in reference.state_dict().items()}
  variables, report = convert(state, variables, scope='backbone')
  assert {'fc.weight', 'fc.bias'} < set(report.ignored)
  images = np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)
  stages, _ = jax.jit(network.encode)(variables, images)
  with torch.no_grad():
    expected = reference(torch.from_numpy(images).permute(0, 3, 1, 2))
    expected = [stage.permute(0, 2, 3, 1).numpy() for stage in expected]
  for a, b in zip(stages, expected, strict=True):
    assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)
