"""What the values of masks mean that a conversion reads: ids, other grey values, or colours."""

import dataclasses
from collections.abc import Mapping, Sequence, Set

import numpy as np

from gta_jax.data.class_list import Classes
from gta_jax.data.convert_masks import Item, Source
from gta_jax.data.files import IGNORE, DataError
from gta_jax.data.masks import class_of_white, pack, unpack
from gta_jax.data.sources import default_palette

_VOID = (224, 224, 192)  # VOC's border
_BLACK, _WHITE = 0, 0xffffff  # packed
_MANY = 64  # grey values: sets of more classes have a list of them, smoothed masks have more values


@dataclasses.dataclass(frozen=True)
class Numbering:
  """What the values of masks mean. greys: value -> id where it is another; colours: code -> id."""

  classes: Classes
  greys: Mapping[int, int]
  colours: Mapping[int, int]
  notes: tuple[str, ...]

  def ids(self, item: Item) -> np.ndarray:
    """uint8 [H,W]. Raises DataError for a value without a class."""
    assert item.mask
    mask = item.mask()
    if mask.ndim == 2:
      table = np.arange(IGNORE + 1, dtype=np.uint8)
      table[[*self.greys]] = [*self.greys.values()]
      ids = table[mask]
      unknown = np.setdiff1d(ids, [*range(len(self.classes.names)), IGNORE])
      if unknown.size:
        raise DataError(f'it holds {unknown.tolist()[:10]}, but there are '
                        f'{len(self.classes.names)} classes; add them to classes.txt, or renumber')
      return ids
    values, inverse = np.unique(pack(mask), return_inverse=True)
    unknown = [value for value in values.tolist() if value not in self.colours]
    if unknown:
      colours = ', '.join(str(unpack(value)) for value in unknown[:5])
      raise DataError(f'it holds the colours {colours}, which are no class; add them to '
                      'classes.txt')
    table = np.array([self.colours[value] for value in values.tolist()], np.uint8)
    return table[inverse].reshape(mask.shape[:2])


def number(found: Source, masked: Sequence[Item], left_out: dict[str, str]) -> Numbering:
  """Finds out what the masks' values mean, by reading all where no list of classes says it.

  Grey values that are not 0, 1, 2, ... become ids in ascending order then, 255 staying void.

  Args:
    found: the source.
    masked: its items with masks.
    left_out: masks that cannot be read are added.
  Raises: DataError for masks without a sensible set of classes.
  """
  classes, notes, grey, codes = found.classes, list(found.notes), set(), set()
  # Without a list of classes, or with one of two.
  if classes is None or (len(classes.names) == 2 and not found.numbered):
    grey, codes = _read_values(masked, left_out)
  greys = {}
  if grey == {0, IGNORE}:
    white = class_of_white(classes.code.palette, chosen=classes.chosen) if classes else 1
    greys = {0: 1 - white, IGNORE: white}
    notes.append(f'Masks hold 0 and 255 alone: 255 was taken for class {white}, not for void.')
  if classes is None:
    if codes:
      classes = _classes_of_colours(codes)
    else:
      values = [0, 1] if greys else sorted(grey - {IGNORE}) or [0]
      notes += _check_values(values)
      if values != [*range(len(values))]:
        greys = {value: id for id, value in enumerate(values)}
      classes = Classes(tuple(f'class{value}' for value in values), default_palette(len(values)))
    notes.append('No list of classes was found: rename those in classes.txt.')
  ids = dict(zip(pack(classes.palette).tolist(), range(len(classes.names)), strict=True))
  if codes == {_BLACK, _WHITE} and len(classes.names) == 2 and not codes <= ids.keys():
    ids = {_BLACK: 0, _WHITE: 1}
    notes.append('Masks are black and white: white was taken for class 1.')
  void = dict.fromkeys(pack(np.array((_VOID, *classes.ignored))).tolist(), IGNORE)
  return Numbering(classes, greys, {**void, **ids}, tuple(notes))


def _read_values(masked: Sequence[Item], left_out: dict[str, str]) -> tuple[set[int], set[int]]:
  """The grey values and the codes of colours in all masks."""
  grey, codes = set(), set()
  for item in masked:
    assert item.mask
    try:
      mask = item.mask()
    except DataError as error:
      left_out[f'mask of {item.id}'] = str(error)
      continue
    (grey if mask.ndim == 2 else codes).update(
      np.unique(mask if mask.ndim == 2 else pack(mask)).tolist())
    if len(codes) > 4 * IGNORE:
      raise DataError(f'The masks hold more than {4 * IGNORE} colours; they are no class '
                      'colours, or were saved as JPEG. Export them as PNG.')
  return grey, codes


def _classes_of_colours(codes: Set[int]) -> Classes:
  known = sorted(codes - {int(pack(np.array(_VOID)))})
  if not 0 < len(known) <= IGNORE:
    raise DataError(f'The masks hold {len(known)} classes; 1 to {IGNORE} are possible. Give '
                    '--classes, a classes.txt with the colours.')
  return Classes(tuple(f'class{i}' for i in range(len(known))),
                 np.array([unpack(code) for code in known], np.uint8))


def _check_values(values: Sequence[int]) -> list[str]:
  """What is odd about grey values as classes, as sentences.

  Args:
    values: in ascending order, without 255.
  Raises: DataError for many that leave some out, as smoothing does, and for all there are.
  """
  consecutive = [*values] == [*range(len(values))]
  if len(values) > _MANY and (len(values) == IGNORE or not consecutive):
    raise DataError(
      f'The masks hold {len(values)} grey values besides 255; they are no class ids, or were saved '
      'as JPEG or resized with smoothing. Export them as PNG without it, or give --classes, a '
      'classes.txt with a name for every id.')
  if len(values) > _MANY:
    return [f'The masks hold {len(values)} grey values, and each is a class now. Should there be '
            'fewer, the masks were saved as JPEG or resized with smoothing: export them anew.']
  if consecutive:
    return []
  became = ', '.join(f'{value} became {id}' for id, value in enumerate(values))
  return [f'The grey values of the masks are not 0, 1, 2, ...: as ids {became}; 255 is void.']
