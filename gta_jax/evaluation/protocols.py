"""How whole images are scored: evaluation protocols as data. No jax."""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from gta_jax.data.files import IGNORE

MULTISCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
KNOWN = ('whole', 'crop', 'crop_padding0', 'sliding')
_NAME = re.compile(r'(?:whole|(crop|sliding)(\d*))(_padding0)?((?:\+flip|\+multiscale)*)')


class View(NamedTuple):
  """What a network is shown of an image.

  crop: side in pixels of the centre crop, filled up with the mean colour; 0 for the whole image.
  scale: factor on the sides of image or crop.
  """

  crop: int = 0
  scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Protocol:
  """One way to label a whole image and to score the labels, always at the mask's resolution.

  Attributes:
    name: as make_protocols reads it.
    crop: side of the centre crop that is scored, in the network's pixels (after image_scale); 0
      for the whole image. A crop larger than the image is filled up on all sides, the odd pixel at
      the bottom and at the right.
    padding_label: truth of what fills up a crop. 255 leaves it out. The published VOC figures are
      taken with 0: images of at most 500 pixels a side fill a crop of 513 only in part, and the
      rest counts as background. Void pixels of the mask are never counted.
    window: side of the sliding windows; 0 for the image at once. Windows step by two thirds of
      their side, the last one of a row or column is shifted inside, and where several overlap
      their *logits* are averaged, as in the Cityscapes evaluation of GTA-Seg's and U2PL's code
      (UniMatch's sums probabilities). An image smaller than the window lies in the middle of the
      mean colour.
    scales: factors at which the image is shown.
    flip: whether it is also shown mirrored.

  With several scales or flip the *probabilities* at the mask's resolution are averaged. The
  published code can sum logits over scales instead, but reports one scale; with probabilities each
  view has the same say.
  """

  name: str = 'whole'
  crop: int = 0
  padding_label: int = IGNORE
  window: int = 0
  scales: tuple[float, ...] = (1.0,)
  flip: bool = False

  @property
  def views(self) -> tuple[View, ...]:
    """One for each scale."""
    return tuple(View(self.crop, scale) for scale in self.scales)

  @property
  def sides(self) -> tuple[int, ...]:
    """In pixels, of what the network is shown where that does not follow from an image's size."""
    cropped = [max(1, round(self.crop * scale)) for scale in self.scales] if self.crop else []
    return (*cropped, *([self.window] if self.window else []))


WHOLE = Protocol()


def make_protocols(names: Sequence[str], *, crop: int) -> tuple[Protocol, ...]:
  """Reads names: whole, crop, crop_padding0 or sliding, then any of +flip and +multiscale.

  A number after crop or sliding is the side in pixels, as in crop513_padding0 and sliding769;
  without it the side is that of training crops.

  >>> make_protocols(['sliding769+flip'], crop=321)[0].window
  769

  Args:
    names: at least one, no two the same; several may be one text, with commas between them.
    crop: side of training crops in pixels.
  Raises: ValueError for an unknown or repeated name.
  """
  names = [name for text in names for name in text.split(',')]
  if not names or len(set(names)) < len(names):
    raise ValueError(f'protocols={",".join(names)} is empty or repeats a name; name each once.')
  return tuple(_make(name, crop) for name in names)


def _make(name: str, crop: int) -> Protocol:
  found = _NAME.fullmatch(name)
  kind, side, padding, more = found.groups() if found else (None, '', None, '')
  side = int(side or crop)
  if not found or not side or (padding and kind != 'crop') or more.count('+') > len(set(
      more.split('+')[1:])):
    raise ValueError(
      f'protocol {name!r} is unknown; use some of: {", ".join(KNOWN)}, with a side in pixels if '
      'need be (crop513_padding0, sliding769), and with +flip or +multiscale behind it.')
  return Protocol(
    name, crop=side if kind == 'crop' else 0, padding_label=0 if padding else IGNORE,
    window=side if kind == 'sliding' else 0, scales=MULTISCALE if '+multiscale' in more else (1.0,),
    flip='+flip' in more)
