"""Batches of images at their own sizes, each decoded once and shown in every view asked for.

Whole images are padded at the right and at the bottom to a multiple of some pixels; images of equal
padded size share one compiled program. Padding is not neutral. A small ResNet-18 (output stride 16,
trained briefly on 96x96 crops of half-size CamVid) changed its class on these shares of pixels
against multiple=1, which pads nothing (in brackets mIoU in percent, 40 images):

    sides     | multiple 1 | 16           | 32           | 128
    180 x 240 | (24.4)     | 9.4 % (26.0) | 10.6 % (26.3) | 18.1 % (24.4)
    161 x 225 | (23.9)     | 13.9 % (25.9) | 16.4 % (26.1) | 18.8 % (25.7)
    176 x 240 | (26.4)     | 0 % (26.4)   | 5.2 % (26.4) | 14.2 % (25.0)

Part is a gain: with aligned corners, features and pixels line up as in training only where sides
are multiples of the output stride. Beyond that, padding leaks through dilated convolutions and
image pooling. Hence 32; a data set of one size whose sides are such multiples needs none. Crops and
sliding windows have one size and are never padded further.
"""

import functools
import math
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np

from gta_jax.data.files import IGNORE, DataError
from gta_jax.data.sources import Reader
from gta_jax.evaluation.protocols import Protocol, View
from gta_jax.evaluation.windows import Images, Size


class Arrays(NamedTuple):
  """Of batch_size rows each; rows past the batch's items are filler.

  images: by view.
  labels: by (crop, padding_label) of the protocols, uint8 [B,H,W]; empty without masks.
  """

  images: dict[View, Images]
  labels: dict[tuple[int, int], np.ndarray]


class Batch(NamedTuple):
  """items: (id, the image's own size). output_sizes: of predictions, by crop; 0 is the whole."""

  items: tuple[tuple[str, Size], ...]
  output_sizes: dict[int, Size]
  arrays: Arrays


def make_batches(
  mean: Sequence[float],
  reader: Reader,
  ids: Sequence[str],
  protocols: Sequence[Protocol],
  *,
  batch_size: int,
  image_scale: float,
  multiple: int,
  threads: int,
  masks: bool,
  done: Collection[str] = (),
) -> Iterator[Batch]:
  """Groups images of equal padded size into batches, the last of a group filled up.

  Args:
    mean: RGB in [0,1], of the padding.
    protocols: whose views are made.
    masks: whether to read labels.
    done: a batch of these ids alone is left out.
    The others are as in evaluate.evaluate.
  Raises: ValueError for sizes that are not positive; DataError of the reader.
  """
  if batch_size < 1 or multiple < 1 or not image_scale > 0:
    raise ValueError(f'batch_size={batch_size}, multiple={multiple}, image_scale={image_scale}; '
                     'the first two must be at least 1 and the scale above 0.')
  groups: dict[Size, list[tuple[str, Size]]] = {}
  for image_id in ids:
    size = reader.size(image_id)
    padded = tuple(multiple * math.ceil(side / multiple) for side in _scaled(size, image_scale))
    groups.setdefault(padded, []).append((image_id, size))
  views = {view for protocol in protocols for view in protocol.views}
  truths = {(p.crop, p.padding_label) for p in protocols if masks}
  # The mean colour is zero after normalisation, like the padding of the first convolution.
  colour = np.round(255 * np.array(mean)).astype(np.uint8)
  load = functools.partial(_load, reader, colour, image_scale=image_scale)
  with ThreadPoolExecutor(max(threads, 1)) as pool:
    for padded, members in groups.items():
      # The largest sides that image_scale brings down to `padded`: one program serves the group.
      output_sizes = {0: tuple(int((side + 0.5) / image_scale) for side in padded)}
      output_sizes |= {v.crop: _crop_size(v.crop, image_scale) for v in views if v.crop}
      shapes = {view: _padded(view, padded, output_sizes[0], image_scale, multiple)
                for view in views}
      for start in range(0, len(members), batch_size):
        items = tuple(members[start : start + batch_size])
        if done and all(image_id in done for image_id, _ in items):
          continue
        arrays = Arrays(
          {view: Images(np.broadcast_to(colour, (batch_size, *shape, 3)).copy(),
                        np.ones((batch_size, 2), np.int32), np.ones((batch_size, 2), np.float32))
           for view, shape in shapes.items()},
          {truth: np.full((batch_size, *output_sizes[truth[0]]), IGNORE, np.uint8)
           for truth in truths})
        list(pool.map(load, items, range(len(items)), [arrays] * len(items)))
        yield Batch(items, output_sizes, arrays)


def _scaled(size: Size, factor: float) -> Size:
  return tuple(max(1, round(side * factor)) for side in size)


def _crop_size(crop: int, image_scale: float) -> Size:
  """Of a crop in the original image."""
  return _scaled((crop, crop), 1 / image_scale)


def _padded(view: View, padded: Size, largest: Size, image_scale: float, multiple: int) -> Size:
  """Of a view in a batch whose images are at most `largest`, and `padded` at scale 1."""
  if view.crop:
    return _scaled((view.crop, view.crop), view.scale)
  if view.scale == 1:
    return padded
  sides = _scaled(largest, image_scale * view.scale)
  return tuple(multiple * math.ceil(side / multiple) for side in sides)


def _load(
  reader: Reader, colour: np.ndarray, item: tuple[str, Size], row: int, arrays: Arrays, *,
  image_scale: float,
) -> None:
  """Decodes an image, and its mask if wanted, into a row of a batch's arrays."""
  image_id, own_size = item
  whole, mask = _read(reader, image_id, own_size, masks=bool(arrays.labels))
  for view, (images, sizes, ratios) in arrays.images.items():
    image, size = whole, _scaled(own_size, image_scale * view.scale)
    if view.crop:
      image = centre_crop(whole, _crop_size(view.crop, image_scale), colour)
      size = images.shape[1:3]
    original = image.shape[:2]
    if size != original:
      image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
      ratios[row] = (np.array(size) - 1) / np.maximum(np.array(original) - 1, 1)
    images[row, : size[0], : size[1]] = image
    sizes[row] = size
  for (crop, padding_label), labels in arrays.labels.items():
    if crop:
      labels[row] = centre_crop(mask, _crop_size(crop, image_scale), padding_label)
    else:
      labels[row, : own_size[0], : own_size[1]] = mask


def _read(
  reader: Reader, image_id: str, size: Size, *, masks: bool
) -> tuple[np.ndarray, np.ndarray | None]:
  try:
    image, mask = reader.image(image_id), reader.mask(image_id) if masks else None
    if image.shape[:2] != size or (masks and mask.shape != size):
      raise DataError(f'{image_id!r} or its mask has changed its size since {size} was read.')
  except DataError as error:
    if not masks:
      raise
    raise DataError(f'{error} It is a validation image: scores without it would be others, so '
                    'it is not skipped; start again once it is there.') from error
  return image, mask


def centre_crop(array: np.ndarray, size: Size, fill: np.ndarray | int) -> np.ndarray:
  """Cuts [h,w,...] to [H,W,...] about the middle, filled up where it is smaller.

  An odd pixel stays over at the bottom and at the right, in cutting and in filling, as in the
  published code.
  """
  for axis in (0, 1):
    spare = array.shape[axis] - size[axis]
    if spare > 0:
      array = np.take(array, np.arange(size[axis]) + spare // 2, axis)
  out = np.empty((*size, *array.shape[2:]), array.dtype)
  out[:] = fill
  top, left = ((size[axis] - array.shape[axis]) // 2 for axis in (0, 1))
  out[top : top + array.shape[0], left : left + array.shape[1]] = array
  return out
