"""Sources of a conversion whose masks are pictures: VOC's layout, and a pair of folders."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gta_jax.data.class_list import Classes, read_classes
from gta_jax.data.files import IGNORE, IMAGE_SUFFIXES, DataError, damaged, open_image
from gta_jax.data.listing import composed, id_of, readings, refuse_look_alikes, visible_files
from gta_jax.data.mask_code import MaskCode
from gta_jax.data.mask_palettes import check_black_and_white, classes_of_palette, of_palettes
from gta_jax.data.masks import MASK_SUFFIXES, check_bits, in_8_bits, mask_kind, without_alpha

_IMAGE_FOLDERS = ('images', 'image', 'imgs', 'img', 'JPEGImages')
_MASK_FOLDERS = ('masks', 'mask', 'labels', 'annotations', 'SegmentationClass')
# List -> words, of a folder's or file's name, that fill it.
LISTS = {'train': {'train', 'training'}, 'val': {'val', 'valid', 'validation', 'minival'},
         'test': {'test', 'testing', 'testdev'}}
_NO_COLOURS = MaskCode()


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
    lists: ids by the name of their list below splits/: train, val, test, 46/labeled, 46/unlabeled.
    left_out: file -> why.
    classes: None where the masks have to tell them.
    notes: sentences about what was decided.
    numbered: whether masks are known to hold ids of classes, 255 being void.
  """

  items: Sequence[Item]
  lists: Mapping[str, Sequence[str]]
  left_out: Mapping[str, str]
  classes: Classes | None = None
  notes: tuple[str, ...] = ()
  numbered: bool = False


def read_voc(root: Path, classes: Classes | None = None) -> Source:
  """JPEGImages, SegmentationClass and, if there, ImageSets/Segmentation, of any classes.

  Colours of masks come from `classes`, classes.txt or labelmap.txt (name:r,g,b::, as CVAT writes
  it).
  """
  images, masks = root / 'JPEGImages', root / 'SegmentationClass'
  for folder in (images, masks):
    if not folder.is_dir():
      raise DataError(f'{folder} does not exist; VOC\'s layout has JPEGImages and '
                      'SegmentationClass. For any folder of images and one of masks use --format '
                      'masks.')
  folder = root / 'ImageSets' / 'Segmentation'
  refuse_look_alikes(folder, LISTS)
  paths = {name: path for name in LISTS if (path := folder / f'{name}.txt').is_file()}
  return _pair(root, images, masks, paths, classes)


def read_pair(root: Path, classes: Classes | None = None) -> Source:
  """A folder of images and one of masks, and splits/ as a data folder has it, if there.

  Without it ids below train/, val/ (valid/, validation/) and test/ go to these lists. Classes are
  found as by read_voc.
  """
  def only(names: Sequence[str], kind: str) -> Path:
    found = [root / name for name in names if (root / name).is_dir()]
    if not found:
      raise DataError(f'{root} has no folder of {kind} under a known name; give it the name '
                      f'{" or ".join(names)}.')
    if len(found) > 1:
      raise DataError(f'{" and ".join(map(str, found))} may each be the folder of {kind}; give all '
                      'but one another name.')
    return found[0]

  splits = root / 'splits'
  refuse_look_alikes(splits, LISTS)
  for folder in sorted(path for path in splits.glob('*') if path.is_dir()):
    refuse_look_alikes(folder, ('labeled', 'unlabeled'))
  drawn = [*splits.glob('*/labeled.txt'), *splits.glob('*/unlabeled.txt')]
  paths = {path.relative_to(splits).with_suffix('').as_posix(): path
           for path in (*(splits / f'{name}.txt' for name in LISTS), *sorted(drawn))
           if path.is_file()}
  source = _pair(
    root, only(_IMAGE_FOLDERS, 'images'), only(_MASK_FOLDERS, 'masks'), paths, classes)
  if paths:
    return source
  lists = {name: [item.id for item in source.items if item.id.split('/')[0].lower() in words]
           for name, words in LISTS.items()}
  return dataclasses.replace(source, lists={k: v for k, v in lists.items() if v})


def find(folder: Path, suffixes: Sequence[str], left_out: dict[str, str]) -> dict[str, Path]:
  """Id -> file; others are left out with the reason."""
  found: dict[str, Path] = {}
  for path in visible_files(folder):
    id = id_of(path, folder)
    if path.suffix.lower() not in suffixes:
      left_out[str(path)] = f'its suffix is none of {", ".join(suffixes)}'
    elif id in found:
      left_out[str(path)] = f'{found[id].name} has the same name'
    else:
      found[id] = path
  return found


def _pair(
  root: Path, images: Path, masks: Path, paths: Mapping[str, Path], classes: Classes | None
) -> Source:
  if classes is None and (root / 'classes.txt').is_file():
    classes = read_classes(root / 'classes.txt')
  elif classes is None and (root / 'labelmap.txt').is_file():
    classes = _read_labelmap(root / 'labelmap.txt')
  code = classes.code if classes else _NO_COLOURS
  left_out: dict[str, str] = {}
  found, of_masks = find(images, IMAGE_SUFFIXES, left_out), find(masks, MASK_SUFFIXES, left_out)
  items, used = [], []
  for id, path in found.items():
    mask = of_masks.pop(id, None) or of_masks.pop(f'{id}_mask', None)
    used += [str(mask)] if mask else []
    items.append(Item(id, path, mask and functools.partial(read_mask, mask, code)))
  for id, path in of_masks.items():
    left_out[str(path)] = ('its image has a mask without _mask already' if
                           id.removesuffix('_mask') in found else
                           'no image has its name, or that name without _mask')
  lists = {name: _read_list(name, path, found, left_out) for name, path in paths.items()}
  return Source(items, lists, left_out, classes, tuple(of_palettes(used, code)))


def _read_list(
  name: str, path: Path, images: Mapping[str, Path], left_out: dict[str, str]
) -> list[str]:
  ids = []
  for line in filter(str.strip, _text(path).split('\n')):
    known = [id for id in readings(line, IMAGE_SUFFIXES) if id in images]
    if known:
      ids.append(known[0])
    else:
      left_out[f'{composed(line.strip())} of {name}.txt'] = 'no such image'
  return ids


def read_mask(path: Path, code: MaskCode = _NO_COLOURS) -> np.ndarray:
  """The pixels of a mask.

  Args:
    path: of the file.
    code: tells which classes the colours of a palette are, where it does (classes_of_palette).
  Returns: uint8 [H,W] of ids, grey values or palette indices, or [H,W,3] of colours, which masks
    of one bit have as well.
  Raises: DataError for a file that is damaged or holds something else.
  """
  with open_image(path, path) as image:
    mask_kind(image, str(path))
    try:
      pixels = np.asarray(image)
    except Exception as error:  # Pillow raises almost anything on damaged bytes.
      raise damaged(path) from error
    palette = image.getpalette() if image.mode == 'P' else None
  if pixels.dtype == bool:
    check_bits(str(path), code)
    # As colours: grey values might be ids.
    return np.repeat(np.where(pixels, np.uint8(IGNORE), np.uint8(0))[..., None], 3, -1)
  if palette:
    check_black_and_white(palette, str(path), code)
    table = np.arange(IGNORE + 1, dtype=np.uint8)
    for index, id in classes_of_palette(pixels, palette, code).items():
      table[index] = id
    return table[pixels]
  return without_alpha(pixels, str(path)) if pixels.ndim == 3 else in_8_bits(pixels, str(path))


def _read_labelmap(path: Path) -> Classes:
  names, palette = [], []
  for line in _text(path).splitlines():
    if not line.strip() or line.startswith('#'):
      continue
    name, _, rest = line.partition(':')
    numbers = rest.partition(':')[0].split(',')
    if len(numbers) != 3 or not all(n.strip().isascii() and n.strip().isdecimal() and
                                    len(n) < 5 and int(n) < 256 for n in numbers):
      raise DataError(f'{path} holds {line[:80]!r}; a line is name:r,g,b:: with 0 to 255.')
    if name.strip() in names:
      raise DataError(f'{path} names the class {name.strip()!r} twice; give each its own name.')
    names.append(name.strip())
    palette.append([int(n) for n in numbers])
  if not 0 < len(names) <= IGNORE:
    raise DataError(f'{path} names {len(names)} classes; 1 to {IGNORE} are possible.')
  return Classes(tuple(names), np.array(palette, np.uint8), chosen=True)


def _text(path: Path) -> str:
  try:
    return path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise DataError(f'{path} is not UTF-8 text; save it again as UTF-8.') from error
