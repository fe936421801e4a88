"""Geometry of training crops, on NumPy arrays."""

import dataclasses

import cv2
import numpy as np

from gta_jax.data.files import IGNORE


@dataclasses.dataclass(frozen=True)
class RandomCrop:
  """Random scale, crop and horizontal flip, padded in the centre to a fixed size.

  The same as resizing the whole image by a random factor and cutting a window out of it, but only
  the source pixels of the window are resized. Images are bilinear without antialiasing, as in the
  authors' release, also when shrinking: the network meets the aliasing that plain resizing of an
  image leaves. Labels take the nearest pixel, with pixel centres aligned to the image's.

  Attributes:
    size: height and width of the crop in pixels.
    scale: (lowest, highest) factor on the image, drawn uniformly.
    flip: whether to mirror half of the crops.
    fill: RGB of the padding.
    padding_label: label of the padding. With another one than 255 the padding is a pixel like any
      other, also of unlabelled images; the release uses 0.
  """

  size: int
  scale: tuple[float, float] = (0.5, 2.0)
  flip: bool = True
  fill: tuple[int, int, int] = (124, 116, 104)
  padding_label: int = IGNORE

  def __post_init__(self):
    if self.size < 1:
      raise ValueError(f'crop size {self.size} is not positive; give pixels, as in 321.')
    low, high = self.scale
    if not 0 < low <= high:
      raise ValueError(f'scale {self.scale} is not (lowest, highest) with 0 < lowest <= highest; '
                       'give factors, as in (0.5, 2.0).')

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
    factor = rng.uniform(*self.scale)
    (top, height, out_height), (left, width, out_width) = (
        self._window(length, factor, rng.random()) for length in image.shape[:2])
    mirror = -1 if rng.random() < 0.5 and self.flip else 1
    source = np.s_[top:top + height, left:left + width]
    y, x = (self.size - out_height) // 2, (self.size - out_width) // 2
    target = np.s_[y:y + out_height, x:x + out_width]

    def place(array: np.ndarray, interpolation: int, padding) -> np.ndarray:
      resized = cv2.resize(array[source], (out_width, out_height), interpolation=interpolation)
      out = np.empty((self.size, self.size, *array.shape[2:]), np.uint8)
      if resized.shape != out.shape:
        out[:] = padding
      out[target] = resized[:, ::mirror]
      return out

    valid = np.full((self.size, self.size), self.padding_label != IGNORE)
    valid[target] = True
    if label is not None:
      label = place(label, cv2.INTER_NEAREST_EXACT, self.padding_label)
    return place(image, cv2.INTER_LINEAR, self.fill), label, valid

  def _window(self, length: int, factor: float, position: float) -> tuple[int, int, int]:
    """(start, extent) in source pixels of one side's window, and its extent in the crop."""
    scaled = max(1, round(length * factor))
    if scaled <= self.size:
      return 0, length, scaled
    extent = max(1, round(length * self.size / scaled))
    return int(position * (length - extent + 1)), extent, self.size
