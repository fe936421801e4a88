"""What a data set is like: sizes, depths, classes, the width of structures, how images look."""

import collections
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gta_jax.data.colour_lookup import count_colours, told_by_colour
from gta_jax.data.files import IGNORE, FileReader
from gta_jax.data.folder import FolderReader
from gta_jax.data.sources import Dataset, of_each, spread
from gta_jax.data.structures import DIAMETERS, median_width, survivors

_VERSION = 4  # of what is found; another one makes what was kept be found anew
# At most so many files, evenly spread, and so many pixels, are looked at.
_HEADERS, _MASKS, _WIDTHS, _LOOKS = 5000, 400, 32, 32
_PIXELS = 60_000_000
_MEASURED = 64_000_000  # pixels of all classes and masks whose structures' widths are measured
# A difference counts from so many standard errors and grey levels on.
_ERRORS, _LEVELS = 3.0, 5.0
_OCTAVES = 0.33  # and from such a ratio of sizes on, a quarter more or so


@dataclasses.dataclass(frozen=True)
class Inspection:
  """Facts about a data set, all of them JSON.

  Attributes:
    digest: of the lists, the classes and every file's size and time.
    name: of the data set.
    images: role -> number of images.
    sizes: role -> median height and width.
    kinds: {'format', 'bits', 'height', 'width', 'images'}, the most frequent first.
    grey: whether all images looked at are grey.
    classes: names.
    pixels: role ('labelled', 'validation') -> pixels of each class.
    holding: role -> number of masks that hold each class.
    void: role -> share of pixels without a label.
    widths: of each class, in pixels: half of it lies where a circle of this diameter fits; None
      where it never occurs.
    looks: role -> 'brightness' and 'contrast' (mean and deviation of an image's grey levels), each
      as (mean, deviation) over images.
    looked_at: what -> (how many were looked at, of how many).
    remarks: what is odd, as sentences.
    told_by_colour: how far the colour of a labelled pixel alone tells its class, from 0, as by
      chance, to 1 (colour_lookup.py); None where too few masks say it.
  """

  digest: str
  name: str
  images: dict[str, int]
  sizes: dict[str, list[int]]
  kinds: list[dict[str, Any]]
  grey: bool
  classes: list[str]
  pixels: dict[str, list[int]]
  holding: dict[str, list[int]]
  void: dict[str, float]
  widths: list[float | None]
  looks: dict[str, dict[str, list[float]]]
  looked_at: dict[str, list[int]]
  remarks: list[str]
  told_by_colour: float | None = None

  @property
  def shares(self) -> list[float]:
    """Of each class among the labelled pixels of labelled masks."""
    total = max(sum(self.pixels['labelled']), 1)
    return [count / total for count in self.pixels['labelled']]

  @property
  def present(self) -> list[tuple[float, str]]:
    """Share and name of the classes that labelled masks hold."""
    return [(share, name) for share, name in zip(self.shares, self.classes, strict=True) if share]

  @property
  def has_labels(self) -> bool:
    """Whether labelled masks hold any class, whose structures were measured."""
    return bool(self.present) and any(width is not None for width in self.widths)

  @property
  def size(self) -> tuple[int, int]:
    """The median height and width of labelled images."""
    height, width = self.sizes['labelled']
    return height, width

  @property
  def told(self) -> str | None:
    """told_by_colour as a sentence without its full stop."""
    if self.told_by_colour is None:
      return None
    return (f'{"grey level" if self.grey else "colour"} alone tells the classes '
            f'{self.told_by_colour:.0%} of the way from chance to certainty')


def digest(dataset: Dataset) -> str:
  """A fingerprint of what `inspect` would look at, without reading it."""
  parts: list[Any] = [_VERSION, dataset.classes, dataset.palette.tolist(), dataset.pixel_range]
  roles = _roles(dataset)
  parts += [roles]
  if isinstance(dataset.reader, FileReader):  # Records do not change.
    used = sorted({id for ids in roles.values() for id in ids})
    for paths in (dataset.reader.images, dataset.reader.masks):
      stats = [(paths[id], os.stat(paths[id])) for id in used if id in paths]
      parts.append([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def inspect(dataset: Dataset) -> Inspection:
  """Looks at a checked data set; of many images at some, which `looked_at` tells.

  Raises: DataError of the reader.
  """
  roles = _roles(dataset)
  kinds, sizes, headers = _kinds(dataset, roles)
  largest = max(height * width for height, width in sizes.values())
  affordable = max(4, _PIXELS // largest)
  counts = {role: _count_classes(dataset, roles[role]) for role in ('labelled', 'validation')}
  widths, measured = _widths(dataset, counts['labelled'], min(_WIDTHS, affordable))
  looks, grey = _looks(dataset, roles, min(_LOOKS, affordable))
  found = Inspection(
    digest=digest(dataset), name=dataset.name, sizes=sizes, kinds=kinds, grey=grey,
    images={role: len(ids) for role, ids in roles.items()}, classes=list(dataset.classes),
    pixels={role: of.sum(0)[:-1].tolist() for role, of in counts.items()},
    holding={role: (of > 0).sum(0)[:-1].tolist() for role, of in counts.items()},
    void={role: round(float(of[:, -1].sum() / max(of.sum(), 1)), 4) for role, of in counts.items()},
    widths=widths, looks={role: of[0] for role, of in looks.items()},
    told_by_colour=_told_by_colour(dataset, min(_LOOKS, affordable), grey=grey),
    remarks=_of_two_codes(dataset, np.concatenate([*counts.values()])),
    looked_at={'headers': headers, **{
      f'{role} masks': [len(of), len(roles[role])] for role, of in counts.items()},
               'masks for widths': measured,
               **{f'{role} images': of[1] for role, of in looks.items()}})
  return dataclasses.replace(
    found, remarks=[*found.remarks, *_of_classes(found), *_of_looks(found)])


def _roles(dataset: Dataset) -> dict[str, tuple[str, ...]]:
  return {'labelled': dataset.labelled, 'unlabelled': dataset.unlabelled,
          'validation': dataset.validation, 'test': dataset.test}


def _kinds(
  dataset: Dataset, roles: Mapping[str, Sequence[str]]
) -> tuple[list[dict[str, Any]], dict[str, list[int]], list[int]]:
  """The kinds of images, the median size by role, how many were looked at of how many."""
  reader = dataset.reader

  def kind(id: str) -> tuple[str, int, int, int]:
    if isinstance(reader, FolderReader):
      return reader.kind(id)
    return ('', 8, *reader.size(id))

  found = {role: of_each(kind, spread(ids, _HEADERS)) for role, ids in roles.items() if ids}
  counts = collections.Counter(one for of_role in found.values() for one in of_role)
  sizes = {role: np.median([one[2:] for one in of_role], axis=0).astype(int).tolist()
           for role, of_role in found.items()}
  names = ('format', 'bits', 'height', 'width')
  kinds = [dict(zip(names, of, strict=True)) | {'images': n} for of, n in counts.most_common()]
  return kinds, sizes, [counts.total(), sum(map(len, roles.values()))]


def _count_classes(dataset: Dataset, ids: Sequence[str]) -> np.ndarray:
  """Pixels of each class and, last, of IGNORE, [N,K+1], in the masks that are looked at."""
  places = [*range(len(dataset.classes)), IGNORE]
  return np.array(of_each(
    lambda id: np.bincount(dataset.reader.mask(id).ravel(), minlength=256)[places],
    spread(ids, _MASKS)))


def _widths(
  dataset: Dataset, pixels: np.ndarray, most: int
) -> tuple[list[float | None], list[int]]:
  """The median width of each class's structures, on labelled masks: validation decides nothing.

  Args:
    pixels: what _count_classes says of them; masks without a label are passed over.
    most: masks that are looked at.
  """
  looked_at = spread(dataset.labelled, _MASKS)
  sample = spread([id for id, of in zip(looked_at, pixels, strict=True) if of[:-1].any()], most)
  classes = range(len(dataset.classes))
  area = _MEASURED // max(len(sample) * len(classes), 1)

  def of_mask(id: str) -> list[np.ndarray]:
    mask = dataset.reader.mask(id)
    return [survivors(mask, of, most=area) for of in classes]

  nothing = np.zeros((len(classes), len(DIAMETERS)), np.int64)
  counts = np.sum([nothing, *of_each(of_mask, sample)], axis=0)
  return [median_width(of) for of in counts], [len(sample), len(dataset.labelled)]


def _told_by_colour(dataset: Dataset, most: int, *, grey: bool) -> float | None:
  def of_image(id: str) -> np.ndarray:
    return count_colours(dataset.reader.image(id), dataset.reader.mask(id), len(dataset.classes),
                         grey=grey)

  told = told_by_colour(of_each(of_image, spread(dataset.labelled, most)))
  return None if told is None else round(told, 3)


def _looks(
  dataset: Dataset, roles: Mapping[str, Sequence[str]], most: int
) -> tuple[dict[str, tuple[dict[str, list[float]], list[int]]], bool]:
  """Role -> its look and how many were looked at of how many; whether all of them are grey."""
  def of_image(id: str) -> tuple[float, float, bool]:
    image = dataset.reader.image(id)
    grey = image.mean(-1, dtype=np.float32)
    return float(grey.mean()), float(grey.std()), bool((image == image[..., :1]).all())

  looks, all_grey = {}, True
  for role in ('labelled', 'unlabelled', 'validation'):
    if not roles[role]:
      continue
    sample = spread(roles[role], most)
    found = np.array(of_each(of_image, sample))
    all_grey = all_grey and bool(found[:, 2].all())
    look = {name: [round(float(f(found[:, i])), 2) for f in (np.mean, np.std)]
            for i, name in enumerate(('brightness', 'contrast'))}
    looks[role] = look, [len(sample), len(roles[role])]
  return looks, all_grey


def _of_two_codes(dataset: Dataset, counts: np.ndarray) -> list[str]:
  """Masks of two classes of which some look like 0 and 255 and others hold 1; counts: [N,K+1]."""
  if len(dataset.classes) != 2:
    return []
  zero, one, void = counts.T > 0
  white = zero & void & ~one
  if not white.any() or not one.any():
    return []
  return [f'{white.sum()} of {len(counts)} masks looked at hold 0 and 255 alone, {one.sum()} hold '
          f'1: in all of them 255 is no label. If 255 is {dataset.classes[1]!r} in the former, '
          'write 1 there.']


def _of_classes(found: Inspection) -> list[str]:
  remarks = []
  for i, name in enumerate(found.classes):
    lacking = [role for role, holding in found.holding.items() if not holding[i]]
    if lacking:
      remarks.append(f'{name!r} occurs in no {" and no ".join(lacking)} mask looked at.')
  present = found.present
  if len(present) > 1 and max(present)[0] > 10 * min(present)[0]:
    (most, common), (least, rare) = max(present), min(present)
    remarks.append(f'The classes are out of balance: {common!r} has {100 * most:.3g} % of the '
                   f'labelled pixels, {rare!r} {100 * least:.2g} %.')
  for role, void in found.void.items():
    if void > 0.5:
      remarks.append(f'{100 * void:.0f} % of the pixels of {role} masks have no label.')
  return remarks


def _of_looks(found: Inspection) -> list[str]:
  """How labelled images differ from the others, which are to profit from them."""
  remarks = []
  for other in ('unlabelled', 'validation'):
    if other not in found.looks:
      continue
    remarks += _of_levels(found, other)
    here, there = found.sizes['labelled'], found.sizes[other]
    if max(abs(math.log2(a / b)) for a, b in zip(here, there, strict=True)) > _OCTAVES:
      remarks.append(f'Labelled images are of another size than {other} ones: in the median '
                     f'{here[0]} x {here[1]} against {there[0]} x {there[1]} pixels. If the same '
                     'things are larger in the ones, what is learnt may not hold for the others.')
  return remarks


def _of_levels(found: Inspection, other: str) -> list[str]:
  remarks = []
  for name, more, less in (('brightness', 'brighter', 'darker'),
                           ('contrast', 'of higher contrast', 'of lower contrast')):
    (mean, deviation), (mean_there, deviation_there) = (
      found.looks[role][name] for role in ('labelled', other))
    count, count_there = (found.looked_at[f'{role} images'][0] for role in ('labelled', other))
    error = (deviation**2 / count + deviation_there**2 / count_there) ** 0.5
    if abs(mean - mean_there) > max(_LEVELS, _ERRORS * error):
      remarks.append(
        f'Labelled images are {more if mean > mean_there else less} than {other} ones: {name} '
        f'{mean:.0f} ± {deviation:.0f} against {mean_there:.0f} ± {deviation_there:.0f} of 255. '
        'What is learnt on the ones may not hold for the others.')
  return remarks
