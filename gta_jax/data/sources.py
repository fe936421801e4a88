"""Where images and masks come from: the Dataset and its Reader.

A source (a folder, archives of records, VOC's or Cityscapes' tree) is a Reader and a function that
returns a Dataset; nothing else in the package has to know.
"""

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from gta_jax.data.files import IGNORE, DataError
from gta_jax.data.listing import named
from gta_jax.data.mask_code import unknown_ids, values_in

_T = TypeVar('_T')
_CHECK_THREADS = 8
_NAMED = 10  # files that are named in one error


class ImageReader(Protocol):
  """Reads one image by its id; picklable, and safe to share between threads."""

  def image(self, id: str) -> np.ndarray:
    """uint8 [H,W,3] RGB. Raises DataError for a file that is missing or damaged."""
    ...

  def size(self, id: str) -> tuple[int, int]:
    """(H,W) from the headers alone.

    Raises DataError for what can be seen without decoding: a missing or truncated file, pixels that
    image(id) would refuse, a mask of the wrong kind, a mask that is not of its image's size.
    """
    ...


class Reader(ImageReader, Protocol):
  """Reads masks as well."""

  def mask(self, id: str) -> np.ndarray:
    """uint8 [H,W] class ids, 255 = ignore. Raises DataError as image does."""
    ...

  def has_mask(self, id: str) -> bool:
    """Whether mask(id) exists."""
    ...


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Three disjoint lists of ids and the reader that knows them.

  Attributes:
    name: for messages and file names.
    classes: K names; the position is the id in the masks.
    palette: uint8 [K,3] RGB.
    labelled: ids that train with their mask.
    unlabelled: ids that train without; their masks, if any, are read for diagnostics only.
    validation: ids that are evaluated.
    reader: see Reader.
    note: sentences that the user should read, such as how a subset was drawn, a line each.
    checked: all files were decoded before, as prepared records are; `check` then reads none.
    test: ids that are evaluated on demand alone, and never trained on.
    pixel_range: (black, white) of images of 16 bits, which become 8; () without such.
  """

  name: str
  classes: tuple[str, ...]
  palette: np.ndarray
  labelled: tuple[str, ...]
  unlabelled: tuple[str, ...]
  validation: tuple[str, ...]
  reader: Reader
  note: str = ''
  checked: bool = False
  test: tuple[str, ...] = ()
  pixel_range: tuple[int, ...] = ()


class CachedReader:
  """Keeps decoded images and masks in memory until they take up `megabytes`; safe for threads.

  Nothing is evicted: what fits stays, the rest is decoded anew each time. A worker process fills a
  cache of its own: pickled, the reader is empty.
  """

  def __init__(self, reader: Reader, megabytes: float):
    self._reader, self._megabytes, self._free = reader, megabytes, int(megabytes * 1e6)
    self._kept: dict[tuple[str, str], np.ndarray] = {}

  def __getstate__(self) -> dict[str, Any]:
    return vars(CachedReader(self._reader, self._megabytes))

  def image(self, id: str) -> np.ndarray:
    return self._keep('image', id)

  def mask(self, id: str) -> np.ndarray:
    return self._keep('mask', id)

  def has_mask(self, id: str) -> bool:
    return self._reader.has_mask(id)

  def size(self, id: str) -> tuple[int, int]:
    return self._reader.size(id)

  def _keep(self, kind: str, id: str) -> np.ndarray:
    array = self._kept.get((kind, id))
    if array is None:
      array = getattr(self._reader, kind)(id)
      if array.nbytes <= self._free:
        # Two threads may both decode an image at first; the budget then errs on the safe side.
        self._free -= array.nbytes
        array.flags.writeable = False
        self._kept[kind, id] = array
    return array


def of_each(function: Callable[[str], _T], ids: Iterable[str]) -> list[_T]:
  """What the function gives of each id, in threads. Raises DataError with all that it refuses."""
  with concurrent.futures.ThreadPoolExecutor(_CHECK_THREADS) as pool:
    futures = [pool.submit(function, id) for id in ids]
    refused = [error for future in futures if isinstance(error := future.exception(), DataError)]
  if len(refused) > 1:
    said = [f'  {error}' for error in sorted(map(str, refused))]
    raise DataError('\n'.join([f'{len(said)} files cannot be used:', *said[:_NAMED],
                               *['  ...'] * (len(said) > _NAMED)]))
  return [future.result() for future in futures]


def check(dataset: Dataset) -> dict[str, np.ndarray]:
  """Refuses a data set that would fail later, before any work starts.

  Looks at the headers and ends of all files, and decodes validation images, one of which would
  end a run later, labelled and validation masks, and those of test images that have one already;
  where the data set says that this has been done, it looks at the lists alone.

  Returns: the classes that masks hold, bool [N,K] under 'labelled' and 'validation'; empty where
    no mask was decoded.
  Raises: DataError naming the first file or id that breaks a rule, and the remedy.
  """
  splits = {'labelled': dataset.labelled, 'unlabelled': dataset.unlabelled,
            'validation': dataset.validation, 'test': dataset.test}
  if len(dataset.classes) < 2:
    raise DataError(
      f'classes.txt of {dataset.name} names {", ".join(dataset.classes)} alone, which leaves '
      'nothing to tell apart; write a line for what it is not, such as background, before it (its '
      'masks are then 0 and 1, or 0 and 255).')
  for name in ('labelled', 'validation'):
    if not splits[name]:
      raise DataError(f'The {name} split of {dataset.name} is empty; it needs at least one id.')
  for one, other in itertools.combinations(splits, 2):
    if both := sorted(set(splits[one]) & set(splits[other])):
      raise DataError(f'{named(both)} of {dataset.name} is both {one} and '
                      f'{other}; remove it from one of the lists.')
  with_masks = dataset.labelled + dataset.validation
  for id in with_masks:
    if not dataset.reader.has_mask(id):
      raise DataError(f'{id!r} is to be learnt from or scored but has no mask; add '
                      f'masks/{id}.png, or take it out of the list.')
  if dataset.checked:
    return {}
  of_each(dataset.reader.size, with_masks + dataset.unlabelled + dataset.test)
  of_each(lambda id: dataset.reader.image(id).shape, dataset.validation)
  held = np.array(of_each(lambda id: _check_mask(dataset, id), with_masks))
  of_each(lambda id: _check_mask(dataset, id), filter(dataset.reader.has_mask, dataset.test))
  labelled = len(dataset.labelled)
  return {'labelled': held[:labelled], 'validation': held[labelled:]}


def _check_mask(dataset: Dataset, id: str) -> np.ndarray:
  """Which classes the mask holds, bool [K]."""
  mask, count = dataset.reader.mask(id), len(dataset.classes)
  if unknown := unknown_ids(mask, count):
    grey = f'{dataset.classes[-1]} {unknown[-1]} {unknown[-1]} {unknown[-1]}'
    if unknown != [count]:
      hint = f' If these are grey levels of classes, give each its own in classes.txt: "{grey}".'
    elif (mask == 0).any():
      hint = (' If 0 is no class of the list, write a line for it before the others, such as '
              'background.')
    else:
      hint = (' Where ids begin at 1, --mode convert --format masks makes a folder in which they '
              'begin at 0.')
    raise DataError(f'The mask of {id!r} holds {unknown}, but {dataset.name} has the ids 0 to '
                    f'{count - 1} and {IGNORE} (ignore); renumber the mask or add the classes to '
                    f'classes.txt.{hint}')
  return np.isin(range(count), values_in(mask))


def check_classes(dataset: Dataset, held: Mapping[str, np.ndarray]) -> list[str]:
  """Refuses masks from which nothing could be learnt, or whose scores would say nothing.

  Args:
    dataset: checked.
    held: what `check` returns.
  Returns: sentences about what is odd and possible.
  Raises: DataError for labelled or validation masks without any label, or with one class alone,
    and for a class that none of them holds.
  """
  notes, seen = [], {
    role: np.logical_or.reduce(masks, axis=0) for role, masks in held.items()}
  for role, masks in held.items():
    present = [name for name, found in zip(dataset.classes, seen[role], strict=True) if found]
    where = f'the {len(masks)} {role} masks of {dataset.name}'
    if not present:
      raise DataError(f'All pixels of {where} are {IGNORE} (ignore); export class ids, the colours '
                      'of classes.txt, or 0 and 255 for two classes.')
    if len(present) == 1:
      raise DataError(
        f'Beside {IGNORE} (ignore), {where} hold {present[0]!r} alone, so that there is nothing to '
        'tell apart and any score would be perfect; add masks that show the other classes. (Masks '
        'of 0 and 255 are understood where classes.txt names two classes.)')
    void = [id for id, one in zip(getattr(dataset, role), masks, strict=True) if not one.any()]
    if void:
      notes.append(f'{len(void)} of {where} have no pixel with a label, such as {void[0]!r}.')
  if not held:
    return notes
  for id, name in enumerate(dataset.classes):
    lacking = [role for role in held if not seen[role][id]]
    if len(lacking) == len(held):
      raise DataError(
        f'No labelled or validation mask of {dataset.name} holds {name!r} (class {id}); add one '
        'that does to splits/NAME/labeled.txt, or take the class out of classes.txt and renumber '
        'the masks.')
    if lacking:
      notes.append(f'No {lacking[0]} mask holds {name!r}: it is ' + (
        'never learnt.' if lacking == ['labelled'] else
        'not scored, but counts as 0 in the mean of a network that finds it anywhere.'))
  return notes


def default_palette(num_classes: int) -> np.ndarray:
  """VOC's colours, uint8 [K,3]: the bits of the id, dealt to the channels, highest first."""
  ids = np.arange(num_classes)[:, None]
  bits = (ids >> np.arange(24)) & 1
  return (bits.reshape(-1, 8, 3) << np.arange(7, -1, -1)[:, None]).sum(axis=1).astype(np.uint8)


def spread(ids: Sequence[str], count: int) -> list[str]:
  """At most `count` of them, evenly spread."""
  count = min(count, len(ids))
  return [ids[i * len(ids) // count] for i in range(count)]


def draw_covering(candidates: Sequence[str], reader: Reader, *, count: int,
                  classes: Sequence[str], seed: int) -> tuple[tuple[str, ...], str]:
  """Draws `count` ids that show every class, if so few can.

  First the images that add most of the classes still missing, then others at random. Subsets of
  one seed are nested, as the published ones are.

  Returns: the ids, and a sentence that says how they were drawn and which classes they lack.
  """
  if not 0 < count <= len(candidates):
    raise DataError(f'{count} labelled images are wanted, but {len(candidates)} images outside '
                    'validation have masks; ask for fewer, or add masks.')
  order = [candidates[int(i)] for i in np.random.default_rng(seed).permutation(len(candidates))]
  present = np.array(of_each(
      lambda id: np.isin(range(len(classes)), values_in(reader.mask(id))), order))
  chosen, missing = [], np.ones(len(classes), bool)
  while len(chosen) < count and (gain := (present & missing).sum(axis=1)).any():
    chosen.append(int(gain.argmax()))
    missing &= ~present[chosen[-1]]
  taken = set(chosen)
  rest = [i for i in range(len(order)) if i not in taken]
  chosen += rest[:count - len(chosen)]
  lacking = [classes[int(i)] for i in np.flatnonzero(~present[chosen].any(axis=0))]
  note = f'Drew {count} of {len(candidates)} images with masks (seed {seed}), as no list names them'
  return (tuple(order[i] for i in chosen),
          f'{note}; classes not among them: {", ".join(lacking)}.' if lacking else f'{note}.')
