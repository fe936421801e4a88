"""Sources of a conversion whose masks are pictures: VOC's layout, and a pair of folders."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gta_jax.data.class_list import read_classes
from gta_jax.data.files import IGNORE, IMAGE_SUFFIXES, DataError, damaged, open_image
from gta_jax.data.listing import visible_files
from gta_jax.data.masks import Colour, mask_kind

_MASKS = ('.png', '.bmp', '.tif', '.tiff')
_IMAGE_FOLDERS = ('images', 'image', 'imgs', 'img', 'JPEGImages')
_MASK_FOLDERS = ('masks', 'mask', 'labels', 'annotations', 'SegmentationClass')
_VOID = (224, 224, 192)  # VOC's border


@dataclasses.dataclass(frozen=True)
class Item:
  """An image; mask: reads its mask, uint8 [H,W] of ids or [H,W,3] of colours, if it has one."""

  id: str
  image: Path
  mask: Callable[[], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set in another layout.

  Attributes:
    items: its images.
    lists: ids by list: train, val, test.
    left_out: file -> why.
    classes: names by id; None where the masks have to tell how many there are.
    palette: uint8 [K,3]; None for VOC's colours.
    notes: sentences about what was decided.
    ignored: colours of pixels without a label, besides VOC's.
  """

  items: Sequence[Item]
  lists: Mapping[str, Sequence[str]]
  left_out: Mapping[str, str]
  classes: tuple[str, ...] | None = None
  palette: np.ndarray | None = None
  notes: tuple[str, ...] = ()
  ignored: tuple[Colour, ...] = ()


@dataclasses.dataclass(frozen=True)
class Numbering:
  """What the values of masks mean. colours: code -> id; binary: 255 is class 1."""

  classes: tuple[str, ...]
  palette: np.ndarray | None
  colours: Mapping[int, int]
  binary: bool
  notes: tuple[str, ...]

  def ids(self, item: Item) -> np.ndarray:
    """uint8 [H,W]. Raises DataError for a value without a class."""
    assert item.mask
    mask = item.mask()
    if mask.ndim == 2:
      ids = np.where(mask == IGNORE, 1, mask).astype(np.uint8) if self.binary else mask
      unknown = np.setdiff1d(ids, [*range(len(self.classes)), IGNORE])
      if unknown.size:
        raise DataError(f'it holds {unknown.tolist()[:10]}, but there are {len(self.classes)} '
                        'classes; add them to classes.txt, or renumber')
      return ids
    values, inverse = np.unique(_codes(mask), return_inverse=True)
    unknown = [value for value in values.tolist() if value not in self.colours]
    if unknown:
      colours = ', '.join(str(_colour(value)) for value in unknown[:5])
      raise DataError(f'it holds the colours {colours}, which are no class; add them to '
                      'classes.txt')
    table = np.array([self.colours[value] for value in values.tolist()], np.uint8)
    return table[inverse].reshape(mask.shape[:2])


def number(found: Source, masked: Sequence[Item], left_out: dict[str, str]) -> Numbering:
  """Finds out what the masks' values mean, by reading all where no list of classes says it.

  Args:
    found: the source.
    masked: its items with masks.
    left_out: masks that cannot be read are added.
  Raises: DataError for masks without a sensible set of classes.
  """
  grey, codes = set(), set()
  if found.classes is None or found.palette is None or len(found.classes) == 2:
    for item in masked:
      assert item.mask
      try:
        mask = item.mask()
      except DataError as error:
        left_out[f'mask of {item.id}'] = str(error)
        continue
      (grey if mask.ndim == 2 else codes).update(
        np.unique(mask if mask.ndim == 2 else _codes(mask)).tolist())
      if len(codes) > 4 * IGNORE:
        raise DataError(f'The masks hold more than {4 * IGNORE} colours; they are no class '
                        'colours, or were saved as JPEG. Export them as PNG.')
  notes, binary = list(found.notes), grey == {0, IGNORE} and len(found.classes or 'ab') == 2
  if binary:
    notes.append('Masks hold 0 and 255 alone: 255 was taken for class 1, not for void.')
  names, palette = found.classes, found.palette
  if names is None:
    known = sorted(codes - {_code(_VOID)})
    count = len(known) if codes else 2 if binary else max(grey - {IGNORE}, default=0) + 1
    if not 0 < count <= IGNORE:
      raise DataError(f'The masks hold {count} classes; 1 to {IGNORE} are possible. Give '
                      '--classes, a classes.txt with the colours.')
    names = tuple(f'class{i}' for i in range(count))
    palette = np.array([_colour(code) for code in known], np.uint8) if codes else None
    notes.append('No list of classes was found: rename those in classes.txt.')
  colours = {_code(colour): i for i, colour in enumerate(() if palette is None else palette)}
  void = {_code(colour): IGNORE for colour in (_VOID, *found.ignored)}
  return Numbering(names, palette, {**void, **colours}, binary, tuple(notes))


def read_voc(root: Path) -> Source:
  """JPEGImages, SegmentationClass and, if there, ImageSets/Segmentation, of any classes.

  Colours of RGB masks come from labelmap.txt (name:r,g,b::, as CVAT writes it) or classes.txt.
  """
  images, masks = root / 'JPEGImages', root / 'SegmentationClass'
  for folder in (images, masks):
    if not folder.is_dir():
      raise DataError(f'{folder} does not exist; VOC\'s layout has JPEGImages and '
                      'SegmentationClass.')
  lists = {}
  for name in ('train', 'val', 'test'):
    path = root / 'ImageSets' / 'Segmentation' / f'{name}.txt'
    if path.is_file():
      lists[name] = [line.strip() for line in _text(path).splitlines() if line.strip()]
  return _pair(root, images, masks, lists)


def read_pair(root: Path) -> Source:
  """A folder of images and one of masks; ids below train/, val/ and test/ go to these lists."""
  def only(names: Sequence[str], kind: str) -> Path:
    found = [root / name for name in names if (root / name).is_dir()]
    if len(found) != 1:
      raise DataError(f'{root} has {len(found)} folders of {kind}; it needs one, with the name '
                      f'{" or ".join(names)}.')
    return found[0]

  source = _pair(root, only(_IMAGE_FOLDERS, 'images'), only(_MASK_FOLDERS, 'masks'), {})
  lists = {name: [item.id for item in source.items if item.id.split('/')[0] == name]
           for name in ('train', 'val', 'test')}
  return dataclasses.replace(source, lists={k: v for k, v in lists.items() if v})


def find(folder: Path, suffixes: Sequence[str], left_out: dict[str, str]) -> dict[str, Path]:
  """Path below the folder without its suffix -> file; others are left out with the reason."""
  found: dict[str, Path] = {}
  for path in visible_files(folder):
    id = path.relative_to(folder).with_suffix('').as_posix()
    if path.suffix.lower() not in suffixes:
      left_out[str(path)] = f'its suffix is none of {", ".join(suffixes)}'
    elif id in found:
      left_out[str(path)] = f'{found[id].name} has the same name'
    else:
      found[id] = path
  return found


def _pair(
  root: Path, images: Path, masks: Path, lists: Mapping[str, Sequence[str]]
) -> Source:
  left_out: dict[str, str] = {}
  found, of_masks = find(images, IMAGE_SUFFIXES, left_out), find(masks, _MASKS, left_out)
  items = []
  for id, path in found.items():
    mask = of_masks.pop(id, None) or of_masks.pop(f'{id}_mask', None)
    items.append(Item(id, path, mask and _reader(mask)))
  left_out |= {str(path): 'no image has its name' for path in of_masks.values()}
  for name, ids in lists.items():
    left_out |= {f'{id} of {name}.txt': 'no such image' for id in ids if id not in found}
  classes, palette, ignored = None, None, ()
  if (root / 'classes.txt').is_file():
    named = read_classes(root / 'classes.txt')
    classes, palette, ignored = named.names, named.palette, named.ignored
  elif (root / 'labelmap.txt').is_file():
    classes, palette = _read_labelmap(root / 'labelmap.txt')
  return Source(items, lists, left_out, classes, palette, ignored=ignored)


def _reader(path: Path) -> Callable[[], np.ndarray]:
  return lambda: read_mask(path)


def read_mask(path: Path) -> np.ndarray:
  """uint8 [H,W] of grey values or palette indices, or [H,W,3] of colours; DataError else."""
  with open_image(path, path) as image:
    if image.mode not in ('1', 'L', 'P', 'RGB', 'RGBA'):
      raise DataError(f'{path} has pixels of kind {image.mode}; export it with 8 bits a channel.')
    if image.mode == 'L':
      mask_kind(image, str(path))  # Fewer bits would be stretched.
    if image.format == 'JPEG':
      raise DataError(f'{path} is a JPEG, which changes ids; export it as PNG.')
    try:
      pixels = np.asarray(image)
    except Exception as error:  # Pillow raises almost anything on damaged bytes.
      raise damaged(path) from error
  if pixels.dtype == bool:
    return pixels.astype(np.uint8)
  return pixels[..., :3] if pixels.ndim == 3 else pixels


def _read_labelmap(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
  names, palette = [], []
  for line in _text(path).splitlines():
    if not line.strip() or line.startswith('#'):
      continue
    name, _, rest = line.partition(':')
    numbers = rest.partition(':')[0].split(',')
    if len(numbers) != 3 or not all(n.strip().isascii() and n.strip().isdecimal() and
                                    len(n) < 5 and int(n) < 256 for n in numbers):
      raise DataError(f'{path} holds {line[:80]!r}; a line is name:r,g,b:: with 0 to 255.')
    names.append(name.strip())
    palette.append([int(n) for n in numbers])
  if not 0 < len(names) <= IGNORE:
    raise DataError(f'{path} names {len(names)} classes; 1 to {IGNORE} are possible.')
  return tuple(names), np.array(palette, np.uint8)


def _text(path: Path) -> str:
  try:
    return path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise DataError(f'{path} is not UTF-8 text; save it again as UTF-8.') from error


def _codes(mask: np.ndarray) -> np.ndarray:
  return mask.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def _code(colour: Sequence[int]) -> int:
  red, green, blue = map(int, colour)
  return red << 16 | green << 8 | blue


def _colour(code: int) -> tuple[int, int, int]:
  return code >> 16, code >> 8 & 255, code & 255
