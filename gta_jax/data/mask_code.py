"""How the masks of a data set tell classes: by ids, by colours, or by grey levels."""

import dataclasses
from collections.abc import Collection, Sequence

import cv2
import numpy as np

from gta_jax.data.files import IGNORE, DataError

Colour = tuple[int, int, int]
IGNORE_COLOUR = (224, 224, 192)  # of 255 where masks are coloured: that of VOC's borders
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class MaskCode:
  """How masks tell classes.

  Attributes:
    palette: RGB of each class.
    chosen: whether the user gave every class its colour.
    ignored: RGB of pixels without a label.
    greys: (grey value, id) of each class where grey masks hold grey levels of classes instead of
      ids, as 0 and 255 of two classes; see ids_of_greys.
  """

  palette: tuple[Colour, ...] = ()
  chosen: bool = False
  ignored: tuple[Colour, ...] = ()
  greys: tuple[tuple[int, int], ...] = ()

  @property
  def distinct(self) -> bool:
    """Whether every class has a colour of the user's that no other one has."""
    return self.chosen and len({*self.palette}) == len(self.palette)

  @property
  def all_grey(self) -> bool:
    """Whether these colours are grey levels."""
    return self.distinct and all(len({*colour}) == 1 for colour in self.palette)

  @property
  def may_have_greys(self) -> bool:
    """Whether ids_of_greys has an answer for some values."""
    return len(self.palette) == 2 or self.all_grey


def class_of_white(palette: Sequence[Colour]) -> int:
  """Which of two classes, of these colours, white stands for in black and white masks: the white
  one, or that beside the black one, else the second."""
  if WHITE in palette:
    return palette.index(WHITE)
  return 1 - palette.index(BLACK) if BLACK in palette else 1


def ids_of_greys(values: Collection[int], code: MaskCode) -> dict[int, int]:
  """Grey value -> id, where grey masks hold grey levels of classes instead of ids; else nothing.

  That is where two classes have masks of 0 and 255 alone, and where every class has a grey of the
  user's, and the masks hold these alone and some that is no id.

  Args:
    values: all that the masks hold.
    code: of the data set.
  """
  held, count = {*values}, len(code.palette)
  if count == 2 and held == {0, IGNORE}:
    white = class_of_white(code.palette)
    return {0: 1 - white, IGNORE: white}
  if not code.all_grey:
    return {}
  void = {colour[0]: IGNORE for colour in code.ignored if len({*colour}) == 1}
  greys = {IGNORE: IGNORE, **void, **{colour[0]: id for id, colour in enumerate(code.palette)}}
  return greys if held <= greys.keys() and not held <= {*range(count), IGNORE} else {}


def ids_of_colours(code: MaskCode) -> dict[int, int]:
  """Packed colour -> id, for coloured masks. Raises DataError where one colour has two meanings."""
  ids: dict[int, int] = {}
  for id, colour in [*enumerate(code.palette), *((IGNORE, colour) for colour in code.ignored)]:
    if ids.setdefault(int(pack(np.array(colour))), id) != id:
      raise DataError(
        f'The masks are coloured, but classes.txt gives the colour {" ".join(map(str, colour))} to '
        'two classes (one without a colour has VOC\'s of its line), or to one and "ignore"; give '
        'each its own.')
  return ids


def values_in(values: np.ndarray) -> list[int]:
  """Which values occur in uint8 [H,W], in ascending order."""
  # Several times as fast as np.bincount, which also makes a copy with eight bytes a value.
  counts = cv2.calcHist([values], [0], None, [IGNORE + 1], [0, IGNORE + 1])
  return np.flatnonzero(counts).tolist()


def unknown_ids(mask: np.ndarray, num_classes: int) -> list[int]:
  """Which values of a mask, uint8 [H,W], are neither ids of so many classes nor IGNORE."""
  return [value for value in values_in(mask) if num_classes <= value < IGNORE]


def pack(colours: np.ndarray) -> np.ndarray:
  """int32 [...] of RGB [...,3] uint8: 65536 R + 256 G + B."""
  packed = colours[..., 0].astype(np.int32) << 8  # Shifts, as a product takes five times as long.
  packed |= colours[..., 1]
  packed <<= 8
  packed |= colours[..., 2]
  return packed


def unpack(packed: int) -> Colour:
  """The colour that `pack` made a number of."""
  return packed >> 16, packed >> 8 & 255, packed & 255
