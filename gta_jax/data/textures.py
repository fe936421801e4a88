"""A procedural data set of thin structures in clutter: grey slices of an invented rock.

Four phases, in two drawings. In 'textures' matrix and mineral are grains with the same range of
grey levels that differ by their grain: speckle or fine lamellae. In 'levels' each phase has a grey
level of its own, as in a tomogram, and nothing but noise for a grain. In both, pores are dark
patches; films, a few pixels wide, line some of the borders between grains; scratches, which run
straight through everything and are no film, have their width and about their grey level.
Brightness drifts over a slice, and there is noise. So a pixel and its neighbourhood tell much, and
where a line leads tells the rest.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from gta_jax.data.files import DataError

CLASSES = ('matrix', 'mineral', 'pore', 'film')
PALETTE = np.array([(110, 110, 120), (214, 170, 90), (40, 60, 110), (220, 80, 90)], np.uint8)
MATRIX, MINERAL, PORE, FILM = range(4)
_GRAINS = (26, 40)  # a slice
_MINERAL_SHARE, _PORE_SHARE, _FILM_SHARE = 0.35, 0.08, 0.5  # of the grains, and of their borders
_LEVELS = np.array((128.0, 185.0, 62.0, 100.0))  # of the phases, where these tell them


def draw(
  seed: int, index: int, size: int = 256, *, drawing: str = 'textures'
) -> tuple[np.ndarray, np.ndarray]:
  """A slice and its mask, uint8 [size,size] each; a function of the arguments alone.

  drawing: of DRAWINGS.
  """
  rng = np.random.default_rng((seed, index))
  phase_of, nearest, second, gap = _grains(rng, size)
  phases = phase_of[nearest]
  lining = rng.random((len(phase_of), len(phase_of))) < _FILM_SHARE
  lining |= lining.T
  lining &= (phase_of[:, None] != PORE) & (phase_of != PORE)
  width = rng.uniform(2.5, 5.0, lining.shape)
  width = np.maximum(width, width.T)
  film = lining[nearest, second] & (gap < width[nearest, second])
  mask = np.where(film, FILM, phases).astype(np.uint8)

  slice_ = DRAWINGS[drawing](rng, phase_of, nearest, film)
  return np.clip(np.round(slice_), 0, 255).astype(np.uint8), mask


def _of_textures(
  rng: np.random.Generator, phase_of: np.ndarray, nearest: np.ndarray, film: np.ndarray
) -> np.ndarray:
  """Grains that are told by texture; phase_of: [N], nearest: [H,W] of its grains, film: [H,W]."""
  phases = phase_of[nearest]
  level = rng.uniform(115, 165, len(phase_of))[nearest]
  speckle = cv2.GaussianBlur(rng.normal(size=phases.shape), (0, 0), 1.0)
  slice_ = level + np.where(phases == MINERAL, 14 * _lamellae(rng, nearest), 45 * speckle)
  slice_[phases == PORE] = rng.uniform(55, 80) + 8 * speckle[phases == PORE]
  slice_[film] = rng.uniform(70, 95)
  drifting = _scratched(rng, slice_) * _drift(rng, len(slice_), 0.2)
  return cv2.GaussianBlur(drifting, (0, 0), 0.7) + rng.normal(0, 9, phases.shape)


def _of_levels(
  rng: np.random.Generator, phase_of: np.ndarray, nearest: np.ndarray, film: np.ndarray
) -> np.ndarray:
  """Grains that are told by grey level; see _of_textures."""
  slice_ = (_LEVELS[phase_of] + rng.normal(0, 8, len(phase_of)))[nearest]
  slice_[film] = _LEVELS[FILM] + rng.normal(0, 8)
  drifting = _scratched(rng, slice_) * _drift(rng, len(slice_), 0.1)
  noise = cv2.GaussianBlur(rng.normal(size=slice_.shape), (0, 0), 0.7)
  return cv2.GaussianBlur(drifting, (0, 0), 1.0) + 22 * noise


def _drift(rng: np.random.Generator, size: int, most: float) -> np.ndarray:
  """Factors about 1 that change slowly over a slice, float [size,size]."""
  coarse = rng.uniform(1 - most, 1 + most, (3, 3))
  return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _grains(
  rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Cells about random seeds, their borders bent.

  Returns: int [N], phases of the grains; of each pixel, [size,size], its grain, the next nearest
    one, and about twice the distance in pixels from the border between the two.
  """
  count = int(rng.integers(*_GRAINS))
  seeds = rng.uniform(-0.1 * size, 1.1 * size, (count, 2)).astype(np.float32)
  phase_of = rng.choice(3, count, p=(
    1 - _MINERAL_SHARE - _PORE_SHARE, _MINERAL_SHARE, _PORE_SHARE))
  coarse = rng.normal(0, 7, (2, 9, 9)).astype(np.float32)
  bend = [cv2.resize(of_axis, (size, size), interpolation=cv2.INTER_CUBIC) for of_axis in coarse]
  y, x = np.mgrid[:size, :size].astype(np.float32) + bend
  distances = np.hypot(y - seeds[:, 0, None, None], x - seeds[:, 1, None, None])
  nearest, second = np.argpartition(distances, 1, axis=0)[:2]
  first, next_ = (np.take_along_axis(distances, of[None], 0)[0] for of in (nearest, second))
  apart = np.hypot(*(seeds[nearest] - seeds[second]).transpose(2, 0, 1))
  return phase_of, nearest, second, (next_**2 - first**2) / apart


def _lamellae(rng: np.random.Generator, nearest: np.ndarray) -> np.ndarray:
  """Fine stripes, in each grain in a direction of its own; float [H,W] in -1 to 1."""
  y, x = np.mgrid[:nearest.shape[0], :nearest.shape[1]]
  angle = rng.uniform(0, np.pi, nearest.max() + 1)[nearest]
  return np.sin(rng.uniform(1.0, 1.4) * (x * np.cos(angle) + y * np.sin(angle)))


def _scratched(rng: np.random.Generator, slice_: np.ndarray) -> np.ndarray:
  """The slice under straight dark lines, which belong to no phase."""
  size, cover = len(slice_), np.zeros(slice_.shape, np.uint8)
  for _ in range(rng.integers(4, 9)):
    start, angle = rng.uniform(0, size, 2), rng.uniform(0, np.pi)
    reach = rng.uniform(0.15, 0.5) * size * np.array([np.cos(angle), np.sin(angle)])
    ends = np.round([start - reach, start + reach]).astype(np.int32)
    cv2.polylines(cover, [ends], False, 255, int(rng.integers(2, 5)), cv2.LINE_AA)
  return slice_ + (rng.uniform(70, 95) - slice_) * (cover / 255)


def write_folder(
  folder: Path, *, labelled: int = 30, unlabelled: int = 470, validation: int = 64,
  size: int = 256, seed: int = 0, drawing: str = 'textures',
) -> None:
  """Writes slices in the layout of a data folder; its split is called by the number of labels.

  Masks are written for labelled and validation slices alone.

  Raises: DataError where `folder` holds something already.
  """
  if folder.exists() and any(folder.iterdir()):
    raise DataError(f'{folder} is not empty; name a new folder.')
  roles = {f'{labelled}/labeled': range(labelled),
           f'{labelled}/unlabeled': range(labelled, labelled + unlabelled),
           'val': range(labelled + unlabelled, labelled + unlabelled + validation)}
  for name in ('images', 'masks', f'splits/{labelled}'):
    (folder / name).mkdir(parents=True, exist_ok=True)
  for role, indices in roles.items():
    for index in indices:
      image, mask = draw(seed, index, size, drawing=drawing)
      _write(folder / 'images' / f'{index:04}.png', image)
      if not role.endswith('unlabeled'):
        _write(folder / 'masks' / f'{index:04}.png', mask)
    ids = ''.join(f'{index:04}\n' for index in indices)
    (folder / 'splits' / f'{role}.txt').write_text(ids, encoding='utf-8')
  lines = [f'{name} {r} {g} {b}\n' for name, (r, g, b) in zip(CLASSES, PALETTE, strict=True)]
  (folder / 'classes.txt').write_text(''.join(lines), encoding='utf-8')


def _write(path: Path, array: np.ndarray) -> None:
  if not cv2.imwrite(str(path), array):
    raise DataError(f'{path} could not be written; make room, or name another folder.')


DRAWINGS: dict[str, Callable[..., np.ndarray]] = {'textures': _of_textures, 'levels': _of_levels}
