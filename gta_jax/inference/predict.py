"""Segments a folder of images of any sizes into masks and overlays."""

import contextlib
import csv
import io
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gta_jax.data.files import DataError, decode_mask, read_bytes
from gta_jax.data.listing import named
from gta_jax.data.masks import write_mask
from gta_jax.data.writing import replace_bytes
from gta_jax.evaluation.pictures import legend, overlay, write_image
from gta_jax.evaluation.windows import Prediction
from gta_jax.inference import begun_prediction
from gta_jax.inference.image_folder import FOLDERS, ImageFolder, check_folders
from gta_jax.inference.model import Model
from gta_jax.inference.tiles import Size
from gta_jax.training.logs import Progress

_SUFFIX = dict(zip(FOLDERS, ('.jpg', '.png', '.npy'), strict=True))
AREAS = 'areas.csv'


class Outcome(NamedTuple):
  """written: paths of the masks. skipped: image, as find_images names it -> why."""

  written: list[Path]
  skipped: dict[str, str]


def predict_folder(
  model: Model,
  *,
  images: Path,
  out: Path,
  network: str | None = None,
  recursive: bool = False,
  overlays: bool = True,
  confidence: bool = False,
  probabilities: bool = False,
  overwrite: bool = False,
) -> Outcome:
  """Segments the images of a folder; what cannot be read is left out and told.

  Writes out/STEM.png (palette PNG of class ids, of the image's size) and out/areas.csv (pixels of
  each class); out/overlays/STEM.jpg and legend.png; out/confidence/STEM.png (8-bit grey, the
  largest probability of each pixel times 255); out/probabilities/STEM.npy (float16 [H,W,K]). STEM
  of an image in a sub-folder has that folder in front. Every file is whole or not there.

  Args:
    model: see inference.model.
    images: folder of images.
    out: folder for the results, made if missing; not `images` nor inside it.
    network: one of the model's; the first by default.
    recursive: whether folders in `images` are searched.
    overlays: whether to write these.
    confidence: the same.
    probabilities: the same; they take 2 K bytes a pixel, and the network runs once more.
    overwrite: whether results that are there already are replaced.
  Returns: what is written, and what is not.
  Raises: DataError before any work for folders that cannot be used (see check_folders), an unknown
    network, and results that are there already, unless the same prediction has begun there and not
    ended: it goes on; or where another process predicts there. KeyboardInterrupt says how many
    images are done; areas.csv holds these, whatever was raised.
  """
  images, out = Path(images), Path(out)
  network = model.check_network(network)
  reader = check_folders(images, out, recursive=recursive, pixel_range=model.pixel_range)
  wanted = dict(zip(FOLDERS, (overlays, confidence, probabilities), strict=True))
  legend_path = out / 'overlays' / 'legend.png'
  results = {id: _results(out, id, wanted) for id in reader.paths}
  settings = begun_prediction.settings(
    model, network, images=str(images.resolve()), recursive=recursive, **wanted)
  going_on = begun_prediction.is_begun(out, settings) and not overwrite
  if not (overwrite or going_on):
    _refuse_to_overwrite([out / AREAS, *([legend_path] if overlays else []),
                          *itertools.chain(*results.values())])
  (out / 'overlays' if overlays else out).mkdir(parents=True, exist_ok=True)
  with begun_prediction.recorded(out, settings, anew=not going_on):
    if overlays:
      write_image(legend_path, legend(model.classes, model.palette))
    done = begun_prediction.done(out, reader.paths, results) if going_on else set()
    areas = _areas(out, done, model)
    try:
      skipped = _predict_all(model, network, reader, out, wanted, areas)
    except KeyboardInterrupt as error:
      raise type(error)(
        f'{len(areas)} of {len(reader.paths)} images are done, see {out / AREAS}; the same command '
        f'{"without --overwrite " if overwrite else ""}goes on.') from None
    finally:
      replace_bytes(out / AREAS, _areas_csv(model.classes, areas).encode())
  return Outcome(sorted(out / f'{id}.png' for id in areas), dict(sorted(skipped.items())))


def _areas(out: Path, done: Collection[str], model: Model) -> dict[str, np.ndarray]:
  """The pixels of each class in masks that are there; a damaged one is not, nor one that holds
  something else and so is not of this model."""
  areas = {}
  for id in done:
    path = str(out / f'{id}.png')
    with contextlib.suppress(DataError):
      counts = _count(decode_mask(read_bytes(path), path), model)
      if len(counts) == len(model.classes):
        areas[id] = counts
  return areas


def _predict_all(
  model: Model, network: str, reader: ImageFolder, out: Path, wanted: Mapping[str, bool],
  areas: dict[str, np.ndarray],
) -> dict[str, str]:
  """Writes the results of all images that `areas` has not, adds theirs, and returns the skipped."""
  skipped: dict[str, str] = {}
  done = set(areas)
  with Progress(len(reader.paths), start_step=len(done), unit='image') as progress:
    def skip(id: str, error: DataError) -> None:
      skipped[id] = str(error)
      progress.advance()

    for id, image, prediction in _predict(model, network, reader, done, skip):
      if wanted['probabilities']:
        _write_array(out / 'probabilities' / f'{id}.npy', model.probabilities(
          image, network=network).astype(np.float16))
      _write_pictures(out, id, image, prediction, model.palette, wanted)
      areas[id] = _count(prediction.labels, model)
      if id not in done:  # Else it came along with its batch.
        progress.advance()
        progress.show({})
  return skipped


def _results(out: Path, id: str, wanted: Mapping[str, bool]) -> list[Path]:
  """What is written of an image."""
  return [out / f'{id}.png', *(
    out / folder / f'{id}{suffix}' for folder, suffix in _SUFFIX.items() if wanted[folder])]


def _refuse_to_overwrite(paths: Sequence[Path]) -> None:
  if there := [path for path in paths if path.exists()]:
    raise DataError(f'{named(there)} of the results is there already; give '
                    'another --out, or --overwrite to replace them.')


def _count(labels: np.ndarray, model: Model) -> np.ndarray:
  """The pixels of each class."""
  return np.bincount(labels.ravel(), minlength=len(model.classes))


def _chunks(
  reader: ImageFolder, model: Model, skip: Callable[[str, DataError], None]
) -> list[list[str]]:
  """Ids by size, as many as a batch at a time; a large image stands alone.

  Those of a chunk share a padded size, as batches do, which are filled up.
  """
  sizes = {}
  for id in reader.paths:
    try:
      sizes[id] = reader.size(id)
    except DataError as error:
      skip(id, error)
  chunks: list[list[str]] = []
  padded: Size | None = None
  for id in sorted(sizes, key=lambda id: (model.padded(sizes[id]), sizes[id], id)):
    before, padded = padded, model.padded(sizes[id])
    full = not chunks or len(chunks[-1]) == model.batch_size
    if full or padded != before or model.is_tiled(sizes[id]):
      chunks.append([])
    chunks[-1].append(id)
  return chunks


def _predict(
  model: Model, network: str, reader: ImageFolder, done: set[str],
  skip: Callable[[str, DataError], None],
) -> Iterator[tuple[str, np.ndarray, Prediction]]:
  """(id, image, prediction) of every image that can be read.

  Batches of nothing but `done` are left out; the others are what they are without it, to the bit.
  """
  chunks = _chunks(reader, model, skip)
  for chunk in _read_ahead(reader, [ids for ids in chunks if not done.issuperset(ids)], skip):
    ids = list(chunk)
    for index, prediction in model.label(list(chunk.values()), network=network):
      yield ids[index], chunk[ids[index]], prediction


def _read_ahead(
  reader: ImageFolder, chunks: Sequence[Sequence[str]], skip: Callable[[str, DataError], None]
) -> Iterator[dict[str, np.ndarray]]:
  """The images of each chunk, read while the one before is in use.

  Raises: what is no DataError, such as a lack of memory, after the other images of its chunk.
  """
  def gather(futures: Mapping[str, Future]) -> dict[str, np.ndarray]:
    for id, future in futures.items():
      if isinstance(error := future.exception(), DataError):
        skip(id, error)
    return {id: future.result() for id, future in futures.items() if not future.exception()}

  waiting: dict[str, Future] = {}
  with ThreadPoolExecutor(4) as pool:
    for chunk in (*chunks, ()):
      ahead = {id: pool.submit(reader.image, id) for id in chunk}
      if found := gather(waiting):
        yield found
      for future in waiting.values():  # Neither seen as a mask nor told as skipped otherwise.
        if not isinstance(future.exception(), DataError):
          future.result()
      waiting, found = ahead, {}


def _write_pictures(
  out: Path, id: str, image: np.ndarray, prediction: Prediction, palette: np.ndarray,
  wanted: Mapping[str, bool],
) -> None:
  """The mask of an image comes last: where it is, the rest is."""
  (out / id).parent.mkdir(parents=True, exist_ok=True)
  for folder in ('overlays', 'confidence'):
    if wanted[folder]:
      path = out / folder / f'{id}{_SUFFIX[folder]}'
      path.parent.mkdir(parents=True, exist_ok=True)
      write_image(path, overlay(image, prediction.labels, palette) if folder == 'overlays'
                  else np.round(255 * prediction.confidence).astype(np.uint8))
  write_mask(out / f'{id}.png', prediction.labels, palette)


def _write_array(path: Path, array: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  file = io.BytesIO()
  np.save(file, array)
  replace_bytes(path, file.getbuffer())


def _areas_csv(classes: Sequence[str], areas: Mapping[str, np.ndarray]) -> str:
  """image, pixels, and the pixels of each class; a row an image."""
  file = io.StringIO()
  rows = csv.writer(file, lineterminator='\n')
  rows.writerow(['image', 'pixels', *classes])
  for id, counts in sorted(areas.items()):
    rows.writerow([id, counts.sum(), *counts])
  return file.getvalue()
