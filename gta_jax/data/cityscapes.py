"""Cityscapes' fine annotations: the two archives, the folders they unpack to, and 19 classes."""

import dataclasses
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from gta_jax.data.archives import Archive
from gta_jax.data.files import IGNORE, DataError, FileReader, decode_mask
from gta_jax.data.listing import named
from gta_jax.data.records import Example
from gta_jax.data.splits import Catalogue, Lists, ids_sha256

# (name, label id, colour), in the order of the train ids.
_LABELS = (
  ('road', 7, (128, 64, 128)), ('sidewalk', 8, (244, 35, 232)), ('building', 11, (70, 70, 70)),
  ('wall', 12, (102, 102, 156)), ('fence', 13, (190, 153, 153)), ('pole', 17, (153, 153, 153)),
  ('traffic light', 19, (250, 170, 30)), ('traffic sign', 20, (220, 220, 0)),
  ('vegetation', 21, (107, 142, 35)), ('terrain', 22, (152, 251, 152)),
  ('sky', 23, (70, 130, 180)), ('person', 24, (220, 20, 60)), ('rider', 25, (255, 0, 0)),
  ('car', 26, (0, 0, 142)), ('truck', 27, (0, 0, 70)), ('bus', 28, (0, 60, 100)),
  ('train', 31, (0, 80, 100)), ('motorcycle', 32, (0, 0, 230)), ('bicycle', 33, (119, 11, 32)))
CLASSES = tuple(name for name, _, _ in _LABELS)
PALETTE = np.array([colour for _, _, colour in _LABELS], np.uint8)
TRAIN_IDS = np.full(256, IGNORE, np.uint8)  # label id -> train id
TRAIN_IDS[[label for _, label, _ in _LABELS]] = np.arange(len(CLASSES))
LISTS = Lists(folders=('cityscapes',), labelled={
  '100': 'c4164038958f8c8e792f7049a650cd9e648cab8816e0ae687914255345f9469d',
  '186': 'f20f7c7dea9c3a2eccb63557def1c1936a4124e166e3d4dd88be603e6fc0f906',
  '372': '11b295e509fd5fd6174b2b155821a5476e111b350bd0aef96c6083ae1509b0e7',
  '744': '7d0cfd6f5390d26ddd4f786a19c5ea875f179e581234eeaba451e1b32f76c4eb',
  '1488': 'c6122be0439bfc0d28f856ecaa318f6e5550ba180345a5deedf580089f804f1b',
}, training='356596e69da79ecbd3f6301dc68c0244fc777bdc7cea8fdc02b169d4b7da3c4a')
_ARCHIVES = ('leftImg8bit_trainvaltest.zip', 'gtFine_trainvaltest.zip')
_IMAGE = re.compile(r'(?:^|.*/)leftImg8bit/(train|val)/[^/]+/([^/]+)_leftImg8bit\.png')


@dataclasses.dataclass(frozen=True)
class Source:
  """The archives of images and fine annotations, which only a registered user can download.

  Attributes:
    training: ids_sha256 of the training ids, '' for any.
  """

  training: str = LISTS.training

  name = 'cityscapes'
  classes = CLASSES
  palette = PALETTE

  def archives(self, folder: Path, *, mirror: str = '') -> tuple[Path, ...]:
    """Paths of both archives in `folder`; DataError that says where to get those missing."""
    del mirror  # The licence does not let others offer them.
    paths = tuple(folder / name for name in _ARCHIVES)
    if missing := [path.name for path in paths if not path.is_file()]:
      folder.mkdir(parents=True, exist_ok=True)
      raise DataError(
        f'Cityscapes has to be downloaded by hand: {" and ".join(missing)} not found in {folder}. '
        'Register and log in at https://www.cityscapes-dataset.com/downloads/, download '
        f'{" (11 GB) and ".join(_ARCHIVES)} (241 MB), put them into {folder} without unpacking '
        'them, and start this again. Or name an unpacked tree: --config.data.dir=DIR, the folder '
        'with leftImg8bit and gtFine.')
    return paths

  def examples(self, images: Path, masks: Path) -> dict[str, Iterator[Example]]:
    """The examples of the splits train and validation."""
    with Archive(images) as archive:
      found = [(match[1], match[2], name) for name in sorted(archive.names())
               if (match := _IMAGE.fullmatch(name))]
    splits = {role: {id: name for split, id, name in found if split == role}
              for role in ('train', 'val')}
    if self.training and ids_sha256(splits['train']) != self.training:
      raise DataError(f'{images} holds {len(splits["train"])} training images, not the 2,975 known '
                      'ones; get it again.')
    return {'train': _examples(images, masks, splits['train']),
            'validation': _examples(images, masks, splits['val'])}


def _examples(images: Path, masks: Path, names: dict[str, str]) -> Iterator[Example]:
  with Archive(images) as image_archive, Archive(masks) as mask_archive:
    for id, name in names.items():
      labels = decode_mask(mask_archive.read(_mask_name(name)), id)
      png = io.BytesIO()
      Image.fromarray(TRAIN_IDS[labels]).save(png, 'PNG')
      yield Example(id, image_archive.read(name), png.getvalue())


def _mask_name(image: str) -> str:
  """gtFine/val/ulm/ulm_1_2_gtFine_labelIds.png of leftImg8bit/val/ulm/ulm_1_2_leftImg8bit.png."""
  head, _, tail = image.rpartition('leftImg8bit/')
  return f'{head}gtFine/{tail.removesuffix("_leftImg8bit.png")}_gtFine_labelIds.png'


@dataclasses.dataclass(frozen=True)
class TreeReader(FileReader):
  """Reads the unpacked tree; masks of label ids become train ids."""

  def mask(self, id: str) -> np.ndarray:
    return TRAIN_IDS[super().mask(id)]


def read_tree(root: str | Path) -> Catalogue:
  """Reads the folder that holds leftImg8bit and gtFine.

  Raises: DataError naming the missing folder or mask.
  """
  root = Path(root)
  images, masks, roles = {}, {}, {'train': [], 'val': []}
  for role, ids in roles.items():
    for path in sorted((root / 'leftImg8bit' / role).glob('*/*_leftImg8bit.png')):
      id = path.name.removesuffix('_leftImg8bit.png')
      mask = root / _mask_name(path.relative_to(root).as_posix())
      images[id], masks[id] = str(path), str(mask)
      ids.append(id)
    if not ids:
      raise DataError(f'{root}/leftImg8bit/{role} holds no CITY/*_leftImg8bit.png; give the folder '
                      'that holds leftImg8bit and gtFine as data.dir.')
  lacking = [mask for mask in masks.values() if not Path(mask).is_file()]
  if lacking:
    raise DataError(f'{named(lacking)} does not exist; unpack '
                    f'{_ARCHIVES[1]} into {root}.')
  return Catalogue('cityscapes', CLASSES, PALETTE, tuple(roles['train']), tuple(roles['train']),
                   tuple(roles['val']), TreeReader(images, masks), checked=False)
