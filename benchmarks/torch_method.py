"""The parts of the PyTorch twin's steps: options, state, losses, pseudo-labels, updates."""


import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_networks import group_of, resize

IGNORE = 255
ALL_KEYS = ('backbone', 'decoder', 'classifier', 'auxiliary')
Batch = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Options:
  """What a step may be told.

  rate, power, total_steps: poly schedule rate * (1 - t / total_steps) ** power, t from 0.
  decoder_multiplier: of the rate of everything but the backbone.
  warmup_steps, epoch_steps: when the second phase starts; the release hands the student over at
    each of its first epoch_steps steps.
  ema_decay: alpha of Eq. 9 and 12, constant (the release's steps have their own ramp).
  drop_fraction, smoothing: share of pixels without a label, tau of Eq. 6.
  transmitted: keys of Eq. 9.
  teacher_statistics: 'ema' averages BatchNorm's running statistics like the parameters, 'copy'
    takes the student's, 'own' leaves them; only the release's teacher moves its own.
  device_groups: how many parts of the batch have a threshold of their own (release only).
  auxiliary_weight: of the auxiliary head's loss on labelled images.
  mean, std: RGB, of images in [0,1].
  autocast: a half-precision type for the networks, or None.
  channels_last: memory layout of networks and images.
  """

  total_steps: int
  rate: float = 0.001
  power: float = 0.9
  decoder_multiplier: float = 10.0
  momentum: float = 0.9
  weight_decay: float = 1e-4
  warmup_steps: int = 0
  epoch_steps: int = 1
  ema_decay: float = 0.99
  drop_fraction: float = 0.2
  smoothing: float = 1.0
  transmitted: tuple[str, ...] = ('backbone', 'decoder')
  teacher_statistics: str = 'ema'
  device_groups: int = 1
  auxiliary_weight: float = 0.4
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)
  std: tuple[float, ...] = (0.229, 0.224, 0.225)
  autocast: torch.dtype | None = None
  channels_last: bool = False


@dataclasses.dataclass
class State:
  """Three networks, their optimisers (the teacher's serves the warm-up only) and the step."""

  teacher: nn.Module
  student: nn.Module
  assistant: nn.Module
  teacher_opt: torch.optim.SGD
  student_opt: torch.optim.SGD
  assistant_opt: torch.optim.SGD
  step: int = 0


def make_state(make_network: Callable[[], nn.Module], options: Options, *, device='cpu',
               dtype=torch.float32, compiled=False, fused=False) -> State:
  """Three equal networks and their optimisers; every parameter name must suit `group_of`."""
  networks = [make_network() for _ in range(3)]
  layout = torch.channels_last if options.channels_last else torch.contiguous_format
  for network in networks:
    network.load_state_dict(networks[0].state_dict())
    network.to(device=device, dtype=dtype, memory_format=layout).train()
    if compiled:
      network.compile()
  return State(*networks, *(_make_sgd(network, options, fused) for network in networks))


def _make_sgd(network: nn.Module, options: Options, fused: bool) -> torch.optim.SGD:
  backbone = {'params': parameters(network, ('backbone',)), 'multiplier': 1.0}
  others = {'params': parameters(network, ALL_KEYS[1:]), 'multiplier': options.decoder_multiplier}
  return torch.optim.SGD([backbone, others], options.rate, momentum=options.momentum,
                         weight_decay=options.weight_decay, fused=fused)


def parameters(network: nn.Module, keys: tuple[str, ...]) -> list[nn.Parameter]:
  """The parameters under the given keys, in the network's order."""
  return [p for name, p in network.named_parameters() if group_of(name) in keys]


def poly_rate(step: int, options: Options) -> float:
  """The poly schedule's rate of the backbone at a step."""
  return options.rate * (1 - step / options.total_steps) ** options.power


# Networks ---------------------------------------------------------------------------------------


def normalize(images: Tensor, network: nn.Module, options: Options) -> Tensor:
  """uint8 [B,H,W,3] -> [B,3,H,W] in the network's type."""
  weight = next(network.parameters())
  mean, std = weight.new_tensor(options.mean), weight.new_tensor(options.std)
  x = ((images.to(weight.dtype) / 255 - mean) / std).permute(0, 3, 1, 2)
  return x if options.channels_last else x.contiguous()


def forward(network: nn.Module, x: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
  """Normalised [B,3,H,W] -> main and auxiliary logits [B,K,H,W] at the images' resolution."""
  # A context of its own: autocast's cache must not hand weights cast without gradients onwards.
  with torch.autocast(x.device.type, options.autocast, enabled=options.autocast is not None):
    main, auxiliary = network(x)
  size = x.shape[-2:]
  return resize(main, size), None if auxiliary is None else resize(auxiliary, size)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
  """Mean over pixels that are not ignored; zero where there are none."""
  total = F.cross_entropy(logits, label.long(), ignore_index=IGNORE, reduction='sum')
  return total / (label != IGNORE).sum().clamp(min=1)


def labelled_loss(logits, label: Tensor, options: Options) -> Tensor:
  """Eq. 10, with the auxiliary head's share where there is one."""
  main, auxiliary = logits
  loss = cross_entropy(main, label)
  if auxiliary is not None:
    loss = loss + options.auxiliary_weight * cross_entropy(auxiliary, label)
  return loss


# Pseudo-labels ----------------------------------------------------------------------------------


def keep_confident(confidence: Tensor, valid: Tensor, drop_fraction: float) -> Tensor:
  """Eq. 2's indicator: drops floor(drop_fraction * n) of the n valid pixels, and ties with them."""
  ordered = confidence.masked_fill(~valid, torch.inf).flatten().sort().values
  # The count stays on the device: reading it would make the host wait.
  dropped = (valid.sum().double() * drop_fraction).floor().long()
  threshold = ordered.gather(0, (dropped - 1).clamp(min=0)[None])
  return valid & ((confidence > threshold) | (dropped == 0))


@torch.no_grad()
def pseudo_labels(state: State, x: Tensor, batch: Batch, options: Options) -> tuple[Tensor, ...]:
  """Eq. 1-2 with the teacher's running statistics: (label, confidence, valid), each [B,H,W]."""
  state.teacher.eval()
  logits, _ = forward(state.teacher, x, options)
  state.teacher.train()
  confidence, label = logits.softmax(1).max(1)
  valid = batch.get('valid')
  return label, confidence, torch.ones_like(label, dtype=torch.bool) if valid is None else valid


def weighted_loss(logits: Tensor, label: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
  """Eq. 7 divided by the number of kept pixels."""
  losses = F.cross_entropy(logits, label.masked_fill(~kept, IGNORE), ignore_index=IGNORE,
                           reduction='none')
  return (weight * losses).sum() / kept.sum().clamp(min=1)


def confidence_weights(confidence: Tensor, kept: Tensor, smoothing: float) -> Tensor:
  """Eq. 6, mean one over kept pixels."""
  weight = (confidence + smoothing) * kept
  return weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny) * kept.sum()


def cutmix(x: Tensor, boxes: Tensor | None) -> Tensor:
  """[B,...,H,W] with each box filled from the batch's next image."""
  if boxes is None:
    return x
  height, width = x.shape[-2:]
  rows = torch.arange(height, device=x.device)[None, :, None]
  columns = torch.arange(width, device=x.device)[None, None, :]
  top, left, bottom, right = boxes.to(x.device)[:, :, None, None].unbind(1)
  inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
  return torch.where(inside[:, None] if x.dim() == 4 else inside, x.roll(-1, 0), x)


# Updates ----------------------------------------------------------------------------------------


def descend(optimizer: torch.optim.SGD, loss: Tensor, rate: float) -> None:
  """One SGD step; decay is added to the gradient before momentum."""
  for group in optimizer.param_groups:
    group['lr'] = rate * group['multiplier']
  optimizer.zero_grad(set_to_none=True)
  loss.backward()
  optimizer.step()


@torch.no_grad()
def average(target: nn.Module, source: nn.Module, decay: float, keys=ALL_KEYS, *,
            rebind: bool = False) -> None:
  """target := decay * target + (1 - decay) * source on the keys' parameters.

  rebind: write into new memory, so that a target aliased to something else lets go of it.
  """
  old, new = parameters(target, keys), parameters(source, keys)
  if not rebind:
    torch._foreach_lerp_(old, new, 1 - decay)
    return
  for parameter, value in zip(old, torch._foreach_lerp(old, new, 1 - decay), strict=True):
    parameter.data = value


@torch.no_grad()
def follow_statistics(teacher: nn.Module, student: nn.Module, options: Options) -> None:
  """Moves the teacher's running statistics as options.teacher_statistics says."""
  pairs = [(t, s) for t, s in zip(teacher.buffers(), student.buffers(), strict=True)
           if t.is_floating_point()]
  decay = {'ema': options.ema_decay, 'copy': 0.0, 'own': 1.0}[options.teacher_statistics]
  if pairs and decay < 1:
    torch._foreach_lerp_([t for t, _ in pairs], [s for _, s in pairs], 1 - decay)


def alias(target: nn.Module, source: nn.Module) -> None:
  """Makes each of target's parameters read and write source's memory, as the release does.

  The Parameter objects (with their gradients and momentum) stay apart.
  """
  for old, new in zip(target.parameters(), source.parameters(), strict=True):
    old.data = new.data
