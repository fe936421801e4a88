"""The images that COCO's annotation files mean, by file_name and folder."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gta_jax.data.files import IMAGE_SUFFIXES
from gta_jax.data.listing import visible_files

ANNOTATIONS = 'annotations'
BESIDE_IMAGES = '_annotations.coco.json'  # Roboflow's: one in train/, valid/ and test/ each


@dataclasses.dataclass(frozen=True)
class Images:
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


def find_images(root: Path, content: Mapping[Path, dict[str, Any]]) -> Images:
  """All but the masks of panoptic annotations."""
  masks = {path.with_suffix('') / Path(str(annotation.get('file_name'))).name
           for path, one in content.items() for annotation in one['annotations']
           if 'segments_info' in annotation}
  by_name: dict[str, list[Path]] = {}
  for path in visible_files(root):
    inside = path.relative_to(root)
    is_mask = inside.parts[0] == ANNOTATIONS or path in masks
    if path.suffix.lower() in IMAGE_SUFFIXES and not is_mask:
      by_name.setdefault(path.name, []).append(inside)
  folders = {folder for paths in by_name.values() for path in paths for folder in path.parts[:-1]}
  return Images(by_name, folders, {annotation_stem(path, root) for path in content})


def annotation_stem(path: Path, root: Path) -> str:
  """What a file of annotations is called, where it belongs to a folder of images like that."""
  beside = path.name == BESIDE_IMAGES and path.parent != root
  return path.parent.name if beside else path.stem


def _goes_with(stem: str, folders: Sequence[str]) -> bool:
  return any(re.search(rf'(^|[\W_]){re.escape(folder)}$', stem) for folder in folders)


def locate_images(
  said: str, stem: str, one: dict[str, Any], images: Images, left_out: dict[str, str]
) -> dict[str, Path]:
  """file_name -> the image below the folder, where there is no doubt about it.

  Args:
    said: what messages call the annotation file.
    stem: of that file, see annotation_stem.
    one: its content.
    left_out: gets the others, each with its reason.
  """
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


def unnamed_images(images: Images, content: Mapping[Path, dict[str, Any]]) -> list[Path]:
  """Images that no annotation file can mean: none has such a name."""
  named = {PurePosixPath(str(image['file_name']).replace('\\', '/')).name
           for one in content.values() for image in one['images']}
  return sorted(file for name, files in images.by_name.items() if name not in named
                for file in files)


def unlabelled_images(
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
