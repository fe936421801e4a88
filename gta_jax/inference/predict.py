"""Segments a folder of images of any sizes into masks and overlays."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gta_jax.data.files import IMAGE_SUFFIXES, DataError, decode_image, image_size, read_bytes
from gta_jax.devices import sharding
from gta_jax.evaluation.pictures import legend, overlay, write_image, write_mask
from gta_jax.evaluation.scores import label_images
from gta_jax.ops.network import Network, Variables


@dataclasses.dataclass(frozen=True)
class ImageReader:
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


def find_images(folder: Path) -> dict[str, Path]:
  """Stem -> file of the images directly in a folder, by name.

  Raises: DataError for a folder that is missing or without images, and for two of one stem.
  """
  if not folder.is_dir():
    raise DataError(f'{folder} is not a folder; give one with images.')
  found: dict[str, Path] = {}
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith('.'):
      continue
    if path.stem in found:
      raise DataError(
        f'{found[path.stem].name} and {path.name} in {folder} would both be written as '
        f'{path.stem}.png; rename one.'
      )
    found[path.stem] = path
  if not found:
    raise DataError(f'{folder} holds no images; known are {", ".join(IMAGE_SUFFIXES)}.')
  return found


def check_folders(
  images: Path, out: Path, pixel_range: Sequence[int] = ()
) -> ImageReader:
  """A reader of the images; nothing is written. pixel_range: see ImageReader.

  Raises: DataError as find_images does, and for an `out` that is `images` or inside it, or that
    cannot be written.
  """
  reader = ImageReader(find_images(images), tuple(pixel_range))
  source, target = images.resolve(), out.resolve()
  if target.is_relative_to(source) or source == target / 'overlays':
    raise DataError(
      f'out={out} would put results among the images of {images}; give a folder outside it.'
    )
  there = next(path for path in (target, *target.parents) if path.exists())
  if not there.is_dir() or not os.access(there, os.W_OK):
    raise DataError(
      f'out={out} cannot be written, as {there} is no folder or is read-only; give another one.')
  return reader


def predict_folder(
  network: Network,
  variables: Variables,
  *,
  images: Path,
  out: Path,
  classes: Sequence[str],
  palette: np.ndarray,
  crop: int,
  image_scale: float = 1.0,
  pixel_range: Sequence[int] = (),
  batch_size: int = 8,
  multiple: int = 32,
  overlays: bool = True,
) -> list[Path]:
  """Writes a mask of each image in a folder, as it was when the network was evaluated.

  Writes out/STEM.png (palette PNG of class ids, of the image's size), and with overlays also
  out/overlays/STEM.jpg and out/overlays/legend.png. Files of these names are replaced.

  Args:
    network: the shape of `variables`.
    images: folder of images; folders in it are not searched.
    out: folder for the results, made if missing; not `images` nor inside it.
    classes: K names, with palette uint8 [K,3].
    pixel_range: (black, white) of images of 16 bits, that of training.
    batch_size: images a batch; it, crop, image_scale and multiple are as in evaluation.
  Returns: the masks' paths.
  Raises: DataError before any work for folders that cannot be used (see check_folders) and files
    that are no images; and for a damaged image when it is reached, then the masks written before it
    stay.
  """
  images, out = Path(images), Path(out)
  reader = check_folders(images, out, pixel_range)
  (out / 'overlays' if overlays else out).mkdir(parents=True, exist_ok=True)
  if overlays:
    write_image(out / 'overlays' / 'legend.png', legend(classes, palette))
  written = []
  for id, prediction in label_images(
    network, {'it': variables}, reader, list(reader.paths),
    batch_size=sharding.round_up_to_devices(batch_size), crop=crop,
    image_scale=image_scale, multiple=multiple, place=sharding.place_locally,
  ):
    labels = prediction['it'].labels
    if overlays:
      picture = overlay(reader.image(id), labels, palette)
      write_image(out / 'overlays' / f'{id}.jpg', picture)
    written.append(out / f'{id}.png')
    write_mask(written[-1], labels, palette)
  return written
