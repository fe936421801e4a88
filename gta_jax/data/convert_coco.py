"""COCO's JSON as a source of a conversion: instances, stuff and panoptic segmentation."""

import collections
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gta_jax.data.class_list import Classes
from gta_jax.data.convert_masks import LISTS, Item, Source, read_mask
from gta_jax.data.files import IGNORE, IMAGE_SUFFIXES, DataError
from gta_jax.data.listing import visible_files
from gta_jax.data.sources import default_palette

_ANNOTATIONS, _BACKGROUND = 'annotations', 'background'
_BESIDE_IMAGES = '_annotations.coco.json'  # Roboflow's: one in train/, valid/ and test/ each


def read_coco(root: Path, classes: Classes | None = None) -> Source:
  """Every .json in annotations/, or in the folder itself, whose images lie anywhere below it; or
  Roboflow's _annotations.coco.json in folders of images, which stand for its name.

  Instances and stuff: class 0 is the background, larger segments are painted first. Panoptic:
  pixels of no segment are void. Categories that no annotation has are no classes. A file whose name
  holds the word val or test, as val2017, fills that list. An image is the file whose path ends with
  file_name; where two do, see _Images.find, it is left out.

  An image without an annotation is an unlabelled one.

  Raises: DataError where there is no such JSON, one is damaged, or `classes` are given.
  """
  if classes:
    raise DataError('COCO\'s JSON names the classes; leave --classes out, and rename them in the '
                    'classes.txt that is written.')
  folder = root / _ANNOTATIONS if (root / _ANNOTATIONS).is_dir() else root
  paths = sorted(folder.glob('*.json')) or sorted(root.glob(f'*/{_BESIDE_IMAGES}'))
  if not paths:
    raise DataError(f'{folder} holds no .json file; COCO\'s layout has annotations/*.json.')
  content = {path: _read(path) for path in paths}
  panoptic = {any('segments_info' in a for a in c['annotations']) for c in content.values()}
  if len(panoptic) > 1:
    raise DataError(f'{folder} holds panoptic and other annotations; take one kind out.')
  first = () if panoptic == {True} else (_BACKGROUND,)
  numbers, names, notes = _number(folder, content, first)
  if panoptic == {False}:
    _need_pycocotools()
  source = _source(root, content, numbers, names)
  return dataclasses.replace(source, notes=(*source.notes, *notes))


def _number(
  folder: Path, content: Mapping[Path, dict[str, Any]], first: tuple[str, ...]
) -> tuple[dict[int, int], tuple[str, ...], tuple[str, ...]]:
  """Category -> class, for those that occur; names of the classes; sentences.

  first: the name of class 0, which is what no segment covers, also where a category is called so.
  """
  categories: dict[int, str] = {}
  for path, one in content.items():
    for category in one['categories']:
      called = str(category['name']).strip()
      name = categories.setdefault(category['id'], called)
      if name != called:
        raise DataError(
          f'{path} calls category {category["id"]} {called!r}, another file of '
          f'{folder} {name!r}; number them alike in all files.')
  used = {id for one in content.values() for id in _categories_of(one['annotations'])}
  empty = [name for id, name in sorted(categories.items()) if id not in used]
  ids = [id for id in sorted(categories) if id in used]
  ids.sort(key=lambda id: (categories[id].lower(),) != first)
  names = [categories[id] for id in ids]
  if names and (names[0].lower(),) == first:
    first = ()
  if len({*names}) < len(names):
    raise DataError(f'{folder} has two categories of one name; rename one.')
  if not 0 < len(first) + len(names) <= IGNORE:
    raise DataError(
      f'{folder} has {len(first) + len(names)} classes; 1 to {IGNORE} are possible.')
  notes = (f'Categories without an annotation are no classes: {", ".join(empty)}.',)
  return ({id: i for i, id in enumerate(ids, len(first))}, (*first, *names),
          notes if empty else ())


def _categories_of(annotations: Iterable[dict[str, Any]]) -> Iterator[Any]:
  """Of each segment; what is no such list is found out when it is drawn."""
  for annotation in annotations:
    segments = annotation.get('segments_info')
    for segment in segments if isinstance(segments, list) else (annotation,):
      if isinstance(segment, dict) and isinstance(segment.get('category_id'), int):
        yield segment['category_id']


@dataclasses.dataclass(frozen=True)
class _Images:
  """The images below a folder.

  Attributes:
    by_name: bare name -> paths below the folder.
    folders: names of the folders on these paths.
    stems: of the annotation files.
  """

  by_name: Mapping[str, Sequence[Path]]
  folders: Collection[str]
  stems: Collection[str]

  def find(self, file_name: str, stem: str) -> list[Path]:
    """What the annotation file `stem` may mean: file_name is relative to some folder of images.

    That is the folder whose name `stem` ends with (instances_train2017: train2017), if the image is
    there, and no folder that belongs to another annotation file in this way.
    """
    # Tools on Windows write backslashes, which names here hold in rare cases.
    *folders, name = PurePosixPath('/', file_name.replace('\\', '/')).parts
    # Folders in front that are not here are those of the machine that wrote the file.
    here = [*itertools.takewhile(self.folders.__contains__, reversed(folders))]
    end = (*reversed(here), name)
    found = [path for path in self.by_name.get(name, ()) if path.parts[-len(end):] == end]
    own = [path for path in found if _goes_with(stem, path.parts[:-len(end)])]
    return own or [path for path in found if not any(
      _goes_with(other, path.parts[:-len(end)]) for other in self.stems)]


def _stem(path: Path, root: Path) -> str:
  """What a file of annotations is called, where it belongs to a folder of images like that."""
  beside = path.name == _BESIDE_IMAGES and path.parent != root
  return path.parent.name if beside else path.stem


def _goes_with(stem: str, folders: Sequence[str]) -> bool:
  return any(re.search(rf'(^|[\W_]){re.escape(folder)}$', stem) for folder in folders)


def _find_images(root: Path, content: Mapping[Path, dict[str, Any]]) -> _Images:
  """All but the masks of panoptic annotations."""
  masks = {path.with_suffix('') / Path(str(annotation.get('file_name'))).name
           for path, one in content.items() for annotation in one['annotations']
           if 'segments_info' in annotation}
  by_name: dict[str, list[Path]] = {}
  for path in visible_files(root):
    inside = path.relative_to(root)
    is_mask = inside.parts[0] == _ANNOTATIONS or path in masks
    if path.suffix.lower() in IMAGE_SUFFIXES and not is_mask:
      by_name.setdefault(path.name, []).append(inside)
  folders = {folder for paths in by_name.values() for path in paths for folder in path.parts[:-1]}
  return _Images(by_name, folders, {_stem(path, root) for path in content})


def _source(
  root: Path, content: Mapping[Path, dict[str, Any]], numbers: Mapping[int, int],
  classes: tuple[str, ...],
) -> Source:
  images, left_out = _find_images(root, content), {}
  stem_of = {path: _stem(path, root) for path in content}
  # Files of one name are told apart by their folders.
  said = {path: path.name if stem == path.stem else f'{stem}/{path.name}'
          for path, stem in stem_of.items()}
  found = {path: _locate(said[path], stem_of[path], one, images, left_out)
           for path, one in content.items()}
  strangers = _unnamed(images, content)
  stems = collections.Counter(file.stem for file in {
    *strangers, *(file for files in found.values() for file in files.values())})
  items: dict[str, Item] = {}
  lists: dict[str, list[str]] = {'train': [], 'val': [], 'test': []}
  listed: dict[Path, set[str]] = {}  # lists that images of a folder are in

  def id_of(file: Path) -> str:
    return file.stem if stems[file.stem] == 1 else file.with_suffix('').as_posix()

  for path, one in content.items():
    words = {*re.split('[^a-z]+', stem_of[path].lower())}
    name = next((name for name in ('val', 'test') if words & LISTS[name]), 'train')
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for annotation in one['annotations']:
      by_image.setdefault(annotation.get('image_id'), []).append(annotation)
    for image in one['images']:
      file = found[path].get(str(image['file_name']))
      if file is None:
        continue
      id = id_of(file)
      if id in items:
        left_out[f'{image["file_name"]} of {said[path]}'] = 'there is one of this name already'
        continue
      drawn = by_image.get(image['id'], [])
      items[id] = Item(id, root / file, _reader(path, image, drawn, numbers) if drawn else None)
      lists[name].append(id)
      listed.setdefault(file.parent, set()).add(name)
  for file in _unlabelled(strangers, listed, left_out):
    id = id_of(file)
    if id in items:
      left_out[str(file)] = 'there is one of this name already'
    else:
      items[id] = Item(id, root / file)
      lists['train'].append(id)
  bare = sum(items[id].mask is None for id in lists['train'])
  notes = (f'{bare} training images have no annotation: they are unlabelled images, not images of '
           'nothing. List in splits/test.txt what must stay out.',) if bare else ()
  return Source(
    list(items.values()), lists, left_out, Classes(classes, default_palette(len(classes))),
    notes, numbered=True)


def _unnamed(images: _Images, content: Mapping[Path, dict[str, Any]]) -> list[Path]:
  """Images that no annotation file can mean: none has such a name."""
  named = {PurePosixPath(str(image['file_name']).replace('\\', '/')).name
           for one in content.values() for image in one['images']}
  return sorted(file for name, files in images.by_name.items() if name not in named
                for file in files)


def _unlabelled(
  unnamed: Sequence[Path], listed: Mapping[Path, Collection[str]], left_out: dict[str, str]
) -> list[Path]:
  """Of files that are not named those beside training images that are.

  Tools such as labelme's name nothing but what was annotated. Elsewhere files may be anything,
  pictures of the masks for example, or held out: they are counted by folder.

  Args:
    listed: folder -> the lists that named images in it belong to.
  """
  others = collections.Counter(
    file.parent for file in unnamed if 'train' not in listed.get(file.parent, ()))
  for folder, count in others.items():
    beside = 'only val or test images are' if folder in listed else 'no image is'
    left_out[f'{count} files in {folder}'] = (
      f'no annotation file names them, and beside them {beside} named')
  return [file for file in unnamed if file.parent not in others]


def _locate(
  said: str, stem: str, one: dict[str, Any], images: _Images, left_out: dict[str, str]
) -> dict[str, Path]:
  """file_name -> the image below the folder, where there is no doubt about it."""
  found = {name: images.find(name, stem)
           for name in dict.fromkeys(str(image['file_name']) for image in one['images'])}
  uses = collections.Counter(files[0] for files in found.values() if len(files) == 1)
  located = {}
  for name, files in found.items():
    if len(files) == 1 and uses[files[0]] == 1:
      located[name] = files[0]
    elif len(files) == 1:
      left_out[f'{name} of {said}'] = (
        f'another file_name may mean {files[0]} as well; put both into the folders that they name')
    else:
      left_out[f'{name} of {said}'] = (
        f'it may be {" or ".join(map(str, files[:3]))}; put the folder into file_name'
        if files else 'no such file below the folder, or in that of another annotation file alone')
  return located


def _reader(
  path: Path, image: dict[str, Any], annotations: list[dict[str, Any]], numbers: Mapping[int, int]
) -> Callable[[], np.ndarray]:
  def read() -> np.ndarray:
    try:
      if 'segments_info' in annotations[0]:
        return _panoptic(path, annotations[0], numbers)
      return _segments(image, annotations, numbers)
    except DataError:
      raise
    except Exception as error:  # A segment may be anything, and so is what pycocotools raises.
      raise DataError(f'its annotations in {path.name} cannot be drawn ({error!r})') from error

  return read


def _segments(
  image: dict[str, Any], annotations: list[dict[str, Any]], numbers: Mapping[int, int]
) -> np.ndarray:
  from pycocotools import mask as coco  # noqa: PLC0415  An extra.

  height, width = int(image['height']), int(image['width'])
  if not (0 < height < 2**15 and 0 < width < 2**15):
    raise DataError(f'its annotations say {height} x {width} pixels')
  drawn = []
  for annotation in annotations:
    segment = annotation.get('segmentation')
    if not segment or segment in ([[]], [None]):
      raise DataError(f'its annotation {annotation.get("id", "")} has no outline (a box alone, '
                      'say), so that the mask would lack it')
    if isinstance(segment, list):
      encoded = coco.merge(coco.frPyObjects(segment, height, width))
    elif isinstance(segment['counts'], list):
      encoded = coco.frPyObjects(segment, height, width)
    else:
      encoded = segment
    drawn.append((coco.decode(encoded).astype(bool), numbers[annotation['category_id']]))
  ids = np.zeros((height, width), np.uint8)
  for mask, number in sorted(drawn, key=lambda pair: -int(pair[0].sum())):
    ids[mask] = number
  return ids


def _panoptic(path: Path, annotation: dict[str, Any], numbers: Mapping[int, int]) -> np.ndarray:
  name = Path(str(annotation['file_name'])).name
  folders = path.with_suffix(''), path.parent
  found = [folder / name for folder in folders if (folder / name).is_file()]
  if not found:
    raise DataError(f'{path.with_suffix("") / name} does not exist')
  mask = read_mask(found[0])
  if mask.ndim != 3:
    raise DataError(f'{found[0]} is not RGB, as panoptic masks are')
  segments = mask.astype(np.int64) @ np.array([1, 256, 256**2])
  ids = np.full(segments.shape, IGNORE, np.uint8)
  for segment in annotation['segments_info']:
    ids[segments == segment['id']] = numbers[segment['category_id']]
  return ids


def _read(path: Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_text(encoding='utf-8-sig'))  # Some tools on Windows write a mark.
  except (ValueError, RecursionError) as error:
    raise DataError(f'{path} is damaged ({error}); get it again.') from error
  needed = {'images': ('id', 'file_name'), 'annotations': (), 'categories': ('id', 'name')}
  for name, fields in needed.items():
    rows = found.get(name) if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(field in row for field in fields) for row in rows):
      raise DataError(f'{path} has no list {name} of COCO\'s form; give instance, stuff or '
                      'panoptic annotations.')
  wrong = [row for name in ('images', 'categories') for row in found[name]
           if not isinstance(row['id'], (int, str))]
  if wrong or not all(isinstance(row['id'], int) for row in found['categories']):
    raise DataError(f'{path} has ids that are no numbers; get it again.')
  if not all(isinstance(row.get('image_id'), (int, str)) for row in found['annotations']):
    raise DataError(f'{path} has an annotation without image_id; get it again.')
  return found


def _need_pycocotools() -> None:
  try:
    import pycocotools.mask  # noqa: F401, PLC0415
  except ImportError as error:
    raise DataError('COCO\'s polygons and run lengths need pycocotools: '
                    'pip install pycocotools.') from error
