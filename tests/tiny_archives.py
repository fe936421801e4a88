"""Archives of a few tiny images in the true layout of VOC 2012, SBD and Cityscapes."""

import io
import pathlib
import tarfile
import zipfile

import numpy as np
import scipy.io
from PIL import Image

from gta_jax.data.sources import default_palette

VOC_TRAIN = ('2007_000001', '2007_000002', '2008_000003')
VOC_VALIDATION = ('2007_000033', '2008_000047')  # of one size: one program evaluates both
# One id each is VOC training, VOC validation; the others have a mask from SBD alone.
SBD_TRAIN = ('2007_000002', '2007_000033', '2008_000101', '2008_000102')
SBD_VALIDATION = ('2008_000103', '2008_000104')
AUGMENTED = ('2007_000001', '2007_000002', '2008_000003', *SBD_TRAIN[2:], *SBD_VALIDATION)
CITIES = {'train': ('ulm_000001_000019', 'ulm_000002_000019', 'jena_000003_000019'),
          'val': ('bonn_000000_000019',)}
_EVERY_ID = sorted({*VOC_TRAIN, *VOC_VALIDATION, *SBD_TRAIN, *SBD_VALIDATION})


def size_of(id: str) -> tuple[int, int]:
  """(H,W) of an image; odd, and another for each id."""
  return 21 + 2 * (int(id[-3:]) % 7), 33


def jpeg(id: str) -> bytes:
  height, width = size_of(id)
  pixels = np.random.default_rng(int(id[-3:])).integers(0, 256, (height, width, 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, 'JPEG', quality=95)
  return out.getvalue()


def voc_mask(id: str) -> np.ndarray:
  """Classes 0, 1 and 20 with a border of 255."""
  mask = np.zeros(size_of(id), np.uint8)
  mask[4:10, 5:20], mask[12:, 8:12] = 1, 20
  mask[:, 15] = 255
  return mask


def sbd_mask(id: str) -> np.ndarray:
  """Another class than VOC's mask of the same id; SBD marks no borders."""
  mask = np.zeros(size_of(id), np.uint8)
  mask[3:9, 3:9] = 7
  return mask


def palette_png(mask: np.ndarray) -> bytes:
  image = Image.fromarray(mask)
  image.putpalette(default_palette(256).tobytes())
  out = io.BytesIO()
  image.save(out, 'PNG')
  return out.getvalue()


def grey_png(array: np.ndarray) -> bytes:
  out = io.BytesIO()
  Image.fromarray(array).save(out, 'PNG')
  return out.getvalue()


def voc_members() -> dict[str, bytes]:
  root = 'VOCdevkit/VOC2012'
  lists = {'train': VOC_TRAIN, 'val': VOC_VALIDATION}
  return (
    {f'{root}/ImageSets/Segmentation/{name}.txt': '\n'.join(ids).encode() + b'\n'
     for name, ids in lists.items()}
    | {f'{root}/JPEGImages/{id}.jpg': jpeg(id) for id in (*_EVERY_ID, '2009_000500')}
    | {f'{root}/SegmentationClass/{id}.png': palette_png(voc_mask(id))
       for id in VOC_TRAIN + VOC_VALIDATION})


def sbd_members() -> dict[str, bytes]:
  root, members = 'benchmark_RELEASE/dataset', {}
  for id in SBD_TRAIN + SBD_VALIDATION:
    out = io.BytesIO()
    scipy.io.savemat(out, {'GTcls': {'Segmentation': sbd_mask(id), 'CategoriesPresent': [7]}})
    members[f'{root}/cls/{id}.mat'] = out.getvalue()
  return members | {f'{root}/train.txt': '\n'.join(SBD_TRAIN).encode(),
                    f'{root}/val.txt': '\n'.join(SBD_VALIDATION).encode() + b'\n'}


def label_ids() -> np.ndarray:
  """Every Cityscapes label id from 0 to 33, uint8 [17,34]."""
  return np.tile(np.arange(34, dtype=np.uint8), (17, 1))


def cityscapes_members() -> tuple[dict[str, bytes], dict[str, bytes]]:
  images, masks = {}, {}
  for role, ids in CITIES.items():
    for id in ids:
      city = id.split('_')[0]
      pixels = np.random.default_rng(0).integers(0, 256, (17, 34, 3), np.uint8)
      images[f'leftImg8bit/{role}/{city}/{id}_leftImg8bit.png'] = grey_png(pixels)
      masks[f'gtFine/{role}/{city}/{id}_gtFine_labelIds.png'] = grey_png(label_ids())
      masks[f'gtFine/{role}/{city}/{id}_gtFine_color.png'] = grey_png(pixels)
  return images | {'README': b'text', 'leftImg8bit/test/a/a_1_2_leftImg8bit.png': b''}, masks


def write_tar(path: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w:gz' if path.suffix == '.tgz' else 'w') as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


def write_zip(path: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return path


def write_tree(root: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
  for name, data in members.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return root
