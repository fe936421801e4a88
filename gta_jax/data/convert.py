"""Other layouts into the folder layout: VOC's, COCO's, and a pair of folders."""

import dataclasses
import errno
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath

from gta_jax.data import convert_coco, convert_masks
from gta_jax.data.class_list import Classes, read_classes, write_classes
from gta_jax.data.convert_masks import Item, Source
from gta_jax.data.files import DataError, FileReader, check_mask_size
from gta_jax.data.folder_notes import of_turned
from gta_jax.data.masks import write_mask
from gta_jax.data.numbering import Numbering, number

FORMATS: dict[str, Callable[[Path, Classes | None], Source]] = {
  'voc': convert_masks.read_voc, 'coco': convert_coco.read_coco, 'masks': convert_masks.read_pair}
# What disks say that have no symbolic links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_HELD_OUT = ('val', 'test')
_LABELLED, _UNLABELLED = 'labeled', 'unlabeled'


@dataclasses.dataclass(frozen=True)
class Report:
  """What a conversion did.

  Attributes:
    images: how many there are now.
    masks: the same.
    classes: by id.
    lists: how many ids each list below splits/ has.
    left_out: file -> why.
    notes: sentences about what was decided.
    unlisted: images that no list has.
  """

  images: int
  masks: int
  classes: tuple[str, ...]
  lists: Mapping[str, int]
  left_out: Mapping[str, str]
  notes: tuple[str, ...]
  unlisted: int

  def text(self) -> str:
    """A summary, and a line for every file left out."""
    lines = [f'{self.images} images, {self.masks} masks, {len(self.classes)} classes: '
             f'{", ".join(self.classes)}', *self.notes]
    lines += [f'splits/{name}.txt: {count} images' for name, count in self.lists.items()]
    if self.unlisted and self.lists:
      lines.append(f'{self.unlisted} images are in no list, and are used for training.')
    if 'val' not in self.lists:
      lines.append('splits/val.txt is missing: write the ids to evaluate on, one a line.')
    lines += [f'{len(self.left_out)} files left out'] if self.left_out else []
    lines += [f'  {name}: {reason}' for name, reason in sorted(self.left_out.items())]
    return '\n'.join(lines) + '\n'


def convert(
  source: Path, out: Path, *, layout: str, classes: Path | None = None, copy: bool = False
) -> Report:
  """Writes a data folder for read_folder; the report lies in it as conversion.txt.

  Args:
    source: folder in the other layout; nothing in it changes.
    out: the new folder, which must not exist or be empty. It appears when it is whole.
    layout: a key of FORMATS.
    classes: a classes.txt with names and colours, instead of SOURCE's; of voc and masks.
    copy: whether images are copied; they are symbolic links otherwise.
  Raises: DataError for a source that is not in this layout, an `out` that holds something, and
    where nothing is left.
  """
  source, out = Path(source), Path(out)
  if layout not in FORMATS:
    raise DataError(f'format={layout!r} is unknown; use one of {", ".join(FORMATS)}.')
  if not source.is_dir():
    raise DataError(f'{source} is not a folder; give one with images and masks.')
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise DataError(f'{out} is there already; give a folder that does not exist.')
  if out.resolve() == Path.cwd():
    raise DataError(f'{out} is the folder that you are in; give one that does not exist.')
  if out.resolve().is_relative_to(source.resolve()):
    raise DataError(f'{out} lies in {source}; give a folder outside it.')
  found = FORMATS[layout](source, classes and read_classes(classes))
  partial = out.with_name(f'.{out.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)
  try:
    report = _write(found, partial, copy=copy)
    if out.exists():
      out.rmdir()
    partial.rename(out)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return report


def _write(found: Source, out: Path, *, copy: bool) -> Report:
  left_out = dict(found.left_out)
  kept = [item for item in found.items if _is_usable(item, left_out)]
  masked = [item for item in kept if item.mask]
  numbering = number(found, [item for item in masked if item.mask], left_out)
  (out / 'masks').mkdir(parents=True)
  masks = set()
  for item in masked:
    reason = _write_mask(item, numbering, out / 'masks' / f'{item.id}.png')
    if reason:
      left_out[f'mask of {item.id}'] = reason
    else:
      masks.add(item.id)
  if not masks:
    why = [reason if name in reason else f'{name}: {reason}' for name, reason in left_out.items()]
    raise DataError('No image with a mask could be converted: ' + '; '.join(
      one.rstrip('.') for one in why[:3] or ['no image has a mask']) + '.')
  held_out = {id for name in _HELD_OUT for id in found.lists.get(name, ())} - masks
  for item in kept:
    if item.id in held_out:
      left_out[str(item.image)] = (
        'val.txt or test.txt has it, but there is no mask to score it by; it must not train either')
    else:
      _place(item, out / 'images' / f'{item.id}{item.image.suffix.lower()}', copy=copy)
  usable = {item.id for item in kept} - held_out
  lists = _write_lists(found, usable, masks, out / 'splits', left_out)
  write_classes(out / 'classes.txt', numbering.classes)
  _check_classes(out / 'classes.txt', numbering.classes)
  turned = of_turned([str(item.image) for item in masked if item.id in masks])
  report = Report(
    len(usable), len(masks), numbering.classes.names, lists, left_out,
    (*numbering.notes, *turned), len(usable.difference(*found.lists.values())))
  (out / 'conversion.txt').write_text(report.text(), encoding='utf-8')
  return report


def _check_classes(path: Path, classes: Classes) -> None:
  """Raises DataError for names that a classes.txt cannot hold."""
  try:
    read = read_classes(path).names
  except DataError as error:
    raise DataError(
      f'The names of the classes make no classes.txt; rename them. {error}') from error
  changed = [f'{one!r} would be {other!r}' for one, other in zip(classes.names, read, strict=False)
             if one != other]
  if changed or len(read) != len(classes.names):
    raise DataError('The names of the classes make no classes.txt; rename them: '
                    f'{"; ".join(changed[:3]) or "one is left out"}.')


def _is_usable(item: Item, left_out: dict[str, str]) -> bool:
  try:
    _size(item)
  except DataError as error:
    left_out[str(item.image)] = str(error)
    return False
  return True


def _size(item: Item) -> tuple[int, int]:
  """(H,W) of an image. Raises DataError for what cannot be read; 16 bits can, by any range."""
  return FileReader({item.id: str(item.image)}, {}, (0, 2**16 - 1)).size(item.id)


def _write_mask(item: Item, numbering: Numbering, path: Path) -> str | None:
  """Writes a mask; returns why it was left out, or None."""
  try:
    ids = numbering.ids(item)
    check_mask_size(ids.shape, _size(item), 'it', 'its image')
  except DataError as error:
    return str(error)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_mask(path, ids, numbering.classes.palette)
  return None


def _place(item: Item, path: Path, *, copy: bool) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  if copy:
    shutil.copyfile(item.image, path)
    return
  try:
    path.symlink_to(item.image.resolve())
  except OSError as error:
    if error.errno not in _NO_LINKS:
      raise
    raise DataError(f'{path.parent} cannot hold symbolic links ({error.strerror}), as on disks '
                    'formatted for Windows; add --copy.') from error


def _write_lists(
  found: Source, usable: Collection[str], masks: Collection[str], folder: Path,
  left_out: dict[str, str],
) -> dict[str, int]:
  folder.mkdir()
  counts = {}
  for name, listed in found.lists.items():
    ids = [id for id in dict.fromkeys(listed) if id in usable]
    if PurePosixPath(name).name == _LABELLED:
      left_out |= {f'{id} of {name}.txt': 'it has no mask' for id in ids if id not in masks}
      ids = [id for id in ids if id in masks]
    if ids or PurePosixPath(name).name == _UNLABELLED:  # An empty one says that there are none.
      path = folder / f'{name}.txt'
      path.parent.mkdir(exist_ok=True)
      path.write_text(''.join(f'{id}\n' for id in ids), encoding='utf-8')
      counts[name] = len(ids)
  return counts
