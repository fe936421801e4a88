"""Segments a folder of images of any sizes into masks and overlays."""

import csv
import dataclasses
import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gta_jax.data.files import (
  IMAGE_SUFFIXES,
  DataError,
  decode_image,
  decode_mask,
  image_size,
  read_bytes,
)
from gta_jax.data.listing import visible_files
from gta_jax.data.writing import replace_bytes
from gta_jax.evaluation.pictures import legend, overlay, write_image, write_mask
from gta_jax.evaluation.windows import Prediction
from gta_jax.inference import begun_prediction
from gta_jax.inference.model import Model, is_tiled
from gta_jax.training.logs import Progress

_SUFFIX = {'overlays': '.jpg', 'confidence': '.png', 'probabilities': '.npy'}
FOLDERS = tuple(_SUFFIX)  # of results beside the masks
AREAS = 'areas.csv'


class Outcome(NamedTuple):
  """written: paths of the masks. skipped: image, as find_images names it -> why."""

  written: list[Path]
  skipped: dict[str, str]


@dataclasses.dataclass(frozen=True)
class ImageReader:
  """Reads images alone, in any of IMAGE_SUFFIXES, as in training.

  Attributes:
    paths: id -> file.
    pixel_range: (black, white) of images of 16 bits; () refuses them.
  """

  paths: Mapping[str, Path]
  pixel_range: tuple[int, ...] = ()

  def size(self, id: str) -> tuple[int, int]:
    """(H,W) from the header. Raises DataError for a file that is no image."""
    return image_size(self.paths[id], self.paths[id])

  def image(self, id: str) -> np.ndarray:
    """uint8 [H,W,3] RGB. Raises DataError for a file that decode_image refuses."""
    path = str(self.paths[id])
    return decode_image(read_bytes(path), path, self.pixel_range)


def find_images(folder: Path, *, recursive: bool = False) -> dict[str, Path]:
  """Path without its suffix, in the folder -> file of the images there, by name.

  Args:
    folder: of images.
    recursive: whether folders in it are searched too; names that start with a dot never are.
  Raises: DataError for a folder that is missing or without images, and for two of one stem.
  """
  if not folder.is_dir():
    raise DataError(f'{folder} is not a folder; give one with images.')
  found: dict[str, Path] = {}
  for path in visible_files(folder, recursive=recursive):
    if path.suffix.lower() not in IMAGE_SUFFIXES:
      continue
    inside = path.relative_to(folder)
    id = inside.with_suffix('').as_posix()
    if id in found:
      raise DataError(
        f'{found[id].name} and {path.name} in {path.parent} would both be written as '
        f'{path.stem}.png; rename one.'
      )
    if recursive and inside.parts[0] in FOLDERS:
      raise DataError(f'{folder / inside.parts[0]} has the name of a folder of results; rename it.')
    found[id] = path
  if not found:
    remedy = '' if recursive else '; folders in it are searched with --recursive'
    raise DataError(f'{folder} holds no images{remedy}; known are {", ".join(IMAGE_SUFFIXES)}.')
  return found


def check_folders(
  images: Path, out: Path, *, recursive: bool = False, pixel_range: Sequence[int] = ()
) -> ImageReader:
  """A reader of the images; nothing is written. pixel_range: see ImageReader.

  Raises: DataError as find_images does, and for an `out` that is `images` or inside it, or that
    cannot be written.
  """
  reader = ImageReader(find_images(images, recursive=recursive), tuple(pixel_range))
  source, target = images.resolve(), out.resolve()
  if target.is_relative_to(source) or source in [target / name for name in FOLDERS]:
    raise DataError(
      f'out={out} would put results among the images of {images}; give a folder outside it.'
    )
  there = next(path for path in (target, *target.parents) if path.exists())
  if not there.is_dir() or not os.access(there, os.W_OK):
    raise DataError(
      f'out={out} cannot be written, as {there} is no folder or is read-only; give another one.')
  return reader


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
    ended: it goes on. KeyboardInterrupt says how many images are done; areas.csv holds these,
    whatever ended the work.
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
  if not going_on:
    begun_prediction.begin(out, settings)
  done = begun_prediction.done(out, reader.paths, results)
  areas = {id: _count(decode_mask(read_bytes(str(out / f'{id}.png')), id), model) for id in done}
  skipped: dict[str, str] = {}
  if overlays:
    write_image(legend_path, legend(model.classes, model.palette))
  try:
    with Progress(len(reader.paths), start_step=len(done), unit='image') as progress:
      def skip(id: str, error: DataError) -> None:
        skipped[id] = str(error)
        progress.advance()

      for id, image, prediction in _predict(model, network, reader, done, skip):
        if probabilities:
          _write_array(out / 'probabilities' / f'{id}.npy', model.probabilities(
            image, network=network).astype(np.float16))
        _write_pictures(out, id, image, prediction, model.palette, wanted)
        areas[id] = _count(prediction.labels, model)
        if id not in done:  # Else it came along with its batch.
          progress.advance()
          progress.show({})
  except KeyboardInterrupt:
    raise KeyboardInterrupt(
      f'{len(areas)} of {len(reader.paths)} images are done, see {out / AREAS}; the same command '
      f'{"without --overwrite " if overwrite else ""}goes on.') from None
  finally:
    replace_bytes(out / AREAS, _areas_csv(model.classes, areas).encode())
  begun_prediction.end(out)
  return Outcome(sorted(out / f'{id}.png' for id in areas), dict(sorted(skipped.items())))


def _results(out: Path, id: str, wanted: Mapping[str, bool]) -> list[Path]:
  """What is written of an image."""
  return [out / f'{id}.png', *(
    out / folder / f'{id}{suffix}' for folder, suffix in _SUFFIX.items() if wanted[folder])]


def _refuse_to_overwrite(paths: Sequence[Path]) -> None:
  if there := [path for path in paths if path.exists()]:
    raise DataError(f'{there[0]} and {len(there) - 1} more results are there already; give '
                    'another --out, or --overwrite to replace them.')


def _count(labels: np.ndarray, model: Model) -> np.ndarray:
  """The pixels of each class."""
  return np.bincount(labels.ravel(), minlength=len(model.classes))


def _chunks(
  reader: ImageReader, batch_size: int, skip: Callable[[str, DataError], None]
) -> list[list[str]]:
  """Ids by size, as many as a batch at a time; a large image stands alone."""
  sizes = {}
  for id in reader.paths:
    try:
      sizes[id] = reader.size(id)
    except DataError as error:
      skip(id, error)
  chunks: list[list[str]] = []
  for id in sorted(sizes, key=lambda id: (sizes[id], id)):
    if not chunks or len(chunks[-1]) == batch_size or is_tiled(sizes[id]):
      chunks.append([])
    chunks[-1].append(id)
  return chunks


def _predict(
  model: Model, network: str, reader: ImageReader, done: set[str],
  skip: Callable[[str, DataError], None],
) -> Iterator[tuple[str, np.ndarray, Prediction]]:
  """(id, image, prediction) of every image that can be read.

  Batches of nothing but `done` are left out; the others are what they are without it, to the bit.
  """
  chunks = _chunks(reader, model.batch_size, skip)
  for chunk in _read_ahead(reader, [ids for ids in chunks if not done.issuperset(ids)], skip):
    ids = list(chunk)
    for index, prediction in model.label(list(chunk.values()), network=network):
      yield ids[index], chunk[ids[index]], prediction


def _read_ahead(
  reader: ImageReader, chunks: Sequence[Sequence[str]], skip: Callable[[str, DataError], None]
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
