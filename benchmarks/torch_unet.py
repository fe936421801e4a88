"""EfficientNet-Lite0 with U-Net's decoder in PyTorch, the twin of configs/folder.py's `small`.

Parameter names are those that `convert` expects: of the torch package efficientnet-lite-pytorch
after `encoder.`, of the JAX modules after `decoder.`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_networks import resize

# (repeats, kernel, stride, expansion, channels, stage) of each group of blocks.
GROUPS = ((1, 3, 1, 1, 16, 1), (2, 3, 2, 6, 24, 1), (2, 5, 2, 6, 40, 2), (3, 3, 2, 6, 80, 3),
          (3, 5, 1, 6, 112, 3), (4, 5, 2, 6, 192, 4), (1, 3, 1, 6, 320, 4))
SKIPS = (0, 1, 2, 4, 6)  # groups whose output the decoder reads, strides 2 to 32
STEM = 32
WIDTHS = (96, 64, 48, 32, 24)  # of the decoder, from coarse to fine


class Same(nn.Conv2d):
  """A convolution with TensorFlow's padding: an odd pixel is added at the end."""

  def __init__(self, inputs: int, outputs: int, size: int, *, stride=1, dilation=1, groups=1):
    super().__init__(inputs, outputs, size, stride, 0, dilation, groups, bias=False)

  def forward(self, x: Tensor) -> Tensor:
    padding = []
    for side, size, stride, dilation in zip(
        x.shape[:1:-1], self.kernel_size, self.stride, self.dilation, strict=True):
      total = max((-(-side // stride) - 1) * stride + (size - 1) * dilation + 1 - side, 0)
      padding += [total // 2, total - total // 2]
    if padding[::2] == padding[1::2]:  # what a convolution can do itself
      return F.conv2d(x, self.weight, None, self.stride, (padding[2], padding[0]), self.dilation,
                      self.groups)
    return super().forward(F.pad(x, padding))


def _norm(channels: int) -> nn.BatchNorm2d:
  return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
  """Expand, filter each channel, project; what came in is added where the shape stays."""

  def __init__(self, inputs: int, outputs: int, size: int, *, stride: int, expansion: int,
               dilation: int):
    super().__init__()
    inner = inputs * expansion
    if expansion != 1:
      self._expand_conv, self._bn0 = Same(inputs, inner, 1), _norm(inner)
    self._depthwise_conv = Same(inner, inner, size, stride=stride, dilation=dilation, groups=inner)
    self._bn1 = _norm(inner)
    self._project_conv, self._bn2 = Same(inner, outputs, 1), _norm(outputs)
    self.expands, self.adds = expansion != 1, stride == 1 and inputs == outputs

  def forward(self, x: Tensor) -> Tensor:
    y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
    y = F.relu6(self._bn1(self._depthwise_conv(y)))
    y = self._bn2(self._project_conv(y))
    return x + y if self.adds else y


class EfficientNetLite(nn.Module):
  """The backbone's features of stride 2, 4, 8, 16 and 32, as far as the output stride goes."""

  def __init__(self, output_stride: int, frozen_stages: int):
    super().__init__()
    self._conv_stem, self._bn0 = Same(3, STEM, 3, stride=2), _norm(STEM)
    blocks, inputs, reached, dilation = [], STEM, 2, 1
    self.ends, self.channels = [], []
    self.frozen = [self._conv_stem, self._bn0] if frozen_stages else []
    for group, (repeats, size, stride, expansion, outputs, stage) in enumerate(GROUPS):
      first = dilation
      if reached * stride > output_stride:
        stride, dilation = 1, dilation * stride  # noqa: PLW2901
      reached *= stride
      for index in range(repeats):
        blocks.append(Block(
          inputs, outputs, size, stride=1 if index else stride, expansion=expansion,
          dilation=dilation if index else first))
        inputs = outputs
        if stage <= frozen_stages:
          self.frozen.append(blocks[-1])
      if group in SKIPS:
        self.ends.append(len(blocks) - 1)
        self.channels.append(outputs)
    self._blocks = nn.ModuleList(blocks)
    for module in self.frozen:
      module.requires_grad_(requires_grad=False)

  def train(self, mode: bool = True) -> 'EfficientNetLite':
    """As of any module, but frozen BatchNorm keeps its running statistics."""
    super().train(mode)
    for module in self.frozen:
      module.eval()
    return self

  def forward(self, x: Tensor) -> list[Tensor]:
    x, outputs = F.relu6(self._bn0(self._conv_stem(x))), []
    for number, block in enumerate(self._blocks):
      x = block(x)
      if number in self.ends:
        outputs.append(x)
    return outputs


class TwoConvs(nn.Module):
  """Two times 3x3 convolution, BatchNorm, ReLU."""

  def __init__(self, inputs: int, outputs: int):
    super().__init__()
    self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
    self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)

  def forward(self, x: Tensor) -> Tensor:
    return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class UnetDecoder(nn.Module):
  """Five times {upsample, join the next finer features, two 3x3}, and the classifier."""

  def __init__(self, channels: list[int], num_classes: int, dropout: float):
    super().__init__()
    features = WIDTHS[-1]
    self.full = TwoConvs(3, features)
    skips = [*channels[-2::-1], features]
    inputs = [channels[-1], *WIDTHS[:-1]]
    self.up = nn.ModuleList(
      TwoConvs(a + b, width) for a, b, width in zip(inputs, skips, WIDTHS, strict=True))
    self.classifier = nn.Sequential(
      nn.Conv2d(features, features, 3, 1, 1), nn.BatchNorm2d(features), nn.ReLU(inplace=True),
      nn.Dropout2d(dropout), nn.Conv2d(features, num_classes, 1))

  def forward(self, images: Tensor, pyramid: list[Tensor]) -> Tensor:
    *skips, x = self.full(images), *pyramid
    for convs, skip in zip(self.up, reversed(skips), strict=True):
      x = convs(torch.cat([resize(x, skip.shape[-2:]), skip], dim=1))
    return self.classifier(x)


class LiteUnet(nn.Module):
  """EfficientNet-Lite0 and U-Net's decoder.

  Args:
    output_stride: 8, 16 or 32, of the last stage.
    frozen_stages: the stem and so many of the four stages do not learn.
    dropout: probability of dropping a whole channel in the classifier.
  Call: [B,3,H,W] normalised -> (logits [B,K,H,W], None).
  """

  def __init__(self, *, num_classes: int, output_stride: int = 16, frozen_stages: int = 1,
               dropout: float = 0.1):
    super().__init__()
    self.encoder = EfficientNetLite(output_stride, frozen_stages)
    self.decoder = UnetDecoder(self.encoder.channels, num_classes, dropout)

  def forward(self, x: Tensor) -> tuple[Tensor, None]:
    logits = self.decoder(x, self.encoder(x))
    return logits.float() if logits.dtype == torch.bfloat16 else logits, None
