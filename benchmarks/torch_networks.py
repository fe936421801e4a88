"""DeepLabV3+ in PyTorch, the twin of the JAX network.

Parameter names are those of the published state dict (encoder.*, decoder.*, auxor.aux.*), so that
weights seeded by name, or published ones, load without a table of names.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def scaled(channels: int, width: float) -> int:
  """The number of channels at a width multiplier: the nearest multiple of eight, at least eight."""
  return max(8, round(channels * width / 8) * 8)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
  """Bilinear resizing of [B,C,h,w] to `size` with aligned corners."""
  return F.interpolate(x, size=size, mode='bilinear', align_corners=True)


def group_of(name: str) -> str:
  """The paper's part that a parameter belongs to: backbone, decoder, classifier or auxiliary."""
  if name.startswith('encoder.'):
    return 'backbone'
  if name.startswith('decoder.'):
    return 'classifier' if name.startswith('decoder.classifier.') else 'decoder'
  if name.startswith('auxor.'):
    return 'auxiliary'
  raise ValueError(f'parameter {name!r} starts with none of encoder., decoder., auxor.; rename it.')


def _conv(inputs: int, outputs: int, size: int, *, stride=1, dilation=1, bias=False) -> nn.Conv2d:
  padding = dilation * (size // 2)
  return nn.Conv2d(inputs, outputs, size, stride, padding, dilation, bias=bias)


def _conv_bn_relu(inputs: int, outputs: int, size: int, *, dilation=1, bias=False) -> list:
  conv = _conv(inputs, outputs, size, dilation=dilation, bias=bias)
  return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class Block(nn.Module):
  """A residual block: two 3x3 convolutions, or (bottleneck) 1x1, 3x3, 1x1 with four-fold width.

  The stride lies on the (first) 3x3 convolution; the dilation on every 3x3 one.
  """

  def __init__(self, inputs: int, planes: int, *, stride: int, dilation: int, bottleneck: bool):
    super().__init__()
    outputs = planes * 4 if bottleneck else planes
    if bottleneck:
      shapes = [(inputs, planes, 1), (planes, planes, 3), (planes, outputs, 1)]
    else:
      shapes = [(inputs, planes, 3), (planes, planes, 3)]
    strided = 1 if bottleneck else 0
    for i, (a, b, size) in enumerate(shapes):
      conv = _conv(a, b, size, stride=stride if i == strided else 1, dilation=dilation)
      self.add_module(f'conv{i + 1}', conv)
      self.add_module(f'bn{i + 1}', nn.BatchNorm2d(b))
    self.depth = len(shapes)
    self.downsample = None
    if stride != 1 or inputs != outputs:
      shortcut = _conv(inputs, outputs, 1, stride=stride)
      self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

  def forward(self, x: Tensor) -> Tensor:
    y = x
    for i in range(1, self.depth + 1):
      y = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(y))
      y = F.relu(y) if i < self.depth else y
    return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
  """ResNet 10, 18, 50 or 101 that returns its four stages."""

  def __init__(self, depth: int, *, stem: str, output_stride: int, multi_grid, width: float):
    super().__init__()
    channels = scaled(64, width)
    if stem == 'deep':
      self.channels = scaled(128, width)
      self.conv1 = nn.Sequential(
        _conv(3, channels, 3, stride=2), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
        _conv(channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
        _conv(channels, self.channels, 3),
      )
    else:
      self.channels = channels
      self.conv1 = _conv(3, channels, 7, stride=2)
    self.bn1 = nn.BatchNorm2d(self.channels)
    self.dilation = 1
    self.stage_channels = []
    for i, blocks in enumerate(BLOCKS[depth]):
      # Strides beyond the output stride turn into dilation.
      dilate = i > 0 and 4 * 2 ** i > output_stride
      stride = 1 if i == 0 or dilate else 2
      grid = (multi_grid or (1,) * blocks) if i == 3 else (1,) * blocks
      stage = self._stage(scaled(64 * 2 ** i, width), grid[:blocks], stride=stride, dilate=dilate,
                          bottleneck=depth >= 50)
      self.add_module(f'layer{i + 1}', stage)

  def _stage(self, planes: int, grid, *, stride: int, dilate: bool,
             bottleneck: bool) -> nn.Sequential:
    # The first block still has the previous stage's dilation (times the grid).
    first, self.dilation = self.dilation, self.dilation * (2 if dilate else 1)
    layers = []
    for j, factor in enumerate(grid):
      dilation = (first if j == 0 else self.dilation) * factor
      layers.append(Block(self.channels, planes, stride=stride if j == 0 else 1,
                          dilation=dilation, bottleneck=bottleneck))
      self.channels = planes * 4 if bottleneck else planes
    self.stage_channels.append(self.channels)
    return nn.Sequential(*layers)

  def forward(self, x: Tensor) -> list[Tensor]:
    x = F.relu(self.bn1(self.conv1(x)))
    x = F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True)
    stages = []
    for i in range(1, 5):
      x = getattr(self, f'layer{i}')(x)
      stages.append(x)
    return stages


class ASPP(nn.Module):
  """Image pooling, a 1x1 and three dilated 3x3 branches, concatenated in this order."""

  def __init__(self, inputs: int, outputs: int, rates):
    super().__init__()
    self.conv1 = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv_bn_relu(inputs, outputs, 1))
    self.conv2 = nn.Sequential(*_conv_bn_relu(inputs, outputs, 1))
    for i, rate in enumerate(rates):
      branch = nn.Sequential(*_conv_bn_relu(inputs, outputs, 3, dilation=rate))
      self.add_module(f'conv{i + 3}', branch)

  def forward(self, x: Tensor) -> Tensor:
    pooled = self.conv1(x).expand(-1, -1, *x.shape[-2:])
    branches = [self.conv2(x), self.conv3(x), self.conv4(x), self.conv5(x)]
    return torch.cat([pooled, *branches], dim=1)


class Decoder(nn.Module):
  """ASPP, 3x3 fusion, low-level projection and the three-convolution classifier."""

  def __init__(self, low: int, high: int, *, num_classes: int, width: float, rates, dropout: float,
               representation: bool):
    super().__init__()
    inner = scaled(256, width)
    self.low_conv = nn.Sequential(*_conv_bn_relu(low, inner, 1, bias=True))
    self.aspp = ASPP(high, inner, rates)
    self.head = nn.Sequential(*_conv_bn_relu(5 * inner, inner, 3), nn.Dropout2d(dropout))
    self.classifier = self._predictor(inner, num_classes, dropout)
    if representation:  # Held only so that a published state dict loads; no output uses it.
      self.representation = self._predictor(inner, inner, dropout)

  @staticmethod
  def _predictor(inner: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
      *_conv_bn_relu(2 * inner, inner, 3, bias=True), nn.Dropout2d(dropout),
      *_conv_bn_relu(inner, inner, 3, bias=True), nn.Dropout2d(dropout),
      nn.Conv2d(inner, outputs, 1),
    )

  def forward(self, stages: list[Tensor]) -> Tensor:
    low = self.low_conv(stages[0])
    high = resize(self.head(self.aspp(stages[3])), low.shape[-2:])
    return self.classifier(torch.cat([low, high], dim=1))


class AuxiliaryHead(nn.Module):
  """A second predictor on stage 3."""

  def __init__(self, inputs: int, *, num_classes: int, width: float, dropout: float):
    super().__init__()
    inner = scaled(256, width)
    self.aux = nn.Sequential(*_conv_bn_relu(inputs, inner, 3, bias=True), nn.Dropout2d(dropout),
                             nn.Conv2d(inner, num_classes, 1))

  def forward(self, x: Tensor) -> Tensor:
    return self.aux(x)


class DeepLab(nn.Module):
  """DeepLabV3+ on a dilated ResNet.

  Args:
    depth: 10 or 18 (basic blocks), 50 or 101 (bottlenecks).
    stem: 'deep' (three 3x3 convolutions) or 'torchvision' (one 7x7).
    output_stride: 8, 16 or 32, of stage 4.
    multi_grid: factors of the dilations in stage 4, at least one for each block; None for ones.
    width: multiplies every number of channels (see `scaled`); a bottleneck's output has four
      times its scaled planes.
    dropout: probability of dropping a whole channel, in the fusion, classifier and auxiliary.
    auxiliary: whether there is a head on stage 3.
    representation: whether to hold the published, unused, representation head.
  Call: [B,3,H,W] normalised -> (logits [B,K,h,w], auxiliary logits [B,K,h',w'] or None), float32
    or wider; h, w as in stage 1.
  """

  def __init__(self, *, num_classes: int, depth: int = 101, stem: str = 'deep',
               output_stride: int = 8, multi_grid=(2, 2, 4), width: float = 1.0,
               aspp_rates=(12, 24, 36), dropout: float = 0.1, auxiliary: bool = False,
               representation: bool = False):
    super().__init__()
    if depth not in BLOCKS:
      raise ValueError(f'depth={depth} is not known; use one of {sorted(BLOCKS)}.')
    self.encoder = ResNet(depth, stem=stem, output_stride=output_stride, multi_grid=multi_grid,
                          width=width)
    stages = self.encoder.stage_channels
    self.decoder = Decoder(stages[0], stages[3], num_classes=num_classes, width=width,
                           rates=aspp_rates, dropout=dropout, representation=representation)
    self.auxor = AuxiliaryHead(
      stages[2], num_classes=num_classes, width=width, dropout=dropout) if auxiliary else None

  def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
    stages = self.encoder(x)
    logits = self.decoder(stages)
    auxiliary = None if self.auxor is None else self.auxor(stages[2])
    return _wide(logits), None if auxiliary is None else _wide(auxiliary)


def _wide(logits: Tensor) -> Tensor:
  """Logits in float32 at least: softmax and losses are never taken in half precision."""
  return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
