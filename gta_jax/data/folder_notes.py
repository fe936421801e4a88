"""What is odd about a user's folder and can still be meant, as sentences."""

import collections
import contextlib
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence

from gta_jax.data.files import open_image
from gta_jax.data.mask_code import MaskCode, class_of_white
from gta_jax.data.masks import MASK_SUFFIXES

# Said with their number where they lie among the images; others, such as .txt, are no images.
OTHER_IMAGES = ('.gif', '.jfif', '.jp2', '.jxl', '.avif', '.heic', '.heif', '.ppm', '.pgm', '.pbm',
                '.psd', '.svg', '.exr', '.hdr', '.npy', '.npz', '.dcm', '.nii', '.czi', '.lif',
                '.nd2', '.raw', '.dng', '.cr2', '.nef', '.arw')
_EXIF_ORIENTATION = 0x0112


def of_unlisted(
  images: Collection[str], others: Mapping[str, str], listed: set[str], masks: Collection[str], *,
  used: bool,
) -> list[str]:
  """What becomes of images that no list names.

  Args:
    images: their ids.
    others: id -> path, of files under other suffixes.
    listed: ids that a list names.
    masks: ids that have one.
    used: whether the others are unlabelled images.
  """
  notes = []
  if unlisted := set(images) - listed:
    masked = len(unlisted.intersection(masks))
    notes.append(f'{len(unlisted)} images are in no list; ' + (
      'they are used as unlabelled ones: list what must stay out in splits/test.txt.'
      if used else 'they are not used, as there is a list unlabeled.txt.') + (
      f' {masked} of them have a mask, which trains nothing.' if masked and used else ''))
  if found := other_images(others.values()):
    notes.append(f'Not read below images/: {found}; convert them to use them.')
  return notes


def of_masks(
  images: Collection[str], masks: Mapping[str, str], others: Mapping[str, str]
) -> list[str]:
  """Masks that belong to no image or cannot be read, whose images train as unlabelled ones.

  Args:
    images: their ids.
    masks: id -> path, of those that can be read.
    others: id -> path, of files under other suffixes.
  """
  notes = []
  if strange := sorted(masks.keys() - set(images)):
    notes.append(f'{len(strange)} masks have the name of no image, such as {masks[strange[0]]}: a '
                 'mask is called as its image is (--mode convert also takes a _mask behind it).')
  if unread := sorted(id for id in others if id in images):
    notes.append(f'{len(unread)} masks are not read, such as {others[unread[0]]}; convert them to '
                 f'one of {", ".join(MASK_SUFFIXES)} (not to .jpg, which changes ids).')
  return notes


def other_images(paths: Iterable[str]) -> str:
  """How many of the files are of which of OTHER_IMAGES, such as '3 .heic'; '' where none is."""
  counts = collections.Counter(
    suffix for path in paths if (suffix := pathlib.PurePath(path).suffix.lower()) in OTHER_IMAGES)
  return ', '.join(f'{count} {suffix}' for suffix, count in sorted(counts.items()))


def of_bits(paths: Sequence[str], code: MaskCode, classes: Sequence[str]) -> list[str]:
  """Which class white stands for, where masks of two classes have one bit a pixel."""
  def has_one_bit(path: str) -> bool:
    # Pillow raises almost anything on damaged bytes; `check` names them.
    with contextlib.suppress(Exception), open_image(path, path) as image:
      return image.mode == '1'
    return False

  if len(classes) != 2 or not any(map(has_one_bit, paths)):
    return []
  return [f'Masks have one bit a pixel: white is {classes[class_of_white(code.palette)]!r}.']


def turned_images(paths: Sequence[str]) -> list[str]:
  """Those that their EXIF data want to be shown turned; everything here reads them as stored."""
  turned = []
  for path in paths:
    # Pillow raises almost anything on damaged bytes; `check` names them.
    with contextlib.suppress(Exception), open_image(path, path) as image:
      # Pillow decodes a whole PNG for it; TIFFs are refused where they have one.
      if image.format == 'JPEG' and image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        turned.append(path)
  return turned


def of_turned(paths: Sequence[str]) -> list[str]:
  """That images with masks are stored turned, which programs that draw masks follow or not."""
  if not (turned := turned_images(paths)):
    return []
  return [f'{len(turned)} of {len(paths)} images with masks are to be shown turned (EXIF), such as '
          f'{turned[0]}. They are read as they are stored: see that their masks are not turned.']
