"""A folder of images that a network is to see, without masks or lists."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gta_jax.data.files import IMAGE_SUFFIXES, DataError, decode_image, image_size, read_bytes
from gta_jax.data.folder_notes import other_images, turned_images
from gta_jax.data.listing import visible_files
from gta_jax.data.writing import check_writable, is_of_data

# Of results, beside the masks.
FOLDERS: tuple[str, ...] = ('overlays', 'confidence', 'probabilities')


@dataclasses.dataclass(frozen=True)
class ImageFolder:
  """Reads images alone, in any of IMAGE_SUFFIXES, as in training.

  Attributes:
    paths: id -> file.
    pixel_range: (black, white) of images of 16 bits; () refuses them.
  """

  paths: Mapping[str, Path]
  pixel_range: tuple[int, ...] = ()

  def size(self, id: str) -> tuple[int, int]:
    """(H,W) from the header. Raises DataError for a file that is no image."""
    return image_size(self.paths[id], self.paths[id])

  def image(self, id: str) -> np.ndarray:
    """uint8 [H,W,3] RGB. Raises DataError for a file that decode_image refuses."""
    path = str(self.paths[id])
    return decode_image(read_bytes(path), path, self.pixel_range)


def find_images(folder: Path, *, recursive: bool = False) -> dict[str, Path]:
  """Path without its suffix, in the folder -> file of the images there, by name.

  Args:
    folder: of images.
    recursive: whether folders in it are searched too; names that start with a dot never are.
  Raises: DataError for a folder that is missing or without images, and for two of one stem.
  """
  if not folder.is_dir():
    raise DataError(f'{folder} is not a folder; give one with images.')
  found: dict[str, Path] = {}
  for path in visible_files(folder, recursive=recursive):
    if path.suffix.lower() not in IMAGE_SUFFIXES:
      continue
    inside = path.relative_to(folder)
    id = inside.with_suffix('').as_posix()
    if id in found:
      raise DataError(
        f'{found[id].name} and {path.name} in {path.parent} would both be written as '
        f'{path.stem}.png; rename one.'
      )
    if recursive and inside.parts[0] in FOLDERS:
      raise DataError(f'{folder / inside.parts[0]} has the name of a folder of results; rename it.')
    found[id] = path
  if not found:
    remedy = '' if recursive else '; folders in it are searched with --recursive'
    raise DataError(f'{folder} holds no images{remedy}; known are {", ".join(IMAGE_SUFFIXES)}.')
  return found


def check_folders(
  images: Path, out: Path, *, recursive: bool = False, pixel_range: Sequence[int] = ()
) -> ImageFolder:
  """A reader of the images; nothing is written. pixel_range: see ImageFolder.

  Raises: DataError as find_images does, and for an `out` that is `images` or inside it, that
    belongs to a data folder, or that cannot be written.
  """
  reader = ImageFolder(find_images(images, recursive=recursive), tuple(pixel_range))
  source, target = images.resolve(), out.resolve()
  if target.is_relative_to(source) or source in [target / name for name in FOLDERS]:
    raise DataError(
      f'out={out} would put results among the images of {images}; give a folder outside it.'
    )
  for root in (target, *target.parents):
    if (root / 'classes.txt').is_file() and is_of_data(target, root):
      raise DataError(f'out={out} is the data folder {root}, or one of its folders, where results '
                      'would take the place of yours; give another --out.')
  check_writable(out)
  return reader


def remarks(images: ImageFolder, folder: Path, *, recursive: bool) -> list[str]:
  """What the user should know of the folder of these images, as sentences.

  Args:
    images: as check_folders has found them.
    folder: in which.
    recursive: whether folders in it were searched.
  """
  said = []
  every = visible_files(folder)
  inside = [path for path in every if recursive or path.parent == folder]
  if turned := turned_images(list(map(str, images.paths.values()))):
    said.append(f'{len(turned)} images are to be shown turned (EXIF), such as {turned[0]}: they '
                'are read as they are stored, and their masks lie as they do.')
  if counts := other_images(map(str, inside)):
    said.append(f'Not read in {folder}: {counts}; convert them to use them.')
  below = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in every) - sum(
    path.suffix.lower() in IMAGE_SUFFIXES for path in inside)
  if below:
    said.append(f'{below} images in folders of {folder} were not looked at; add --recursive.')
  return said
