"""What the values of masks mean that a conversion reads: ids, other grey values, or colours."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np

from gta_jax.data.class_list import Classes
from gta_jax.data.convert_masks import Item, Source
from gta_jax.data.files import IGNORE, DataError
from gta_jax.data.mask_code import (
  IGNORE_COLOUR,
  class_of_white,
  ids_of_colours,
  ids_of_greys,
  pack,
  unknown_ids,
  unpack,
)
from gta_jax.data.sources import default_palette

_BLACK, _WHITE = 0, 0xffffff  # packed
_MUCH_VOID = 0.01  # of the pixels
_MANY = 64  # values: sets of more classes have a list of them, smoothed masks have more values


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
      if unknown := unknown_ids(ids, len(self.classes.names)):
        raise DataError(f'it holds {unknown[:10]}, but there are '
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
  classes, notes = found.classes, list(found.notes)
  held = _Values({}, set()) if found.numbered else _read_values(masked, left_out)
  grey, codes = {*held.grey}, held.colours
  if grey and codes and grey <= {0, IGNORE} and codes <= {_BLACK, _WHITE}:
    # Masks of one bit, or saved as RGB, beside grey ones: what some hold, the others mean as well.
    grey |= {code & IGNORE for code in codes}
    codes = {_BLACK if value == 0 else _WHITE for value in grey}
  elif classes is None and codes and grey - {IGNORE}:
    raise DataError(
      f'Some masks hold colours, such as {unpack(min(codes))}, and others grey values or palette '
      f'indices, such as {min(grey - {IGNORE})}, and nothing says which of them are one class; '
      'give --classes, a classes.txt with a line "name R G B" for every grey value, from 0 on, or '
      'write all masks in one way.')
  greys = {}
  if classes is None:
    if codes:
      classes = _classes_of_colours(codes)
    else:
      values = [0, 1] if grey == {0, IGNORE} else sorted(grey - {IGNORE}) or [0]
      notes += _check_values(values, held)
      if values != [*range(len(values))]:
        greys = {value: id for id, value in enumerate(values)}
      classes = Classes(tuple(f'class{value}' for value in values), default_palette(len(values)))
    notes.append('No list of classes was found: rename those in classes.txt.')
  names = classes.names
  if not greys:
    greys, more = _told_by_greys(grey, classes)
    notes += more
  notes += _check_white(held)
  ids = ids_of_colours(classes.code) if codes else {}
  if codes == {_BLACK, _WHITE} and len(names) == 2 and not codes <= ids.keys():
    white = class_of_white(classes.code.palette)
    ids |= {_BLACK: 1 - white, _WHITE: white}
    notes.append(f'Masks are black and white: white was taken for {names[white]!r}.')
  void = {int(pack(np.array(IGNORE_COLOUR))): IGNORE}
  return Numbering(classes, greys, void | ids, tuple(notes))


def _told_by_greys(grey: Set[int], classes: Classes) -> tuple[dict[int, int], list[str]]:
  """Grey value -> id where these are no ids of the classes, and that as a sentence."""
  names = classes.names
  if told := ids_of_greys(grey, classes.code):
    return told, ['Masks hold grey levels of classes, not ids: ' + ', '.join(
      f'{value} was taken for {names[told[value]]!r}' for value in sorted(grey)
      if told[value] != IGNORE) + '.']
  if len(names) in grey and grey - {IGNORE} <= {*range(1, len(names) + 1)}:
    return {id + 1: id for id in range(len(names))}, [
      f'The ids of the masks begin at 1: 1 was taken for {names[0]!r}, the first class.']
  if {0, len(names)} <= grey - {IGNORE}:
    raise DataError(
      f'The masks hold 0 and {len(names)}, while {len(names)} classes are listed: write a line for '
      f'what 0 is before {names[0]!r}, such as background, or one for {len(names)} at the end; '
      f'if 0 is void, the values as grey levels: "{names[0]} 1 1 1" to "{names[-1]} {len(names)} '
      f'{len(names)} {len(names)}", and "ignore 0 0 0".')
  return {}, []


class _Values(NamedTuple):
  """What masks hold.

  grey: value -> pixels, of grey ones.
  colours: packed, of the others.
  together: values of grey ones that occur in one mask.
  """

  grey: dict[int, int]
  colours: set[int]
  together: Set[frozenset[int]] = frozenset()


def _read_values(masked: Sequence[Item], left_out: dict[str, str]) -> _Values:
  """What all masks hold; those that cannot be read are added to `left_out`."""
  grey, colours, together = collections.Counter[int](), set(), set()
  for item in masked:
    assert item.mask
    try:
      mask = item.mask()
    except DataError as error:
      left_out[f'mask of {item.id}'] = str(error)
      continue
    if mask.ndim == 2:
      values, counts = np.unique(mask, return_counts=True)
      grey.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
      together.add(frozenset(values.tolist()))
    else:
      colours.update(np.unique(pack(mask)).tolist())
    if len(colours) > 4 * IGNORE:
      raise DataError(f'The masks hold more than {4 * IGNORE} colours; they are no class '
                      'colours, or were saved as JPEG. Export them as PNG.')
  return _Values(dict(grey), colours, together)


def _classes_of_colours(codes: Set[int]) -> Classes:
  known = sorted(codes - {int(pack(np.array(IGNORE_COLOUR)))})
  if not 0 < len(known) <= _MANY:
    raise DataError(
      f'The masks hold {len(known)} colours besides that of void; without a list of classes 1 to '
      f'{_MANY} are possible, as smoothed masks have more. Export them without smoothing, or give '
      '--classes, a classes.txt with the colours.')
  return Classes(tuple(f'class{i}' for i in range(len(known))),
                 np.array([unpack(code) for code in known], np.uint8))


def _check_white(held: _Values) -> list[str]:
  """That 1 and 255 may be one class, as a sentence."""
  if not {1, IGNORE} <= {*held.grey} <= {0, 1, IGNORE} or any(
      {1, IGNORE} <= values for values in held.together):
    return []
  return ['No mask holds both 1 and 255, but some the one and some the other. 255 is void: if it '
          'is class 1 there, as in black and white masks, write all in one way.']


def _check_values(values: Sequence[int], held: _Values) -> list[str]:
  """What is odd about grey values as classes, as sentences.

  Args:
    values: in ascending order, without 255.
    held: all.
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
  void = held.grey.get(IGNORE, 0) / sum(held.grey.values())
  notes = [f'The grey values of the masks are not 0, 1, 2, ...: as ids {became}; 255 is void.']
  if void > _MUCH_VOID:
    notes.append(f'255, void, has {100 * void:.2g} % of the pixels. If it is a class, give '
                 '--classes a file with a line for each: its name and three times its grey value, '
                 'as in "film 255 255 255".')
  return notes
