"""classes.txt: names, colours, and colours of pixels without a label."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from gta_jax.data.files import IGNORE, DataError
from gta_jax.data.mask_code import Colour, MaskCode
from gta_jax.data.sources import default_palette

# Several numbers behind a name, as a colour that lacks one or is cut by commas.
_NO_COLOUR = re.compile(r'(?:[\s,;:]+[\d.]+){2,}$')
_NUMBERED = re.compile(r'(\d+)[\s,;:.]+\S|\S.*?[\s,;:.]+(\d+)$')
_MISPLACED = re.compile(r'\d+[\s,]+\d+[\s,]+\d+[\s,]+\S|.*#[0-9a-fA-F]{6}$')
_IGNORED = 'ignore'  # with a colour, that of pixels without a label; alone, a class as any other


@dataclasses.dataclass(frozen=True)
class Classes:
  """What classes.txt says.

  Attributes:
    names: the position is the id.
    palette: uint8 [K,3] RGB.
    ignored: colours of lines `ignore r g b`: of pixels without a label in coloured masks.
    chosen: whether every class has a colour of the file's; others have VOC's.
  """

  names: tuple[str, ...]
  palette: np.ndarray
  ignored: tuple[Colour, ...] = ()
  chosen: bool = False

  @property
  def code(self) -> MaskCode:
    return MaskCode(tuple(map(tuple, self.palette.tolist())), self.chosen, self.ignored)


def read_lines(path: pathlib.Path) -> list[tuple[int, str]]:
  """The lines that are not blank, as they are, with their numbers."""
  try:
    # Not splitlines, which also cuts at characters that file names may hold.
    lines = path.read_text(encoding='utf-8-sig').split('\n')
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror}); write it, one entry a '
                    'line.') from error
  except UnicodeDecodeError as error:
    raise DataError(f'{path} is not UTF-8 text; save it again as UTF-8.') from error
  return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def read_classes(path: pathlib.Path) -> Classes:
  """Reads lines `name`, `name r g b`, and `ignore r g b`, which is no class.

  Raises: DataError with the line that is wrong, or that would be a class and is not meant so.
  """
  named: list[tuple[str, Colour | None]] = []
  ignored: list[Colour] = []
  for number, text in read_lines(path):
    line = text.strip()
    name, colour = _split_colour(line)
    if colour and max(colour) > 255:
      raise DataError(f'{path}, line {number}: {line!r} has a colour above 255; use 0 to 255.')
    if line.startswith('#'):
      raise DataError(f'{path}, line {number}: {line!r} would be a class, as every line is one; '
                      'remove it.')
    if _MISPLACED.match(name):
      raise DataError(f'{path}, line {number}: {line!r} has a colour that is not read; write it '
                      'behind the name as three numbers, as in "road 128 64 128".')
    if colour is None and _NO_COLOUR.search(line):
      raise DataError(f'{path}, line {number}: {line!r} ends in numbers that are no colour; write '
                      'three of them, 0 to 255, with spaces between, as in "road 128 64 128".')
    if name == _IGNORED and colour:
      ignored.append(colour)
      continue
    if any(name == other for other, _ in named):
      raise DataError(f'{path}, line {number}: {name!r} is named twice; rename or remove one.')
    named.append((name, colour))
  if not 0 < len(named) < IGNORE + 1:
    raise DataError(f'{path} names {len(named)} classes; 1 to {IGNORE} are possible, one a line.')
  _refuse_numbers(path, [name for name, _ in named])
  palette = default_palette(len(named))
  for index, (_, colour) in enumerate(named):
    palette[index] = palette[index] if colour is None else colour
  return Classes(tuple(name for name, _ in named), palette, tuple(ignored),
                 all(colour is not None for _, colour in named))


def _refuse_numbers(path: pathlib.Path, names: Sequence[str]) -> None:
  """Refuses names that are numbered as lines, which need not be in the order of the numbers; those
  that end in ascending numbers, as "phase 1" and "phase 2", are names."""
  found = [_NUMBERED.match(name) for name in names]
  count = len(names)
  for group in (1, 2):
    numbers = [int(one[group]) for one in found if one and one[group]]
    counted = sorted(numbers) in ([*range(count)], [*range(1, count + 1)])
    if count > 1 and counted and (group == 1 or numbers != sorted(numbers)):
      raise DataError(f'{path} numbers its lines, as in {names[0]!r}; an id is the place in the '
                      'list, from 0 on: put the lines in the order of the ids and leave the '
                      'numbers out, or, if they are names, write them last, in ascending order.')


def write_classes(path: pathlib.Path, classes: Classes) -> None:
  """Writes what read_classes reads."""
  def line(name: str, colour: Sequence[int]) -> str:
    return ' '.join([name, *map(str, colour)])

  lines = [name if name == _IGNORED else line(name, colour)  # With a colour it were no class.
           for name, colour in zip(classes.names, classes.palette.tolist(), strict=True)]
  lines += [line(_IGNORED, colour) for colour in classes.ignored]
  path.write_text(''.join(f'{one}\n' for one in lines), encoding='utf-8')


def _split_colour(line: str) -> tuple[str, Colour | None]:
  name, *values = line.rsplit(maxsplit=3)
  if len(values) == 3 and all(value.isdecimal() for value in values):
    red, green, blue = map(int, values)
    return name, (red, green, blue)
  return line, None
