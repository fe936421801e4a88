"""What --mode label_next writes: images that are asked for, masks to begin from, and lists.

gta_jax/inference/acquisition.py chooses the images.
"""

import csv
import dataclasses
import io
import itertools
import shlex
from pathlib import Path

import cv2
import numpy as np

from gta_jax.data.class_list import Classes, write_classes
from gta_jax.data.files import IGNORE
from gta_jax.data.folder import FolderReader
from gta_jax.data.mask_code import IGNORE_COLOUR
from gta_jax.data.masks import write_mask
from gta_jax.data.sources import Dataset
from gta_jax.data.writing import check_writable, is_of_data, replace_bytes
from gta_jax.evaluation.pictures import UNCERTAIN_COLOUR, write_image
from gta_jax.inference.acquisition import Ranking
from gta_jax.inference.model import Model
from gta_jax.training.workdir_files import write_lists

FILE = 'label_next.csv'
_EARLIER, _THUMBNAILS = 'earlier', 'thumbnails'
_OTHERS = ('images', 'masks', _THUMBNAILS, 'splits', 'classes.txt')  # beside the table
_THUMBNAIL = 320  # pixels
_NAME = 50  # letters of an id in a thumbnail's name, of up to four bytes each


def write(
  ranking: Ranking, model: Model, dataset: Dataset, out: Path, *, network: str | None = None,
  overwrite: bool = False,
) -> Path:
  """Writes what a labelling tool needs, and lists for the run after it.

  OUT/images/ID.png and OUT/masks/ID.png (palette PNG, the network's labels, 255 where it is
  uncertain), OUT/classes.txt, OUT/thumbnails (the uncertain pixels red), and OUT/splits/N with the
  labelled images and these, N of them, as data.split_lists reads them. OUT/label_next.csv comes
  last: where it is, the rest is.

  Args:
    ranking: of `rank`.
    model: that predicts.
    dataset: that was ranked.
    out: folder, made if missing.
    network: see `rank`.
    overwrite: whether results of an earlier ranking give way to these; they go to OUT/earlier, or
      earlier-2 where that is there, and so on.
  Returns: the folder of the lists.
  """
  check_out(out, overwrite=overwrite)
  _set_aside(out)
  rows = [['rank', 'image', 'uncertainty', 'distance', 'thumbnail']]
  for number, id in enumerate(ranking.ids):
    image = dataset.reader.image(id)
    (_, found), = model.label([image], network=network)
    uncertain = found.confidence < ranking.threshold
    # The end of the id: with a number in front, all of it may be too long for a file's name.
    thumbnail = f'thumbnails/{number + 1:03}_{id.replace("/", "_")[-_NAME:]}.jpg'
    for path in (out / 'images' / f'{id}.png', out / 'masks' / f'{id}.png', out / thumbnail):
      path.parent.mkdir(parents=True, exist_ok=True)
    write_image(out / 'images' / f'{id}.png', image)
    write_image(out / thumbnail, _marked(image, uncertain))
    write_mask(out / 'masks' / f'{id}.png', np.where(uncertain, IGNORE, found.labels).astype(
      np.uint8), model.palette)
    rows.append([str(number + 1), id, f'{ranking.uncertainty[number]:.4f}',
                 f'{ranking.distance[number]:.4f}', thumbnail])
  write_classes(out / 'classes.txt', Classes(model.classes, model.palette, (IGNORE_COLOUR,)))
  together = (*dataset.labelled, *ranking.ids)
  taken = set(together)
  rest = tuple(id for id in dataset.unlabelled if id not in taken)
  write_lists(dataclasses.replace(dataset, labelled=together, unlabelled=rest), out / 'splits',
              split=str(len(together)))
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(rows)
  replace_bytes(out / FILE, text.getvalue().encode())
  return out / 'splits' / str(len(together))


def _set_aside(out: Path) -> None:
  """Moves an earlier ranking away, of which the table is missing where it was interrupted: masks of
  two rankings together would all be copied."""
  if not ((out / FILE).is_file() or (out / _THUMBNAILS).is_dir()):
    return
  numbers = itertools.count(2)
  folder = out / _EARLIER
  while folder.exists():
    folder = out / f'{_EARLIER}-{next(numbers)}'
  folder.mkdir()
  for name in (FILE, *_OTHERS):  # The table first: where it is, the rest is.
    if (out / name).exists():
      (out / name).rename(folder / name)


def copying_advice(dataset: Dataset, folder: Path, out: Path) -> tuple[str, Path]:
  """How the masks of OUT come into those of a data folder, and the folder to train on then.

  Ids cannot be mixed with grey levels of classes, such as 0 and 255: these become ids first, in a
  folder of their own, so that no mask is overwritten.
  """
  if not (isinstance(dataset.reader, FolderReader) and dataset.reader.code.greys):
    return f'Then copy them into {folder / "masks"}', folder
  named = folder if folder.name else folder.resolve()
  new = named.with_name(f'{named.name}-ids')
  command = shlex.join(['gta-jax', '--mode', 'convert', '--source', str(folder), '--format',
                        'masks', '--out', str(new)])
  return (f'The masks in {folder / "masks"} hold grey levels of classes, those in {out / "masks"} '
          'ids, and 255 where nothing is known; they cannot be mixed. So make a folder of ids:\n'
          f'{command}\nThen copy them into {new / "masks"}'), new


def check_out(out: Path, *, overwrite: bool, data: Path | None = None) -> None:
  """Raises ValueError for a folder that may hold corrected masks, that cannot be written, or where
  classes, lists and images of the data would be written over.

  data: the folder of the data, if they lie in one.
  """
  check_writable(out)
  if data is not None and (
      is_of_data(out, data) or data.resolve().is_relative_to(out.resolve())):
    raise ValueError(f'{out} is the folder of the data, around it, or one of its folders, whose '
                     'files would be taken for results; give another --out.')
  if not overwrite and out.is_dir() and any(out.iterdir()):
    raise ValueError(f'{out} holds files already, perhaps corrected masks; give another --out, or '
                     '--overwrite to replace them.')


def _marked(image: np.ndarray, uncertain: np.ndarray) -> np.ndarray:
  """A small picture with the uncertain pixels half red, at most _THUMBNAIL pixels a side."""
  factor = min(1.0, _THUMBNAIL / max(image.shape[:2]))
  size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
  small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  share = cv2.resize(uncertain.astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None]
  return np.round(small * (1 - share / 2) + np.array(UNCERTAIN_COLOUR) * share / 2).astype(
    np.uint8)
