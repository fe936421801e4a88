"""What a run might be set to, from an inspection of its data: each value with its reason.

Rules of thumb, one function each, in the order in which they build on each other. None of them has
been tuned on images that are reported; that crops need context, and how long training goes on to
gain, was seen on others (docs/experiments.md).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from gta_jax.data.files import DataError
from gta_jax.data.inspection import Inspection

# A structure is fine where a stride of 4, DeepLab's, leaves it less than two cells.
_FINE = 8.0
_LEAST_SIDE = 192  # an image is not scaled below this
# A crop should show so much of an image's shorter side, but no structure become thinner than that.
_CONTEXT, _THREAD = 1 / 3, 1.5
_CPU_CROP, _GPU_CROP = 96, 320
_STEPS = {'dinov2': 14}  # sides of crops are multiples of a transformer's patches
_STEP = 32  # and else of this
_VIEWS = 120  # how often training shows each labelled pixel
_CPU_STEPS, _GPU_STEPS = (1000, 4800), (4000, 20_000)  # the fewest and the most
_IMBALANCE = 3.0  # the most frequent class to the rarest, from where classes are weighted
_TOLD = 0.5  # by colour alone, from where strong views must not change it
Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Machine:
  """gpu: whether steps run on one or a faster device. devices: how many share a batch."""

  gpu: bool = False
  devices: int = 1


@dataclasses.dataclass(frozen=True)
class Proposal:
  """field: of the config, dotted. value: as it stands there. reason: one line."""

  field: str
  value: Any
  reason: str

  def __str__(self) -> str:
    return f'{self.field}={shown(self.value)}: {self.reason}'


def shown(value: Any) -> str:
  """A value in a line of text."""
  return str(value).replace(', ', ',') if isinstance(value, tuple) else str(value)


def propose(found: Inspection, machine: Machine, given: Values) -> list[Proposal]:
  """A value for every field of RULES.

  Args:
    found: about the data.
    machine: that trains.
    given: fields that are set, dotted, None for those that are not: other proposals follow them.
      published.FIELD beside method.FIELD: what the method is published with.
  """
  values, proposals = dict(given), []
  for field, rule in RULES.items():
    value, reason = rule(found, machine, values)
    proposals.append(Proposal(field, value, reason))
    if values.get(field) is None:
      values[field] = value
  return proposals


def image_scale(found: Inspection, machine: Machine, values: Values) -> tuple[float, str]:
  """1, or halved: twice at most while nothing becomes fine, and for the context of a crop."""
  side, (width, name) = min(found.size), thinnest(found)
  crop = values.get('data.crop') or (_GPU_CROP if machine.gpu else _CPU_CROP)
  scale, reason = 1.0, ''
  while True:
    smaller = scale / 2
    if scale > 0.25 and side * smaller >= _LEAST_SIDE and width * smaller >= _FINE:
      reason = (f'the thinnest class, {name}, is {width:.3g} pixels wide and stays above '
                f'{_FINE:.0f} at this scale')
    elif crop < _CONTEXT * side * scale and width * smaller >= _THREAD:
      reason = (f'a crop of {crop} pixels then shows {crop / (side * smaller):.0%} of the shorter '
                f'side; the thinnest class, {name}, is {width * smaller:.2g} pixels wide there')
    else:
      break
    scale = smaller
  if reason:
    return scale, reason
  return 1.0, (f'smaller, the thinnest class, {name} ({width:.3g} pixels wide), would fall below '
               f'{_FINE:.0f} pixels, or images below {_LEAST_SIDE}')


def decoder(found: Inspection, machine: Machine, values: Values) -> tuple[str, str]:
  """Up to the image's own resolution where a class is fine; a transformer has its own."""
  del machine
  if _family(values) in _STEPS:
    return 'dpt', f'the one that {_family(values)} is published with'
  width, name = thinnest(found)
  width *= values['data.image_scale']
  if width < _FINE:
    return 'unet', (f'{name} is {width:.3g} pixels wide where the network sees it, under two cells '
                    'of the stride of 4 at which deeplab decides')
  return 'deeplab', (f'the thinnest class, {name}, is {width:.3g} pixels wide where the network '
                     'sees it, two cells of stride 4 or more')


def output_stride(found: Inspection, machine: Machine, values: Values) -> tuple[int, str]:
  """16; details are the decoder's."""
  del found, machine, values
  return 16, 'of the coarsest features; a stride of 8 would cost four times as much there'


def crop(found: Inspection, machine: Machine, values: Values) -> tuple[int, str]:
  """What the machine affords, or the largest multiple of 32 or of a patch within the images."""
  side = min(found.size) * values['data.image_scale']
  step = _STEPS.get(_family(values), _STEP)
  most = (_GPU_CROP if machine.gpu else _CPU_CROP) // step * step
  fitting = max(step, step * math.floor(side / step))
  if side < step:
    return step, f'the least, {step}; the images end at {side:.0f} pixels, and the rest is padding'
  if fitting < most:
    return fitting, (f'the largest multiple of {step} in the images, {side:.0f} pixels where they '
                     'end')
  return most, f'what a step on a {"GPU" if machine.gpu else "CPU"} affords'


def labelled_batch(found: Inspection, machine: Machine, values: Values) -> tuple[int, str]:
  """8; 4 on a CPU with pretrained features."""
  size = _batch(machine, values)
  return size, (f'{size} crops a step' + (
    f' from {found.images["labelled"]} labelled images, several of some'
    if size > found.images['labelled'] else ''))


def unlabelled_batch(found: Inspection, machine: Machine, values: Values) -> tuple[int, str]:
  """As many as labelled ones."""
  del found, machine
  return values['train.labelled_batch'], 'as many as labelled ones'


def epochs(found: Inspection, machine: Machine, values: Values) -> tuple[float, str]:
  """So many steps that every labelled pixel is seen often, within what the machine affords."""
  sides = [side * values['data.image_scale'] for side in found.size]
  pixels = found.images['labelled'] * math.prod(sides)
  # Of a crop that is larger than an image, the rest is padding.
  seen = values['train.labelled_batch'] * math.prod(min(values['data.crop'], s) for s in sides)
  fewest, most = _GPU_STEPS if machine.gpu else _CPU_STEPS
  wanted = _VIEWS * pixels / seen
  steps = round(min(max(wanted, fewest), most))
  images = found.images['unlabelled'] or found.images['labelled']
  epoch = max(1, images // values['train.unlabelled_batch'])
  passes = float(f'{steps / epoch:.3g}')
  views = steps / wanted * _VIEWS
  return passes, (f'about {steps} steps, in which each labelled pixel is seen {views:.0f} times '
                  f'({fewest} to {most} steps on such a machine)')


def evaluate_epochs(found: Inspection, machine: Machine, values: Values) -> tuple[float, str]:
  """Five evaluations a run."""
  del found, machine
  return float(f'{values["train.epochs"] / 5:.3g}'), 'five evaluations a run'


def warmup_epochs(found: Inspection, machine: Machine, values: Values) -> tuple[float, str]:
  """Half of the run."""
  del found, machine
  if values.get('method.name') == 'sup_only':
    reason = 'the teacher is the student for half of the run, then its average'
  else:
    reason = 'half of the run on labels alone'
  return float(f'{values["train.epochs"] / 2:.3g}'), reason


def class_weights(
  found: Inspection, machine: Machine, values: Values
) -> tuple[tuple[float, ...], str]:
  """1 / sqrt(frequency) where classes are out of balance."""
  del machine
  if values.get('loss.ohem_threshold') is not None:
    return (), 'hard pixels are chosen instead (loss.ohem_threshold)'
  if values.get('method.supervised') == 'bootstrapped':
    return (), 'improbable pixels are chosen instead (method.supervised)'
  (most, common), (least, rare) = max(found.present), min(found.present)
  how = f'{common} has {most / least:.0f} times the labelled pixels of {rare}'
  if most <= _IMBALANCE * least:
    return (), f'{how}, which needs none'
  return root_weights(found.shares), f'1/sqrt(frequency), as {how}'


def jitter(found: Inspection, machine: Machine, values: Values) -> tuple[float, str]:
  """As published, or 0 where a change of colours would change what tells the classes apart."""
  del machine
  return _of_strong_views(found, values.get('published.jitter', 0.0))


def greyscale(found: Inspection, machine: Machine, values: Values) -> tuple[float, str]:
  """As `jitter`."""
  del machine
  return _of_strong_views(found, values.get('published.greyscale', 0.0))


def _of_strong_views(found: Inspection, published: float) -> tuple[float, str]:
  if found.told_by_colour is None:
    return published, 'as published; too few masks say how far colour alone tells the classes'
  if found.told_by_colour < _TOLD:
    return published, f'as published: {found.told}'
  return 0.0, f'{found.told}: strong views must not change it'


def root_weights(shares: list[float]) -> tuple[float, ...]:
  """Weights of classes, so that rare ones count more and a labelled pixel counts one on average.

      w_k = f_k^(-1/2) / sum_j f_j^(1/2)

  Args:
    shares: f, of each class among the labelled pixels.
  Returns: w to four digits; a class that never occurs has the largest weight of the others.
  """
  total = sum(share**0.5 for share in shares)
  weights = [1 / (share**0.5 * total) if share else 0.0 for share in shares]
  return tuple(float(f'{weight or max(weights):.4g}') for weight in weights)


def thinnest(found: Inspection) -> tuple[float, str]:
  """Width in pixels and name of the class with the thinnest structures.

  Raises: DataError where no labelled mask that was looked at holds a label.
  """
  measured = [(width, name) for width, name in zip(found.widths, found.classes, strict=True)
              if width is not None]
  if not measured:
    looked_at, count = found.looked_at['labelled masks']
    raise DataError(
      f'None of the {looked_at} labelled masks looked at, of {count}, holds a label, so that '
      'nothing follows from them; take empty masks out of the list, or set every field that '
      'configs/folder.py leaves to the data.')
  return min(measured)


def _family(values: Values) -> str:
  """The backbone's name up to its size."""
  return values.get('model.backbone', 'resnet').partition('_')[0]


def _batch(machine: Machine, values: Values) -> int:
  pretrained = _family(values) != 'resnet'
  size = 4 if pretrained and not machine.gpu else 8
  return -(-size // machine.devices) * machine.devices


RULES: dict[str, Callable[[Inspection, Machine, Values], tuple[Any, str]]] = {
  'data.image_scale': image_scale,
  'model.decoder': decoder,
  'model.output_stride': output_stride,
  'data.crop': crop,
  'train.labelled_batch': labelled_batch,
  'train.unlabelled_batch': unlabelled_batch,
  'train.epochs': epochs,
  'train.evaluate_epochs': evaluate_epochs,
  'method.warmup_epochs': warmup_epochs,
  'loss.class_weights': class_weights,
  'method.jitter': jitter,
  'method.greyscale': greyscale,
}
