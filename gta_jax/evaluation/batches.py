"""Batches of images at their own sizes, each decoded once and shown in every view asked for.

Whole images are padded at the right and at the bottom to the smallest sides that differ from those
of the training crop by multiples of 32 pixels (`multiple`); images of equal padded size share one
compiled program. A crop of 96 asks for 32 k, crops of 321, 513 and 769 for 32 k + 1.

Why the crop decides: cell i of a feature map of stride s is centred on pixel s i, as all strided
layers pad half their window. Aligned corners put the first cell on the first pixel and the last one
on the last pixel, n - 1. On a side of n = s k + 1 that is where the last cell is centred; on a side
of n = s k it is not: torchvision's stem has k cells, the last centred s - 1 pixels before, and the
deep stem, whose pooling rounds up, has k + 1, the last centred one pixel beyond. Resizing to the
image then shifts, from nothing at the top left to that many pixels at the far edges: 3 for logits
of stride 4, 1 with the deep stem, and s - 1 for what the decoder resizes from stride s. The shift
depends on n modulo s alone. With the crop's remainder modulo 32, the largest stride, a network is
used with the shift that it was trained with, none for 32 k + 1. So it is with EfficientNet-Lite's
padding: on even sides its first cells, not its last ones, are s - 1 pixels off.

What it does to scores is small with the deep stem and of either sign where a network is far from
trained: ResNet-10 of width 0.25 (output stride 16, 500 supervised steps on crops of 97 from
half-size CamVid, seed 0; with seed 1 torchvision's 32 k gains 0.6 to 0.9; 2026-11-25). mIoU in
percent of 101 images, in brackets the share of pixels with another class than with 32 k + 1:

    stem        | sides     | not padded    | 32 k          | 32 k + 1
    deep        | 180 x 240 | 21.3 (1.3 %)  | 21.0 (0.9 %)  | 21.1
                | 160 x 224 | 20.4 (1.1 %)  | 20.4 (1.1 %)  | 20.6
                | 161 x 225 | 20.6 (0 %)    | 20.3 (2.2 %)  | 20.6
    torchvision | 180 x 240 | 25.5 (5.5 %)  | 27.2 (9.8 %)  | 25.6
                | 160 x 224 | 27.2 (11.8 %) | 27.2 (11.8 %) | 25.2
                | 161 x 225 | 25.3 (0 %)    | 27.3 (10.2 %) | 25.3

Padding itself is not neutral either: it leaks through dilated convolutions and image pooling. A
ResNet-18 trained briefly on crops of 96 changed its class on these shares of pixels against no
padding (in brackets mIoU in percent, 40 images). Hence not more than 32:

    sides     | not padded | 16           | 32           | 128
    180 x 240 | (24.4)     | 9.4 % (26.0) | 10.6 % (26.3) | 18.1 % (24.4)
    161 x 225 | (23.9)     | 13.9 % (25.9) | 16.4 % (26.1) | 18.8 % (25.7)
    176 x 240 | (26.4)     | 0 % (26.4)   | 5.2 % (26.4) | 14.2 % (25.0)

Crops and sliding windows have one size and are never padded further. A transformer sees whole
patches: its crops are multiples of their side, and so are the steps of padding, 28 for 14.
"""

import functools
import math
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, cast

import numpy as np

from gta_jax.data.files import IGNORE, DataError
from gta_jax.data.mask_code import unknown_ids
from gta_jax.data.sources import ImageReader, Reader
from gta_jax.data.transforms import block_side, resize_image
from gta_jax.evaluation.protocols import Protocol, View
from gta_jax.evaluation.windows import Images, Size

_MOST_PIXELS = 20_000_000  # of a batch: eight of Cityscapes' frames, 4 GB with a small network


class Arrays(NamedTuple):
  """Of as many rows each; rows past the batch's items are filler.

  images: by view.
  labels: by (crop, padding_label) of the protocols, uint8 [B,H,W]; empty without masks.
  """

  images: dict[View, Images]
  labels: dict[tuple[int, int], np.ndarray]


class ValidationBatch(NamedTuple):
  """items: (id, the image's own size). output_sizes: of predictions, by crop; 0 is the whole."""

  items: tuple[tuple[str, Size], ...]
  output_sizes: dict[int, Size]
  arrays: Arrays


def make_batches(
  mean: Sequence[float],
  reader: ImageReader,
  ids: Sequence[str],
  protocols: Sequence[Protocol],
  *,
  batch_size: int,
  image_scale: float,
  crop: int,
  multiple: int,
  threads: int,
  num_classes: int = 0,
  devices: int = 1,
  done: Collection[str] = (),
) -> Iterator[ValidationBatch]:
  """Groups images of equal padded size into batches, the last of a group filled up.

  Args:
    mean: RGB in [0,1], of the padding.
    protocols: whose views are made.
    batch_size: rows of a batch, a multiple of `devices`; fewer where they would hold more than
      _MOST_PIXELS, down to as many as there are devices.
    devices: that share a batch.
    num_classes: of the labels, which a Reader then reads; 0 reads none.
    done: a batch of these ids alone is left out.
    The others are as in scores.evaluate_protocols.
  Raises: ValueError for sizes that are not positive; DataError of the reader.
  """
  if min(batch_size, crop, multiple) < 1 or not image_scale > 0:
    raise ValueError(f'batch_size={batch_size}, crop={crop}, multiple={multiple}, '
                     f'image_scale={image_scale}; the first three must be at least 1 and the scale '
                     'above 0.')
  pad = functools.partial(_padded_size, crop=crop, multiple=multiple)
  groups: dict[Size, list[tuple[str, Size]]] = {}
  for image_id in ids:
    size = reader.size(image_id)
    groups.setdefault(pad(_scaled(size, image_scale)), []).append((image_id, size))
  views = {view for protocol in protocols for view in protocol.views}
  truths = {(p.crop, p.padding_label) for p in protocols if num_classes}
  # The mean colour is zero after normalisation, like the padding of the first convolution.
  colour = np.round(255 * np.array(mean)).astype(np.uint8)
  load = functools.partial(
    _load, reader, colour, image_scale=image_scale, num_classes=num_classes)
  with ThreadPoolExecutor(max(threads, 1)) as pool:
    for padded, members in groups.items():
      largest = _largest(padded[0], image_scale), _largest(padded[1], image_scale)
      output_sizes = {0: largest} | {
        view.crop: _crop_size(view.crop, image_scale) for view in views if view.crop}
      shapes = {view: _scaled((view.crop, view.crop), view.scale) if view.crop
                else pad(_scaled(largest, image_scale * view.scale)) for view in views}
      pixels = max(map(math.prod, (*shapes.values(), *output_sizes.values())))
      rows = max(devices, min(batch_size, _MOST_PIXELS // pixels) // devices * devices)
      for start in range(0, len(members), rows):
        items = tuple(members[start : start + rows])
        if done and all(image_id in done for image_id, _ in items):
          continue
        arrays = Arrays(
          {view: Images(np.broadcast_to(colour, (rows, *shape, 3)).copy(),
                        np.ones((rows, 2), np.int32), np.ones((rows, 2), np.float32))
           for view, shape in shapes.items()},
          {truth: np.full((rows, *output_sizes[truth[0]]), IGNORE, np.uint8)
           for truth in truths})
        list(pool.map(load, items, range(len(items)), [arrays] * len(items)))
        yield ValidationBatch(items, output_sizes, arrays)


def padded_size(size: Size, *, image_scale: float, crop: int, multiple: int) -> Size:
  """The sides of the batch that an image of this height and width goes into; see make_batches."""
  return _padded_size(_scaled(size, image_scale), crop=crop, multiple=multiple)


def _scaled(size: Size, factor: float) -> Size:
  height, width = size
  return max(1, round(height * factor)), max(1, round(width * factor))


def _padded_size(size: Size, *, crop: int, multiple: int) -> Size:
  """The smallest sides that hold `size` and differ from the crop's by multiples of `multiple`."""
  height, width = size
  return height + (crop - height) % multiple, width + (crop - width) % multiple


def _largest(padded: int, image_scale: float) -> int:
  """The largest original side that image_scale brings down to `padded` or less.

  Logits of a group come out at these sides, those of the largest image that could be in it. The
  largest one that is in it would do, but sizes of arrays make programs: a picture of a few of the
  images, another process's share, another list of ids would each compile anew. As a function of the
  padded side alone there is one program for each padded size, whoever asks.
  """
  # _scaled rounds a product, and no division undoes that for every scale: so try. It grows with
  # the side, hence whatever it brings down to `padded` is not larger than what this returns.
  side = int((padded + 0.5) / image_scale) + 1
  while max(1, round(side * image_scale)) > padded:
    side -= 1
  return side


def _crop_size(crop: int, image_scale: float) -> Size:
  """Of a crop in the original image."""
  return _scaled((crop, crop), 1 / image_scale)


def _load(
  reader: ImageReader, colour: np.ndarray, item: tuple[str, Size], row: int, arrays: Arrays, *,
  image_scale: float, num_classes: int,
) -> None:
  """Decodes an image, and its mask if wanted, into a row of a batch's arrays."""
  image_id, own_size = item
  whole, mask = _read(reader, image_id, own_size, num_classes)
  for view, (images, sizes, ratios) in arrays.images.items():
    image, size = whole, _scaled(own_size, image_scale * view.scale)
    if view.crop:
      image = centre_crop(whole, _crop_size(view.crop, image_scale), colour)
      size = images.shape[1], images.shape[2]
    original = image.shape[:2]
    if size != original:
      image = resize_image(image, size, block=block_side(image_scale))
      ratios[row] = np.divide(size, original)
    images[row, : size[0], : size[1]] = image
    sizes[row] = size
  for (crop, padding_label), labels in arrays.labels.items():
    assert mask is not None
    if crop:
      labels[row] = centre_crop(mask, _crop_size(crop, image_scale), padding_label)
    else:
      labels[row, : own_size[0], : own_size[1]] = mask


def _read(
  reader: ImageReader, image_id: str, size: Size, num_classes: int
) -> tuple[np.ndarray, np.ndarray | None]:
  try:
    image = reader.image(image_id)
    mask = cast(Reader, reader).mask(image_id) if num_classes else None
    if image.shape[:2] != size or (mask is not None and mask.shape != size):
      raise DataError(f'{image_id!r} or its mask has changed its size since {size} was read.')
    if mask is not None and (unknown := unknown_ids(mask, num_classes)):
      raise DataError(f'The mask of {image_id!r} has changed, and holds {unknown}, which are no '
                      'classes.')
  except DataError as error:
    if not num_classes:
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
