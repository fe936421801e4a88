"""A procedural data set that needs no download: textured shapes in clutter.

Six shapes differ by their outline. Most objects wear a hue of their class, but some wear any, and
the clutter (strokes, irregular patches) wears all hues and the same textures. Objects overlap,
turn, leave the image, and have void borders as hand-drawn masks do.
"""

import dataclasses
import functools

import cv2
import numpy as np

from gta_jax.data.files import IGNORE, DataError
from gta_jax.data.sources import Dataset

CLASSES = ('background', 'disc', 'square', 'triangle', 'ring', 'cross', 'star')
PALETTE = np.array([(38, 42, 56), (230, 92, 76), (66, 135, 214), (247, 190, 72), (72, 176, 120),
                    (150, 96, 190), (90, 205, 208)], np.uint8)
# Share of objects in their class's hue: a hint that a few labels teach, and that misleads at times.
_TELLING = 0.85
_SUBPIXEL_BITS = 4


def make_shapes(*, labelled: int, unlabelled: int, validation: int, size: int = 128,
                seed: int = 0) -> Dataset:
  """A Dataset of drawn images, each a function of seed and id alone.

  Args:
    labelled: number of images; ids train/000000 and on.
    unlabelled: number of images, the next of the train ids.
    validation: number of images; ids val/000000 and on.
    size: height and width in pixels, at least 32.
    seed: of the drawings.
  """
  if min(labelled, unlabelled, validation) < 0 or size < 32:
    raise ValueError(f'labelled {labelled}, unlabelled {unlabelled} and validation {validation} '
                     f'must not be negative and size {size} at least 32; correct them.')
  train = tuple(f'train/{index:06}' for index in range(labelled + unlabelled))
  return Dataset('shapes', CLASSES, PALETTE, train[:labelled], train[labelled:],
                 tuple(f'val/{index:06}' for index in range(validation)), ShapesReader(seed, size),
                 checked=True)  # What is drawn is whole.


@dataclasses.dataclass(frozen=True)
class ShapesReader:
  """Draws instead of reading; every id 'train/N' or 'val/N' exists and has a mask."""

  seed: int
  image_size: int

  def image(self, id: str) -> np.ndarray:
    return _draw(self.seed, self.image_size, id)[0]

  def mask(self, id: str) -> np.ndarray:
    return _draw(self.seed, self.image_size, id)[1]

  def has_mask(self, id: str) -> bool:
    return True

  def size(self, id: str) -> tuple[int, int]:
    return self.image_size, self.image_size


@functools.lru_cache(maxsize=32)  # A mask is asked for right after its image.
def _draw(seed: int, size: int, id: str) -> tuple[np.ndarray, np.ndarray]:
  """Image uint8 [size,size,3] and mask uint8 [size,size], both read-only."""
  split, _, index = id.partition('/')
  if split not in ('train', 'val') or not index.isdecimal():
    raise DataError(f"{id!r} is not a shapes id; they are 'train/N' and 'val/N'.")
  rng = np.random.default_rng((seed, split == 'val', int(index)))
  # Drawn channels first and in float32: NumPy is slow on an innermost axis of three.
  image = _background(rng, size)
  mask = np.zeros((size, size), np.uint8)
  for _ in range(rng.integers(2, 5)):
    _paint_clutter(rng, image)
  for _ in range(rng.integers(2, 6)):
    _paint_object(rng, image, mask)
  image *= _smooth(rng, image.shape[1:], 0.7, 1.15)
  noise = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
  image += (noise - np.float32(127.5)) * np.float32(rng.uniform(0.04, 0.2))
  image = cv2.merge(list(np.clip(image, 0, 255).astype(np.uint8)))
  image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.3, 0.7))
  image.flags.writeable = mask.flags.writeable = False
  return image, mask


def _smooth(rng: np.random.Generator, shape: tuple[int, int], low: float, high: float,
            cells: int = 4) -> np.ndarray:
  """float32 [h,w] that wanders slowly between low and high."""
  rows, columns = (_bumps(length, cells) for length in shape)
  return rows @ rng.uniform(low, high, (cells, cells)).astype(np.float32) @ columns.T


@functools.lru_cache(maxsize=1024)
def _bumps(length: int, cells: int) -> np.ndarray:
  """float32 [length,cells]: weights of evenly spaced Gaussian bumps, rows summing to one."""
  distance = np.linspace(0, cells - 1, length)[:, None] - np.arange(cells)
  weights = np.exp(-2.5 * distance**2)
  return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
  """float32 [3,size,size]: two colours that run into each other, under a texture."""
  blend = _smooth(rng, (size, size), 0, 1)
  first, second = (_colour(rng, rng.uniform(0, 360), 50, 230, saturation=(0.1, 0.6))
                   for _ in range(2))
  shade = blend * (second - first) + first
  shade *= 1 - rng.uniform(0.1, 0.5) * _texture(rng, (size, size))
  return shade


def _texture(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
  """A pattern in [0,1], float32 [h,w]: stripes, checks, dots, clouds or nothing."""
  kind = rng.integers(5)
  if kind == 0:
    return np.full(shape, rng.uniform(0, 0.3), np.float32)
  if kind == 1:
    return np.clip(_smooth(rng, shape, -0.5, 1.5, cells=int(rng.integers(4, 9))), 0, 1)
  angle, frequency = rng.uniform(0, np.pi), rng.uniform(0.4, 1.2)
  across = _wave(shape, frequency * np.sin(angle), frequency * np.cos(angle))
  if kind == 2:
    return np.clip(0.5 + 2 * across, 0, 1)
  along = _wave(shape, frequency * np.cos(angle), -frequency * np.sin(angle))
  return np.clip(0.5 + 4 * across * along if kind == 3 else 2 * (across + along) - 1, 0, 1)


def _wave(shape: tuple[int, int], down: float, right: float) -> np.ndarray:
  """sin(down y + right x), float32 [h,w], by the addition theorem."""
  y, x = (np.arange(length, dtype=np.float32) for length in shape)
  y, x = y * np.float32(down), x * np.float32(right)
  return np.stack([np.sin(y), np.cos(y)], 1) @ np.stack([np.cos(x), np.sin(x)])


def _paint(rng: np.random.Generator, image: np.ndarray, outlines: list[np.ndarray], hue: float, *,
           stroke: int = 0) -> None:
  """Fills outlines with a texture.

  Args:
    image: float32 [3,size,size], changed in place.
    outlines: float [n,2], x and y in pixels; a second outline is a hole.
    hue: of both colours, in degrees.
    stroke: if positive, the outlines are open lines of this width instead.
  """
  points = np.concatenate(outlines)
  left, top = np.maximum(np.floor(points.min(axis=0)) - 2, 0).astype(int)
  right, bottom = np.clip(np.ceil(points.max(axis=0)) + 3, 0, image.shape[1]).astype(int)
  if left >= right or top >= bottom:
    return
  cover = np.zeros((bottom - top, right - left), np.uint8)
  fixed = [_fixed(outline - (left, top)) for outline in outlines]
  if stroke:
    cv2.polylines(cover, fixed, False, 255, stroke, cv2.LINE_AA, _SUBPIXEL_BITS)
  else:
    cv2.fillPoly(cover, fixed, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
  dark, light = _colour(rng, hue, 40, 140), _colour(rng, hue + rng.normal(0, 25), 130, 255)
  region = image[:, top:bottom, left:right]
  paint = _texture(rng, cover.shape) * (light - dark) + dark
  region += (paint - region) * (cover * np.float32(1 / 255))


def _fixed(points: np.ndarray) -> np.ndarray:
  return np.round(points * 2**_SUBPIXEL_BITS).astype(np.int32)


def _colour(rng: np.random.Generator, hue: float, low: int, high: int,
            saturation: tuple[float, float] = (0.3, 0.9)) -> np.ndarray:
  """float32 [3,1,1] RGB of a hue in degrees, its brightness between low and high."""
  hsv = np.array([[[hue % 360, rng.uniform(*saturation), rng.uniform(low, high)]]], np.float32)
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).reshape(3, 1, 1)


def _paint_clutter(rng: np.random.Generator, image: np.ndarray) -> None:
  """A stroke or an irregular patch that belongs to no class."""
  size, hue = image.shape[1], rng.uniform(0, 360)
  start = rng.uniform(0, size, 2)
  if rng.random() < 0.5:
    steps = np.cumsum(rng.normal(0, 0.15 * size, (5, 2)), axis=0)
    _paint(rng, image, [start + steps], hue, stroke=int(rng.integers(1, 4)))
  else:
    radii = rng.uniform(0.06, 0.24, 9) * size
    _paint(rng, image, [start + _polar(radii, np.sort(rng.uniform(0, 2 * np.pi, 9)))], hue)


def _polar(radii: np.ndarray | float, angles: np.ndarray) -> np.ndarray:
  return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _outlines() -> tuple[list[np.ndarray], ...]:
  """Outlines of the classes about the origin, with about the area of a disc of radius one."""
  def turn(n: int) -> np.ndarray:
    return 2 * np.pi * np.arange(n) / n

  circle = _polar(1.0, turn(32))
  arm, reach = 0.42, 1.15
  quarter = np.array([(arm, arm), (arm, reach), (-arm, reach)])
  cross = np.concatenate([quarter @ np.array([(c, s), (-s, c)])
                          for c, s in zip((1, 0, -1, 0), (0, 1, 0, -1), strict=True)])
  return ([circle], [_polar(1.25, turn(4))], [_polar(1.35, turn(3))],
          [1.1 * circle, 0.55 * circle], [cross], [_polar(np.tile([1.35, 0.6], 5), turn(10))])


_OUTLINES = _outlines()


def _paint_object(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> None:
  """One shape with its label and its void border, on top of what is there."""
  size, label = image.shape[1], int(rng.integers(1, len(CLASSES)))
  angle, radius = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.15, 0.29)
  stretch = np.diag(radius * rng.uniform(0.8, 1.2, 2))
  rotation = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
  centre = rng.uniform(0.08 * size, 0.92 * size, 2)
  outlines = [outline @ stretch @ rotation + centre for outline in _OUTLINES[label - 1]]
  told = rng.random() < _TELLING
  _paint(rng, image, outlines, 60.0 * label + rng.normal(0, 15) if told else rng.uniform(0, 360))
  fixed = [_fixed(outline) for outline in outlines]
  cv2.fillPoly(mask, fixed, label, cv2.LINE_8, _SUBPIXEL_BITS)
  cv2.polylines(mask, fixed, True, IGNORE, int(rng.integers(1, 3)), cv2.LINE_8, _SUBPIXEL_BITS)
