"""Which images are labelled: the published lists, a user's own, or a seeded draw."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from gta_jax.data.downloads import RemoteFile, fetch
from gta_jax.data.files import DataError
from gta_jax.data.listing import named
from gta_jax.data.sources import Dataset, Reader, draw_covering

SPLIT_SOURCES = ('published', 'seeded')
_UNLABELLED = 'unlabeled.txt'
# The authors' release and U2PL, whose lists it uses.
_REPOSITORIES = (
  'https://raw.githubusercontent.com/Jin-Ying/GTA-Seg/'
  '8e6bb49ebe6729cc43f2304debe455ddb337ed84/data/splits',
  'https://raw.githubusercontent.com/Haochen-Wang409/U2PL/main/data/splits')


@dataclasses.dataclass(frozen=True)
class Lists:
  """The published lists of a data set.

  Attributes:
    folders: of its lists below a folder of all lists; the first is the published one.
    labelled: name of a split -> ids_sha256 of its labelled ids.
    training: ids_sha256 of labelled and unlabelled ids together, the same for every split.
  """

  folders: tuple[str, ...]
  labelled: Mapping[str, str]
  training: str


@dataclasses.dataclass(frozen=True)
class Catalogue:
  """All images of a data set, before a split gives them their roles.

  Attributes:
    training: ids to train on.
    clean: those of them with the better masks; a draw of no more ids than these is from these.
    validation: ids to evaluate on.
    checked: whether all files are known to be whole; see Dataset.
    others: images without masks, which a published list may name as unlabelled.
  """

  name: str
  classes: tuple[str, ...]
  palette: np.ndarray
  training: tuple[str, ...]
  clean: tuple[str, ...]
  validation: tuple[str, ...]
  reader: Reader
  checked: bool
  others: tuple[str, ...] = ()


def ids_sha256(ids: Iterable[str]) -> str:
  """The fingerprint of a list of ids, independent of its order."""
  return hashlib.sha256('\n'.join(sorted(ids)).encode()).hexdigest()


def read_ids(path: Path, *, may_be_empty: bool = False) -> tuple[str, ...]:
  """The ids of a published list, sorted.

  A line is an id, the path of an image, or the paths of an image and its mask.

  Raises: DataError for a file that cannot be read, is empty though it may not be, or names an id
    twice.
  """
  try:
    lines = path.read_text(encoding='utf-8-sig').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f'{path} cannot be read as text ({error}); give the folder of the published '
                    'lists, with 183/labeled.txt.') from error
  ids = [PurePosixPath(line.split()[0]).stem.removesuffix('_leftImg8bit')
         for line in lines if line.strip()]
  if not (ids or may_be_empty) or len(set(ids)) < len(ids):
    raise DataError(f'{path} is empty or names an id twice; write one id a line.')
  return tuple(sorted(ids))


def choose(catalogue: Catalogue, lists: Lists, *, split: str, source: str = 'published',
           folder: str = '', store: Path, mirror: str = '', seed: int = 0) -> Dataset:
  """Gives every image its role.

  Args:
    split: name of a published list; any number for source='seeded'.
    source: 'published' or 'seeded', which draws `split` ids itself; see draw_covering.
    folder: of the published lists or of the user's own, '' to fetch them. Without unlabeled.txt
      in it every other training image is unlabelled.
    store: where fetched lists are kept.
    mirror: see fetch; the lists are expected as MIRROR/splits/....
    seed: for source='seeded'.
  Raises: DataError that says how to go on where a list cannot be had or does not fit.
  """
  path = labelled_list(lists, split=split, source=source, folder=folder, store=store, mirror=mirror)
  note = ''
  if path is None:
    candidates = (catalogue.clean if int(split) <= len(catalogue.clean)
                  else catalogue.training)
    labelled, note = draw_covering(candidates, catalogue.reader, count=int(split),
                                   classes=catalogue.classes, seed=seed)
    labelled = tuple(sorted(labelled))
  else:
    labelled = read_ids(path)
    if ids_sha256(labelled) != lists.labelled.get(split):
      note = f'{path} is not a published list; scores are not those of the paper\'s split.'
  unlabelled = set(catalogue.training) - set(labelled)
  # Published lists name all other training images; a user's own may name some of them.
  own = bool(path and folder and path.with_name(_UNLABELLED).is_file())
  if path and (catalogue.others or own):
    found = _list_path(lists, split, _UNLABELLED, folder=folder, store=store, mirror=mirror)
    unlabelled = set(read_ids(found, may_be_empty=own)) - set(labelled)
    if not note and ids_sha256({*labelled, *unlabelled}) != lists.training:
      note = f'{found} is not a published list; scores are not those of the paper\'s split.'
  dataset = Dataset(catalogue.name, catalogue.classes, catalogue.palette, labelled,
                    tuple(sorted(unlabelled)), catalogue.validation, catalogue.reader, note,
                    checked=catalogue.checked)
  _check_known(catalogue, dataset, split)
  return dataset


def labelled_list(lists: Lists, *, split: str, source: str = 'published', folder: str = '',
                  store: Path, mirror: str = '') -> Path | None:
  """Where the labelled ids of a split stand, fetched if need be; None where they are to be drawn.

  Args: as those of choose.
  Raises: DataError for a split that is unknown or cannot be had.
  """
  if source not in SPLIT_SOURCES:
    raise DataError(f'data.split_source={source!r} is unknown; use one of: '
                    f'{", ".join(SPLIT_SOURCES)}.')
  if source == 'published':
    return _list_path(lists, split, 'labeled.txt', folder=folder, store=store, mirror=mirror)
  if not split.isdecimal():
    raise DataError(f'split {split!r} is not a number of images to draw; give one.')
  return None


def _list_path(lists: Lists, split: str, file: str, *, folder: str, store: Path,
               mirror: str) -> Path:
  """Where a list lies, after fetching it if need be."""
  if folder:
    places = [Path(folder, *below, split, file) for below in ((), *((f,) for f in lists.folders))]
    for path in places:
      if path.is_file():
        return path
    raise DataError(f'None of {", ".join(map(str, places))} exists; give the folder of the '
                    'published lists as data.split_lists.')
  if split not in lists.labelled:
    raise DataError(f'split {split!r} is not published; use one of: {", ".join(lists.labelled)}, '
                    'or draw any number of images with --config.data.split_source=seeded.')
  labelled = file == 'labeled.txt'
  name = f'splits/{lists.folders[0]}/{split}/{file}'
  base = name.removeprefix('splits/')

  def fingerprint(path: Path) -> str:
    ids = read_ids(path)
    # Both lists together are the training ids; the labelled one has been verified before.
    return ids_sha256(ids if labelled else {*ids, *read_ids(path.with_name('labeled.txt'))})

  remote = RemoteFile(name, tuple(f'{url}/{base}' for url in _REPOSITORIES),
                      lists.labelled[split] if labelled else lists.training, fingerprint)
  try:
    return fetch(remote, store, mirror=mirror)
  except DataError as error:
    raise DataError(
      f'The published split cannot be had. {error} To go on without it: '
      '--config.data.split_lists=DIR for a folder that holds the lists, or '
      '--config.data.split_source=seeded for another, random split.') from error


def _check_known(catalogue: Catalogue, dataset: Dataset, split: str) -> None:
  labelled = set(dataset.labelled) - set(catalogue.training)
  unlabelled = set(dataset.unlabelled) - set(catalogue.training) - set(catalogue.others)
  for lacking, what in ((labelled, 'mask'), (unlabelled, 'image')):
    if lacking:
      raise DataError(
        f'{named(sorted(lacking))} of split {split} has no {what} among the '
        f'{len(catalogue.training)} training images of {catalogue.name}; use another split, or '
        'data that has it (for VOC: SegmentationClassAug, or an empty data.dir, which prepares '
        'the augmented set).')
