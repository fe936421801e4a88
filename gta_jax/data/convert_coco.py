"""COCO's JSON as a source of a conversion: instances, stuff and panoptic segmentation."""

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gta_jax.data.class_list import Classes
from gta_jax.data.coco_images import (
  ANNOTATIONS,
  BESIDE_IMAGES,
  annotation_stem,
  find_images,
  locate_images,
  unlabelled_images,
  unnamed_images,
)
from gta_jax.data.coco_masks import mask_reader, require_pycocotools
from gta_jax.data.convert_masks import LISTS, Item, Source
from gta_jax.data.files import IGNORE, DataError
from gta_jax.data.sources import default_palette

_BACKGROUND = 'background'


def read_coco(root: Path, classes: Classes | None = None) -> Source:
  """Every .json in annotations/, or in the folder itself, whose images lie anywhere below it; or
  Roboflow's _annotations.coco.json in folders of images, which stand for its name.

  Instances and stuff: class 0 is the background, larger segments are painted first. Panoptic:
  pixels of no segment are void. Categories that no annotation has are no classes. A file whose name
  holds the word val or test, as val2017, fills that list. An image is the file whose path ends with
  file_name; where two do, see Images.find, it is left out.

  An image without an annotation is an unlabelled one.

  Raises: DataError where there is no such JSON, one is damaged, or `classes` are given.
  """
  if classes:
    raise DataError('COCO\'s JSON names the classes; leave --classes out, and rename them in the '
                    'classes.txt that is written.')
  folder = root / ANNOTATIONS if (root / ANNOTATIONS).is_dir() else root
  paths = sorted(folder.glob('*.json')) or sorted(root.glob(f'*/{BESIDE_IMAGES}'))
  if not paths:
    raise DataError(f'{folder} holds no .json file; COCO\'s layout has annotations/*.json.')
  content = {path: _read(path) for path in paths}
  panoptic = {any('segments_info' in a for a in c['annotations']) for c in content.values()}
  if len(panoptic) > 1:
    raise DataError(f'{folder} holds panoptic and other annotations; take one kind out.')
  first = () if panoptic == {True} else (_BACKGROUND,)
  numbers, names, notes = _number(folder, content, first)
  if panoptic == {False}:
    require_pycocotools()
  source = _source(root, content, numbers, names)
  return dataclasses.replace(source, notes=(*source.notes, *notes))


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


def _source(
  root: Path, content: Mapping[Path, dict[str, Any]], numbers: Mapping[int, int],
  classes: tuple[str, ...],
) -> Source:
  images, left_out = find_images(root, content), {}
  stem_of = {path: annotation_stem(path, root) for path in content}
  # Files of one name are told apart by their folders.
  said = {path: path.name if stem == path.stem else f'{stem}/{path.name}'
          for path, stem in stem_of.items()}
  found = {path: locate_images(said[path], stem_of[path], one, images, left_out)
           for path, one in content.items()}
  strangers = unnamed_images(images, content)
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
    by_image: dict[str, list[dict[str, Any]]] = {}
    for annotation in one['annotations']:
      # Some tools write numbers as text, in one of the two places.
      by_image.setdefault(str(annotation['image_id']), []).append(annotation)
    known = {str(image['id']) for image in one['images']}
    if astray := sum(len(drawn) for id, drawn in by_image.items() if id not in known):
      left_out[f'{astray} annotations of {said[path]}'] = 'it lists no image of their image_id'
    for image in one['images']:
      file = found[path].get(str(image['file_name']))
      if file is None:
        continue
      id = id_of(file)
      if id in items:
        left_out[f'{image["file_name"]} of {said[path]}'] = 'there is one of this name already'
        continue
      drawn = by_image.get(str(image['id']), [])
      items[id] = Item(id, root / file, mask_reader(path, image, drawn, numbers) if drawn else None)
      lists[name].append(id)
      listed.setdefault(file.parent, set()).add(name)
  for file in unlabelled_images(strangers, listed, left_out):
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
