"""What the palettes of masks say about the classes of their indices."""

import contextlib
from collections.abc import Sequence

import numpy as np

from gta_jax.data.files import IGNORE, DataError, open_image
from gta_jax.data.mask_code import MaskCode


def classes_of_palette(
  indices: np.ndarray, palette: Sequence[int], code: MaskCode
) -> dict[int, int]:
  """Index -> the class that its colour names, where the palette tells the mask's classes apart.

  Programs that save a coloured mask with a palette number the colours as they like.

  Args:
    indices: uint8 [H,W].
    palette: R, G, B of index 0, then of index 1, ...
    code: of the data set.
  Returns: that of every index below 255 in the mask; nothing where a colour is no class's, or two
    are one's, or not every class has a colour of the user's and of its own.
  """
  if not code.distinct:
    return {}
  named = _named(indices, palette, code)
  found = {i: id for i, id in named.items() if id is not None}
  return found if len({*found.values()}) == len(named) else {}


def _named(
  indices: np.ndarray, palette: Sequence[int], code: MaskCode
) -> dict[int, int | None]:
  """Index below 255 in the mask -> the class of its colour, None where it is no class's."""
  classes: dict[tuple[int, ...], int] = {
    **dict.fromkeys(code.ignored, IGNORE), **{colour: id for id, colour in enumerate(code.palette)}}
  used = [int(i) for i in np.flatnonzero(np.bincount(indices.ravel())) if i != IGNORE]
  return {i: classes.get(tuple(palette[3 * i:3 * i + 3])) for i in used}


def of_palettes(paths: Sequence[str], code: MaskCode) -> list[str]:
  """What palettes of these masks say against taking their indices for classes, as a sentence.

  Programs that number colours as they come give an index another class in every mask. Where the
  user gave every class a colour of its own, a palette that has them all tells the classes
  (classes_of_palette); one that has some of them, elsewhere than their ids are, is doubtful.
  """
  palettes: dict[str, tuple[int, ...]] = {}
  for path in paths:
    # Pillow raises almost anything on damaged bytes; `check` names them, here and below.
    with contextlib.suppress(Exception), open_image(path, path) as image:
      if image.mode == 'P':
        palettes[path] = tuple(image.getpalette() or ())
  return _of_chosen_colours(palettes, code) if code.distinct else _of_changing_palettes(palettes)


def _of_chosen_colours(palettes: dict[str, tuple[int, ...]], code: MaskCode) -> list[str]:
  for path, palette in palettes.items():
    with contextlib.suppress(Exception), open_image(path, path) as image:
      indices = np.asarray(image)
      if classes_of_palette(indices, palette, code):
        continue
      for i, id in _named(indices, palette, code).items():
        if id not in (None, i):
          return [f'{_otherwise_coloured(path, i, id)}, but not every index that of a class of its '
                  'own. Indices are taken for classes: if colours tell them, save the masks as RGB '
                  'and give every colour a line in classes.txt.']
  return []


def _of_changing_palettes(palettes: dict[str, tuple[int, ...]]) -> list[str]:
  longest = max(palettes.values(), key=len, default=())
  if all(longest[:len(one)] == one for one in palettes.values()):
    return []  # Nothing had to be decoded.
  first: dict[int, tuple[tuple[int, ...], str]] = {}
  for path, palette in palettes.items():
    with contextlib.suppress(Exception), open_image(path, path) as image:
      for i in map(int, np.unique(np.asarray(image))):
        colour = palette[3 * i:3 * i + 3]
        before, other = first.setdefault(i, (colour, path))
        if before != colour and i != IGNORE:
          return [f'Palette index {i} has the colour {before} in {other} and {colour} in {path}. '
                  'Indices are taken for classes: if colours tell them, give every class its own '
                  'in classes.txt, or save the masks as RGB.']
  return []


def check_indices(indices: np.ndarray, palette: Sequence[int], path: str, code: MaskCode) -> None:
  """Refuses indices whose colours are those of other classes than the indices name."""
  for i, id in classes_of_palette(indices, palette, code).items():
    if id != i:
      raise DataError(
        f'{_otherwise_coloured(path, i, id)}; save it as RGB, let classes.txt have the colours in '
        'the order of the palette, or let --mode convert write the masks anew.')


def _otherwise_coloured(path: str, index: int, id: int) -> str:
  meant = 'ignored pixels' if id == IGNORE else f'class {id}'
  return f'{path} has a palette that gives index {index} the colour of {meant} in classes.txt'
