"""A trained model: images in, masks or probabilities out."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np
from PIL import Image

from gta_jax.data.files import DataError
from gta_jax.data.pixel_range import scale_to_8_bits
from gta_jax.devices import sharding
from gta_jax.evaluation.batches import make_batches, padded_size
from gta_jax.evaluation.protocols import WHOLE
from gta_jax.evaluation.windows import Prediction, predict_batch, predict_probabilities
from gta_jax.inference.tiles import Size, tiles_of
from gta_jax.ops.network import Network, Variables

TILE = 1024  # side of a tile where images are not made smaller, in pixels
OVERLAP = 256  # of neighbouring tiles, likewise
# Of images that are made smaller by more, tiles grow no further: logits come out at full size.
_SMALLEST_SCALE = 1 / 4
# A larger image is cut into tiles, and a longer one: bringing logits to the size of an image takes
# matrices of a side by that side.
_WHOLE_PIXELS, _WHOLE_SIDE = 4 * TILE**2, 4 * TILE
# Of Pillow's images: what their arrays hold are no RGB values.
_OTHER_COLOURS = ('1', 'P', 'PA', 'LA', 'La', 'RGBa', 'CMYK', 'YCbCr', 'HSV')
_Outputs = tuple[np.ndarray, ...]


class Model:
  """The networks of a run, ready for use; `gta_jax.load` makes one.

      model = gta_jax.load('runs/mine')
      mask = model.predict(image)  # uint8 [H,W] of ids in model.classes

  Images are seen as in the evaluation of the run, at their own sizes, and results have these sizes.
  A large image is cut into tiles that overlap (is_tiled).

  Attributes:
    names: of the networks, the one that predicts by default first.
    classes: K names; the position is the id in masks.
    palette: uint8 [K,3] RGB.
    network: the shape of all networks.
    variables: of each network, by name.
    crop: side of the crops that they were trained on.
    image_scale: images are resized by this factor before the network.
    pixel_range: (black, white) of images of 16 bits, those of training; () refuses them.
    multiple: of pixels, by which padded sides differ from the crop.
    step: of the checkpoint.
  """

  def __init__(
    self,
    network: Network,
    variables: Mapping[str, Variables],
    *,
    classes: Sequence[str],
    palette: np.ndarray,
    crop: int,
    image_scale: float = 1.0,
    pixel_range: Sequence[int] = (),
    batch_size: int = 8,
    multiple: int | None = None,
    step: int = 0,
  ):
    """Holds networks. Arguments that are not listed are attributes of the same name.

    Args:
      batch_size: images a batch, where several are given.
      multiple: as in evaluation.scores.evaluate_protocols.
    """
    self.network, self.variables, self.step = network, dict(variables), step
    self.names, self.classes, self.palette = tuple(variables), tuple(classes), palette
    self.crop, self.image_scale = crop, image_scale
    self.batch_size, self.multiple = batch_size, multiple or network.multiple
    self.pixel_range = tuple(pixel_range)

  @overload
  def predict(self, images: np.ndarray, *, network: str | None = None) -> np.ndarray: ...
  @overload
  def predict(
    self, images: Sequence[np.ndarray], *, network: str | None = None) -> list[np.ndarray]: ...

  def predict(self, images: Any, *, network: str | None = None) -> Any:
    """Class ids of every pixel.

    Args:
      images: an image, uint8 or uint16 [H,W], [H,W,1], [H,W,3] RGB or [H,W,4] RGBA (alpha is
        ignored), of any size, or a list of these.
      network: one of `names`; the first by default.
    Returns: uint8 [H,W], or a list of these.
    Raises:
      ValueError: an unknown network, or an array that is no such image.
    """
    return self._each(images, lambda many: self.label(many, network=network), 0)

  @overload
  def probabilities(self, images: np.ndarray, *, network: str | None = None) -> np.ndarray: ...
  @overload
  def probabilities(
    self, images: Sequence[np.ndarray], *, network: str | None = None) -> list[np.ndarray]: ...

  def probabilities(self, images: Any, *, network: str | None = None) -> Any:
    """Probabilities of the K classes at every pixel; arguments and errors as predict.

    Returns: float32 [H,W,K], or a list of these.
    """
    def run(many: Sequence[np.ndarray]) -> Iterator[tuple[int, _Outputs]]:
      return self._run(many, network, _probabilities)

    return self._each(images, run, 0)

  def label(
    self, images: Sequence[np.ndarray], *, network: str | None = None
  ) -> Iterator[tuple[int, Prediction]]:
    """Yields (position, labels and confidence) of images as they are done, in any order.

    Arguments and errors as predict.
    """
    for index, outputs in self._run(images, network, _labels):
      yield index, Prediction(*outputs)

  def _each(
    self, images: Any, run: Callable[[list], Iterator[tuple[int, Any]]], field: int
  ) -> Any:
    """One result for an image, a list for a list."""
    if isinstance(images, (list, tuple)):
      found = {index: outputs[field] for index, outputs in run(list(images))}
      return [found[index] for index in range(len(images))]
    return next(iter(run([images])))[1][field]

  def _run(
    self, images: Sequence[Any], name: str | None, function: Callable[..., Sequence[Any]]
  ) -> Iterator[tuple[int, _Outputs]]:
    """Yields (position, what the function gives at the image's own size)."""
    variables = self.variables[self.check_network(name)]
    arrays = [_as_rgb(image, index, self.pixel_range) for index, image in enumerate(images)]
    small = [i for i, array in enumerate(arrays) if not self.is_tiled(array.shape[:2])]
    for index, outputs in self._batches([arrays[i] for i in small], variables, function):
      yield small[index], outputs
    for index in sorted({*range(len(arrays))} - {*small}):
      yield index, self._tiled(arrays[index], variables, function)

  def check_network(self, name: str | None) -> str:
    """The name, or the first for None. Raises ValueError for an unknown one."""
    if name is not None and name not in self.variables:
      raise ValueError(f'network={name!r} is unknown; this run has {", ".join(self.names)}.')
    return name or self.names[0]

  def padded(self, size: Size) -> Size:
    """The sides of the batch that an image of this height and width goes into."""
    return padded_size(
      size, image_scale=self.image_scale, crop=self.crop, multiple=self.multiple)

  def is_tiled(self, size: Size) -> bool:
    """Whether an image of this height and width is cut into tiles.

    It is above 4 megapixels, or 4096 pixels along a side. A tile has a side of 1024 pixels as the
    network sees them, but 4096 at most in the image (there too an image of its size is not cut),
    and overlaps its neighbours by a quarter.
    """
    return size[0] * size[1] > max(_WHOLE_PIXELS, self.tile**2) or max(size) > _WHOLE_SIDE

  @property
  def tile(self) -> int:
    """The side of a tile, in pixels of the image."""
    return self._in_image(TILE)

  def _in_image(self, seen: int) -> int:
    return round(seen / min(1.0, max(self.image_scale, _SMALLEST_SCALE)))

  def _tiled(
    self, image: np.ndarray, variables: Variables, function: Callable[..., Sequence[Any]]
  ) -> _Outputs:
    tiles = list(tiles_of(image.shape[:2], self.tile, self._in_image(OVERLAP)))
    whole: _Outputs = ()
    parts = [image[tile.seen] for tile in tiles]
    for index, outputs in self._batches(parts, variables, function, rows=1):
      if not whole:
        whole = tuple(np.empty((*image.shape[:2], *x.shape[2:]), x.dtype) for x in outputs)
      for target, output in zip(whole, outputs, strict=True):
        target[tiles[index].kept] = output[tiles[index].inner]
    return whole

  def _batches(
    self, images: Sequence[np.ndarray], variables: Variables,
    function: Callable[..., Sequence[Any]], rows: int = 0,
  ) -> Iterator[tuple[int, _Outputs]]:
    # One image alone, or full batches: two programs for a size at most, however many images come.
    rows = rows or (1 if len(images) == 1 else self.batch_size)
    batches = make_batches(
      self.network.mean, _Arrays(images), [str(i) for i in range(len(images))], (WHOLE,),
      batch_size=sharding.round_up_to_devices(rows), image_scale=self.image_scale, crop=self.crop,
      multiple=self.multiple, threads=4, devices=jax.local_device_count())
    for batch in batches:
      seen = sharding.place_locally(batch.arrays).images
      outputs = function(self.network, variables, seen, batch.output_sizes[0])
      outputs = [sharding.first_rows(output, len(batch.items)) for output in outputs]
      for row, (index, (height, width)) in enumerate(batch.items):
        yield int(index), tuple(output[row, :height, :width] for output in outputs)


class _Arrays:
  """Reads images that are in memory."""

  def __init__(self, images: Sequence[np.ndarray]):
    self._images = images

  def image(self, id: str) -> np.ndarray:
    return self._images[int(id)]

  def size(self, id: str) -> Size:
    height, width = self._images[int(id)].shape[:2]
    return height, width


def _labels(network: Network, variables: Variables, images: Any, size: Size) -> Prediction:
  return predict_batch(network, variables, images, WHOLE, output_size=size)


def _probabilities(network: Network, variables: Variables, images: Any, size: Size) -> tuple:
  return (predict_probabilities(network, variables, images, WHOLE, output_size=size),)


def _as_rgb(image: Any, index: int, pixel_range: Sequence[int]) -> np.ndarray:
  """uint8 [H,W,3] of an array that is an image."""
  if isinstance(image, (str, os.PathLike)):
    raise DataError(f'image {index} is the path {str(image)!r}; give its pixels, as in '
                    "np.asarray(PIL.Image.open(path).convert('RGB')), or use --mode predict.")
  if isinstance(image, Image.Image) and image.mode in _OTHER_COLOURS:
    image = image.convert('RGB')
  image = given = np.asarray(image)
  if image.dtype.newbyteorder('=') == np.uint16:  # Some TIFF readers keep the file's byte order.
    if not pixel_range:
      raise DataError(f'image {index} has 16 bits a channel, but the training images had 8; give '
                      'uint8, scaled as they were.')
    image = scale_to_8_bits(image, pixel_range)
  grey = image[..., None] if image.ndim == 2 else image
  if image.dtype != np.uint8 or grey.ndim != 3 or grey.shape[-1] not in (1, 3, 4) or not grey.size:
    raise DataError(f'image {index} is {given.dtype} {list(given.shape)}; give uint8 or uint16 '
                    '[H,W], [H,W,1], [H,W,3] or [H,W,4], and several images as a list.')
  return np.repeat(grey, 3, -1) if grey.shape[-1] == 1 else grey[..., :3]
