"""Masks drawn from COCO's annotations: outlines and run lengths, and panoptic pictures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gta_jax.data.convert_masks import read_mask
from gta_jax.data.files import IGNORE, DataError


def mask_reader(
  path: Path, image: dict[str, Any], annotations: list[dict[str, Any]], numbers: Mapping[int, int]
) -> Callable[[], np.ndarray]:
  """A function that draws the mask of an image when it is called.

  Args:
    path: of the annotation file, beside which panoptic masks lie.
    image: its entry, with `height` and `width` where there are outlines.
    annotations: of this image, one or more.
    numbers: category -> class.
  Returns: () -> class ids uint8 [H,W]; DataError, which the conversion reports by image, where an
    annotation cannot be drawn.
  """
  def read() -> np.ndarray:
    try:
      if 'segments_info' in annotations[0]:
        return _panoptic(path, annotations[0], numbers)
      return _segments(path, image, annotations, numbers)
    except DataError:
      raise
    except Exception as error:  # A segment may be anything, and so is what pycocotools raises.
      raise DataError(f'its annotations in {path.name} cannot be drawn ({error!r})') from error

  return read


def _segments(
  path: Path, image: dict[str, Any], annotations: list[dict[str, Any]], numbers: Mapping[int, int]
) -> np.ndarray:
  from pycocotools import mask as coco  # noqa: PLC0415  An extra.

  height, width = int(image['height']), int(image['width'])
  if not (0 < height < 2**15 and 0 < width < 2**15):
    raise DataError(f'its annotations say {height} x {width} pixels')
  drawn = []
  for annotation in annotations:
    segment, called = annotation.get('segmentation'), f'its annotation {annotation.get("id", "")}'
    if isinstance(segment, list):
      # Outlines of two points, of one and of none have no area; pycocotools makes boxes of two.
      segment = [outline for outline in segment if outline and len(outline) >= 6]
    if not segment:
      raise DataError(f'{called} has no outline of three points or more (a box alone, say), so '
                      'that the mask would lack it')
    if annotation.get('category_id') not in numbers:
      raise DataError(f'{called} has the category {annotation.get("category_id")!r}, which '
                      f'{path.name} does not list')
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


def require_pycocotools() -> None:
  """Raises: DataError with the command that installs it, where it is missing."""
  try:
    import pycocotools.mask  # noqa: F401, PLC0415
  except ImportError as error:
    raise DataError('COCO\'s polygons and run lengths need pycocotools: '
                    'pip install pycocotools.') from error
