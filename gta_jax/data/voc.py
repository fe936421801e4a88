"""PASCAL VOC 2012 with SBD's additional masks: the archives, and the folders they unpack to."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from gta_jax.data.archives import Archive
from gta_jax.data.downloads import RemoteFile, fetch
from gta_jax.data.files import DataError, FileReader
from gta_jax.data.listing import named
from gta_jax.data.records import Example
from gta_jax.data.sources import default_palette
from gta_jax.data.splits import Catalogue, Lists, ids_sha256

CLASSES = ('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat',
           'chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant',
           'sheep', 'sofa', 'train', 'tvmonitor')
PALETTE = default_palette(len(CLASSES))
LISTS = Lists(folders=('pascal', 'voc'), labelled={
  '92': '124b0aab2fcd1767214bf465d8fa24dd179c3abe99951a063a92d11c48663987',
  '183': '79b959bccf7753cd70bba8d5abdb7e9c0f16df053ce458916ae19a897149136d',
  '366': 'f0e702c687e2ba711cb726ace02e2bb0b5571fd73bb3e2419441cd53c196416b',
  '732': '8c23014f512884b9ef51e91113e69b7197de6e53c699019956d3874998a005b0',
  '1464': '129f1fe991729b1862115b77738c938c149c1f167baa02b4b3186aea9f0d6a84',
  '662': 'feea4692738362e449721faff842a3aa103bf984f7d6dd748eeb511a6f722fe5',
  '1323': '23921931a21324cfefdf4c67d4d2119d73c2c599bee9a95684ed802c2d134916',
  '2646': 'd35f7cd4b4815e1d83809e2acd19fe536e92319823a8a83353f20e68b2f96899',
  '5291': 'aacb97f26e9468b4eb3c6403cb39ab0c5fa0f6bd63b292f61e6ee5dfacfd5fc6',
}, training='855dff350b7f447bf43cb98ea626a32e0d0b3b7c5786e03b2712a21355b635bf')
_VOC_PATH = 'pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar'
_SBD_PATH = 'Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz'


@dataclasses.dataclass(frozen=True)
class Source:
  """The two archives and what is known of their content.

  Attributes:
    training: ids_sha256 of the augmented training ids, '' for any.
  """

  voc: RemoteFile = RemoteFile(
    'VOCtrainval_11-May-2012.tar',
    (f'http://host.robots.ox.ac.uk/{_VOC_PATH}', f'https://thor.robots.ox.ac.uk/{_VOC_PATH}'),
    'e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb')
  sbd: RemoteFile = RemoteFile(
    'benchmark.tgz',
    (f'https://www2.eecs.berkeley.edu/{_SBD_PATH}', f'http://www.eecs.berkeley.edu/{_SBD_PATH}'),
    '6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53')
  training: str = LISTS.training

  name = 'voc_aug'
  classes = CLASSES
  palette = PALETTE

  def archives(self, folder: Path, *, mirror: str = '') -> tuple[Path, Path]:
    """Paths of VOC's and SBD's archive in `folder`, downloaded if need be."""
    return fetch(self.voc, folder, mirror=mirror), fetch(self.sbd, folder, mirror=mirror)

  def examples(self, voc: Path, sbd: Path) -> dict[str, Iterator[Example]]:
    """The examples of the splits clean (VOC's own training masks), augmented and validation."""
    with Archive(voc) as archive:
      clean, validation = (_ids(_read(archive, f'ImageSets/Segmentation/{name}.txt'))
                           for name in ('train', 'val'))
    names = {f'{_SBD_ROOT}/{name}.txt' for name in ('train', 'val')}
    with Archive(sbd) as archive:
      lists = [_ids(data) for _, data in archive.stream(names)]
    added = sorted(set().union(*lists) - {*clean, *validation})
    if self.training and ids_sha256({*clean, *added}) != self.training:
      raise DataError(f'{voc} and {sbd} together hold {len(clean) + len(added)} training images, '
                      'not the 10,582 known ones; remove the archives and get them again.')
    return {'clean': _voc_examples(voc, clean), 'validation': _voc_examples(voc, validation),
            'augmented': _sbd_examples(voc, sbd, added)}


_VOC_ROOT = 'VOCdevkit/VOC2012'
_SBD_ROOT = 'benchmark_RELEASE/dataset'


def _ids(data: bytes) -> list[str]:
  try:
    return data.decode().split()
  except UnicodeDecodeError as error:
    raise DataError(f'a list of VOC or SBD is no text ({error}); get the archives again.'
                    ) from error


def _read(archive: Archive, name: str) -> bytes:
  return archive.read(f'{_VOC_ROOT}/{name}')


def _voc_examples(voc: Path, ids: list[str]) -> Iterator[Example]:
  with Archive(voc) as archive:
    for id in ids:
      yield Example(id, _read(archive, f'JPEGImages/{id}.jpg'),
                    _read(archive, f'SegmentationClass/{id}.png'))


def _sbd_examples(voc: Path, sbd: Path, ids: list[str]) -> Iterator[Example]:
  names = {f'{_SBD_ROOT}/cls/{id}.mat': id for id in ids}
  with Archive(voc) as images, Archive(sbd) as masks:
    for name, data in masks.stream(names):
      id = names[name]
      mask = Image.fromarray(decode_sbd(data, name))
      mask.putpalette(default_palette(256).tobytes())
      png = io.BytesIO()
      mask.save(png, 'PNG')
      yield Example(id, _read(images, f'JPEGImages/{id}.jpg'), png.getvalue())


def decode_sbd(data: bytes, path: str) -> np.ndarray:
  """Class ids uint8 [H,W] of one of SBD's cls/ID.mat. `path` is for messages only."""
  try:
    return np.asarray(scipy.io.loadmat(io.BytesIO(data))['GTcls'][0, 0]['Segmentation'], np.uint8)
  except Exception as error:  # scipy raises almost anything on damaged bytes.
    raise DataError(f'{path} is damaged or not a mask of SBD; get its archive again.') from error


def read_tree(root: str | Path) -> Catalogue:
  """Reads VOCdevkit, or VOC2012 in it, with or without SegmentationClassAug.

  Without, only the 1,464 images of VOC's own list have masks; the unlabelled images then come
  from the published lists.

  Raises: DataError naming the missing folder or list.
  """
  root = Path(root)
  base = next((path for path in (root, root / 'VOC2012', root / _VOC_ROOT)
               if (path / 'JPEGImages').is_dir()), None)
  if base is None:
    raise DataError(f'{root} holds no JPEGImages; give VOCdevkit or VOC2012 as data.dir, or leave '
                    'data.dir empty to download.')
  clean, validation = (_read_list(base / f'ImageSets/Segmentation/{name}.txt')
                       for name in ('train', 'val'))
  images = {path.stem: str(path) for path in (base / 'JPEGImages').glob('*.jpg')}
  masks = {path.stem: str(path) for path in (base / 'SegmentationClassAug').glob('*.png')}
  augmented = set(masks) - set(validation)
  masks |= {path.stem: str(path) for path in (base / 'SegmentationClass').glob('*.png')}
  if lacking := [id for id in {*clean, *validation, *augmented}
                 if id not in images or id not in masks]:
    raise DataError(f'{base} lacks the image or the mask of {named(sorted(lacking))}; '
                    'unpack it again.')
  training = augmented | set(clean)
  others = () if augmented else tuple(images.keys() - training - set(validation))
  return Catalogue('voc_aug', CLASSES, PALETTE, tuple(sorted(training)), clean, validation,
                   FileReader(images, masks), checked=False, others=others)


def _read_list(path: Path) -> tuple[str, ...]:
  try:
    return tuple(path.read_text().split())
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f'{path} cannot be read as text ({error}); unpack VOC 2012 again.') from error
