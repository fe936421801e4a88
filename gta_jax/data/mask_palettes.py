"""What the palettes of masks say about the classes of their indices."""

import contextlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from gta_jax.data.files import IGNORE, DataError, open_image
from gta_jax.data.mask_code import BLACK, WHITE, MaskCode, values_in
from gta_jax.data.sources import of_each


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
  return {i: classes.get(tuple(palette[3 * i:3 * i + 3])) for i in values_in(indices)
          if i != IGNORE}


def _in_order(palette: Sequence[int], code: MaskCode) -> bool:
  """Whether a palette begins with the colours of the classes, and has none of ignored pixels after
  them, so that no index of a class has another one's colour."""
  colours = [tuple(palette[i:i + 3]) for i in range(0, min(len(palette), 3 * IGNORE), 3)]
  count = len(code.palette)
  return (tuple(colours[:count]) == code.palette[:len(colours)]
          and not {*colours[count:]} & {*code.ignored})


def of_palettes(paths: Sequence[str], code: MaskCode) -> list[str]:
  """What palettes of these masks say against taking their indices for classes, as a sentence.

  Programs that number colours as they come give an index another class in every mask. Where the
  user gave every class a colour of its own, a palette that has them all tells the classes
  (classes_of_palette); one that has some of them, elsewhere than their ids are, is doubtful.
  """
  palettes = {path: palette for path, palette in zip(paths, of_each(_palette, paths), strict=True)
              if palette}
  return _of_chosen_colours(palettes, code) if code.distinct else _of_changing_palettes(palettes)


def _palette(path: str) -> tuple[int, ...]:
  """Of a mask, from its header; nothing where it has none or is damaged, which `check` names."""
  # Pillow raises almost anything on damaged bytes.
  with contextlib.suppress(Exception), open_image(path, path) as image:
    if image.mode == 'P' and image.palette:
      alone = Image.new('P', (1, 1))  # getpalette of the image itself would decode its pixels.
      mode, table = image.palette.getdata()
      alone.putpalette(table, mode)
      return tuple(alone.getpalette() or ())
  return ()


def _indices(path: str) -> np.ndarray:
  """uint8 [H,W] of a mask; void alone where it is damaged."""
  with contextlib.suppress(Exception), open_image(path, path) as image:
    return np.asarray(image)
  return np.full((1, 1), IGNORE, np.uint8)


def _of_chosen_colours(palettes: dict[str, tuple[int, ...]], code: MaskCode) -> list[str]:
  def said(path: str) -> list[str]:
    indices = _indices(path)
    if classes_of_palette(indices, palettes[path], code):
      return []
    return [f'{_otherwise_coloured(path, i, id)}, but not every index that of a class of its '
            'own. Indices are taken for classes: if colours tell them, save the masks as RGB '
            'and give every colour a line in classes.txt.'
            for i, id in _named(indices, palettes[path], code).items() if id not in (None, i)]

  doubtful = [path for path, palette in palettes.items() if not _in_order(palette, code)]
  return [one for notes in of_each(said, doubtful) for one in notes][:1]


def _of_changing_palettes(palettes: dict[str, tuple[int, ...]]) -> list[str]:
  longest = max(palettes.values(), key=len, default=())
  if all(longest[:len(one)] == one for one in palettes.values()):
    return []  # Nothing had to be decoded.
  first: dict[int, tuple[tuple[int, ...], str]] = {}
  used = of_each(lambda path: values_in(_indices(path)), palettes)
  for (path, palette), held in zip(palettes.items(), used, strict=True):
    for i in held:
      colour = palette[3 * i:3 * i + 3]
      before, other = first.setdefault(i, (colour, path))
      if before != colour and i != IGNORE:
        return [f'Palette index {i} has the colour {before} in {other} and {colour} in {path}. '
                'Indices are taken for classes: if colours tell them, give every class its own '
                'in classes.txt, or save the masks as RGB.']
  return []


def check_indices(indices: np.ndarray, palette: Sequence[int], path: str, code: MaskCode) -> None:
  """Refuses indices whose colours are those of other classes than the indices name."""
  check_black_and_white(palette, path, code)
  if _in_order(palette, code):
    return  # Nothing has to be counted, as in most data sets.
  for i, id in classes_of_palette(indices, palette, code).items():
    if id != i:
      raise DataError(
        f'{_otherwise_coloured(path, i, id)}; save it as RGB, let classes.txt have the colours in '
        'the order of the palette, or let --mode convert write the masks anew.')


def check_black_and_white(palette: Sequence[int], path: str, code: MaskCode) -> None:
  """Refuses a palette that begins with white and black where two classes have no colours.

  Indices would say the opposite of what white stands for in masks of greys or bits.
  """
  if not code.chosen and len(code.palette) == 2 and tuple(palette[:6]) == WHITE + BLACK:
    raise DataError(
      f'{path} has a palette of which index 0 is white and 1 black, while white stands for the '
      'second of two classes elsewhere. Give both their colours in classes.txt: "255 255 255" for '
      'the first and "0 0 0" for the second if the indices are right, else the other way round, '
      'and let --mode convert write the masks anew.')


def _otherwise_coloured(path: str, index: int, id: int) -> str:
  meant = 'ignored pixels' if id == IGNORE else f'class {id}'
  return f'{path} has a palette that gives index {index} the colour of {meant} in classes.txt'
