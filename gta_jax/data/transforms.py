"""Geometry and colours of training crops, on NumPy arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable

import cv2
import numpy as np

from gta_jax.data.files import IGNORE

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_BILINEAR = 0.25  # means of blocks are not resized by more than this


def block_side(image_scale: float) -> int:
  """The side of the blocks whose means are what an image is resized from; 1 for its pixels.

  A bilinear pixel is made of four, whatever lies between them: of a photograph that shrinks to a
  sixteenth, of four in 256. So the part of an image_scale below a quarter is done by averaging, in
  powers of two; a scale above 1/8 has no such part, and is the plain resizing of the release.
  """
  return 2 ** max(0, math.floor(math.log2(_BILINEAR / image_scale)))


def resize_image(image: np.ndarray, size: tuple[int, int], *, block: int = 1) -> np.ndarray:
  """Bilinear resizing without antialiasing, of means of blocks.

  Args:
    image: uint8 [h,w,3].
    size: (H,W).
    block: side of the blocks, see block_side.
  Returns: uint8 [H,W,3].
  """
  if block > 1:
    height, width = (max(1, round(side / block)) for side in image.shape[:2])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
  return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def _resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  return cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
  """Random scale, crop and horizontal flip, padded in the centre to a fixed size.

  The same as resizing the whole image by a random factor and cutting a window out of it, but only
  the source pixels of the window are resized. Images are bilinear without antialiasing, as in the
  authors' release, also when shrinking: the network meets the aliasing that plain resizing of an
  image leaves. Labels take the nearest pixel, with pixel centres aligned to the image's.

  Attributes:
    size: height and width of the crop in pixels.
    scale: (lowest, highest) factor on the image, drawn uniformly; or (lowest, middle, highest), of
      which half are drawn uniformly below the middle and half above, as in the release with 1.
    flip: whether to mirror half of the crops.
    fill: RGB of the padding.
    padding_label: label of the padding. With another one than 255 the padding is a pixel like any
      other, also of unlabelled images; the release uses 0.
    block: side of the blocks whose means images are resized from, see block_side.
  """

  size: int
  scale: tuple[float, ...] = (0.5, 2.0)
  flip: bool = True
  fill: tuple[int, int, int] = (124, 116, 104)
  padding_label: int = IGNORE
  block: int = 1

  def __post_init__(self):
    if self.size < 1:
      raise ValueError(f'crop size {self.size} is not positive; give pixels, as in 321.')
    if not (2 <= len(self.scale) <= 3 and self.scale[0] > 0
            and list(self.scale) == sorted(self.scale)):
      raise ValueError(f'scale {self.scale} is not (lowest, highest) or (lowest, middle, highest), '
                       'in this order and above 0; give factors, as in (0.5, 2.0).')

  def __call__(self, image: np.ndarray, label: np.ndarray | None, rng: np.random.Generator
               ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Cuts one crop.

    Args:
      image: uint8 [h,w,3].
      label: uint8 [h,w] or None.
      rng: four numbers are drawn from it, whatever the options.
    Returns: image uint8 [size,size,3], label uint8 [size,size] or None, valid bool [size,size],
      False on padding without a label.
    """
    factor = self._draw_factor(rng)
    (top, height, out_height), (left, width, out_width) = (
        self._window(length, factor, rng.random()) for length in image.shape[:2])
    mirror = -1 if rng.random() < 0.5 and self.flip else 1
    source = np.s_[top:top + height, left:left + width]
    y, x = (self.size - out_height) // 2, (self.size - out_width) // 2
    target = np.s_[y:y + out_height, x:x + out_width]

    def place(array: np.ndarray, resize: Callable[..., np.ndarray], padding) -> np.ndarray:
      resized = resize(array[source], (out_height, out_width))
      out = np.empty((self.size, self.size, *array.shape[2:]), np.uint8)
      if resized.shape != out.shape:
        out[:] = padding
      out[target] = resized[:, ::mirror]
      return out

    valid = np.full((self.size, self.size), self.padding_label != IGNORE)
    valid[target] = True
    if label is not None:
      label = place(label, _resize_label, self.padding_label)
    return place(image, functools.partial(resize_image, block=self.block), self.fill), label, valid

  def _draw_factor(self, rng: np.random.Generator) -> float:
    """The factor on the image, from one number of rng."""
    low, *middle, high = self.scale
    if not middle:
      return rng.uniform(low, high)
    return float(np.interp(rng.random(), (0.0, 0.5, 1.0), (low, *middle, high)))

  def _window(self, length: int, factor: float, position: float) -> tuple[int, int, int]:
    """(start, extent) in source pixels of one side's window, and its extent in the crop."""
    scaled = max(1, round(length * factor))
    if scaled <= self.size:
      return 0, length, scaled
    extent = max(1, round(length * self.size / scaled))
    return int(position * (length - extent + 1)), extent, self.size


@dataclasses.dataclass(frozen=True)
class ColourJitter:
  """Random brightness, contrast and saturation, in this order; for labelled crops.

      x <- clip(b x),  x <- clip(m + c (x - m)),  x <- clip(g + s (x - g))

  with the factors b, c and s uniform in [1 - strength, 1 + strength], m the mean grey level of the
  crop and g the grey level of each pixel (ITU-R 601). What a network is to tell apart by grey level
  alone does not survive it.

  Attributes:
    strength: 0 or more, below 1; 0 changes nothing and draws nothing.
  """

  strength: float = 0.0

  def __post_init__(self):
    if not 0 <= self.strength < 1:
      raise ValueError(f'jitter {self.strength:g} is not in [0, 1); give the largest change of '
                       'brightness, contrast and saturation as a share, as in 0.4.')

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H,W,3] RGB -> the same, changed; three numbers are drawn from rng."""
    if not self.strength:
      return image
    brightness, contrast, saturation = rng.uniform(1 - self.strength, 1 + self.strength, 3)
    rgb = np.clip(image.astype(np.float32) * np.float32(brightness), 0, 255)
    middle = (rgb @ _LUMA).mean()
    rgb = np.clip(middle + np.float32(contrast) * (rgb - middle), 0, 255)
    grey = (rgb @ _LUMA)[..., None]
    return np.clip(np.rint(grey + np.float32(saturation) * (rgb - grey)), 0, 255).astype(np.uint8)
