"""What a pixel classifier makes of the same masks: a random forest on filters of each pixel."""

import concurrent.futures
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from gta_jax.data import sources
from gta_jax.data.files import IGNORE
from gta_jax.data.pixel_features import REACH, pixel_features
from gta_jax.data.sources import Dataset
from gta_jax.data.splits import ids_sha256
from gta_jax.data.writing import check_writable, replace_text
from gta_jax.evaluation.metrics import Scores
from gta_jax.evaluation.scores import Evaluation
from gta_jax.inference import run_data
from gta_jax.inference.tiles import Tile, tiles_of
from gta_jax.training import config_rules, datasets
from gta_jax.training.finished_run import read_run
from gta_jax.training.logs import note

_PIXELS = 60_000  # that the forest learns from, of all labelled images together
_TREES = 100
_THREADS = 4  # that label images: features of a tile take 300 bytes a pixel
_TILE = 1024  # side of the parts in which an image is looked at, in pixels
_NAME = 'baseline'


def run_baseline(config: ml_collections.ConfigDict | None, workdir: Path) -> dict[str, Any]:
  """Fits the classifier on the labelled masks, scores whole validation images, and writes
  WORKDIR/baseline.json.

  Args:
    config: of the data; None for those of the run in `workdir`, as it has seen them.
    workdir: is made if it is missing.
  Returns: what the file holds: method, seed, pixels (learnt from), validation_sha256, the ids,
    the scores as in results.json, and confusions, [N,K,K] counts in the ids' order.
  Raises: ValueError for a config, DataError for data, that cannot be used, or for no run.
  """
  if config is None:
    config, described = read_run(workdir)
    dataset = run_data.make_dataset(workdir, config, config, described['classes'])
  else:
    config_rules.check(config)
    dataset = datasets.make_dataset(config)
  dataset = dataclasses.replace(dataset, unlabelled=())  # Nothing reads these here.
  sources.check_classes(dataset, sources.check(dataset))
  check_writable(workdir, '--workdir')
  forest, grey, pixels = _fit(dataset, config.seed)
  confusions = []

  def count(id: str) -> np.ndarray:
    labels = _label(forest, dataset.reader.image(id), grey=grey)
    return _count(labels, dataset.reader.mask(id), len(dataset.classes))

  with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as pool:
    for counts in pool.map(count, dataset.validation):
      confusions.append(counts)
      if len(confusions) % 20 == 0:
        note(f'{len(confusions)} of {len(dataset.validation)} validation images are scored')
  scores = Scores.from_confusion(np.sum(confusions, 0))
  plain = Evaluation({_NAME: scores}, {}).plain(dataset.classes)[_NAME]
  result = {
    'method': f'random forest of {_TREES} trees on filters of each pixel', 'seed': config.seed,
    'labelled_sha256': ids_sha256(dataset.labelled), 'pixels': pixels,
    'validation_sha256': ids_sha256(dataset.validation), 'ids': list(dataset.validation),
    'scores': plain, 'confusions': np.array(confusions).tolist()}
  workdir.mkdir(parents=True, exist_ok=True)
  replace_text(workdir / 'baseline.json', json.dumps(result) + '\n')
  return result


def _label(forest: Any, image: np.ndarray, *, grey: bool) -> np.ndarray:
  """The forest's class of every pixel, uint8 [H,W]."""
  labels = np.empty(image.shape[:2], np.uint8)
  for tile in _tiles(image):
    features = pixel_features(image[tile.seen], grey=grey)[tile.inner]
    labels[tile.kept] = forest.predict(
      features.reshape(-1, features.shape[-1])).reshape(features.shape[:2])
  return labels


def _tiles(image: np.ndarray) -> Iterator[Tile]:
  """Features take 300 bytes a pixel on their way; those of an image of 24 megapixels 8 GB."""
  return tiles_of(image.shape[:2], _TILE, 2 * REACH)


def _features_at(image: np.ndarray, places: np.ndarray, *, grey: bool) -> np.ndarray:
  """float32 [n,F] at n places of the flat image, one at least."""
  rows, columns = np.divmod(places, image.shape[1])
  found, where = [], []
  for tile in _tiles(image):
    down, across = tile.kept
    inside = np.flatnonzero((rows >= down.start) & (rows < down.stop) &
                            (columns >= across.start) & (columns < across.stop))
    if len(inside):
      features = pixel_features(image[tile.seen], grey=grey)[tile.inner]
      found.append(features[rows[inside] - down.start, columns[inside] - across.start])
      where.append(inside)
  return np.concatenate(found)[np.argsort(np.concatenate(where))]


def _count(labels: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
  """int64 [K,K], truth by row; without jax, which would take most of a GPU for it."""
  known = mask != IGNORE
  pairs = classes * mask[known].astype(np.int64) + labels[known]
  return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _fit(dataset: Dataset, seed: int) -> tuple[Any, bool, int]:
  """The forest, whether it looks at grey levels alone, and how many pixels it learnt from."""
  from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415  Nothing else needs it.

  # One image at a time: those of many megapixels would not fit together.
  reader = dataset.reader
  grey = all(_is_grey(reader.image(id)) for id in dataset.labelled)
  chosen = _choose(dataset.labelled, reader.mask, len(dataset.classes), seed)
  features, labels = [], []
  for id, where in zip(dataset.labelled, chosen, strict=True):
    if len(where):
      features.append(_features_at(reader.image(id), where, grey=grey))
      labels.append(reader.mask(id).ravel()[where])
  forest = RandomForestClassifier(
    _TREES, min_samples_leaf=2, n_jobs=-1, random_state=seed).fit(
      np.concatenate(features), np.concatenate(labels))
  # Several threads add the trees' votes in the order in which they finish, which rounds differently
  # from time to time; images are labelled side by side instead.
  forest.n_jobs = 1
  return forest, grey, sum(map(len, labels))


def _is_grey(image: np.ndarray) -> bool:
  return bool((image == image[..., :1]).all())


def _choose(
  ids: Sequence[str], mask: Callable[[str], np.ndarray], classes: int, seed: int
) -> list[np.ndarray]:
  """Places in each flat mask, drawn by class in proportion to the root of its frequency.

  As with the network's class weights, so that a rare class is seen and a frequent one known.
  """
  rng = np.random.default_rng(seed)
  by_mask = np.array([
    np.bincount(mask(id).ravel(), minlength=IGNORE + 1)[:classes] for id in ids])
  counts = by_mask.sum(0)
  wanted = np.floor(_PIXELS * np.sqrt(counts) / np.sqrt(counts).sum()).astype(int)
  # Of a class's pixels in all masks, in order, which ones; and how many there are before each mask.
  drawn = [np.sort(rng.choice(count, min(number, count), replace=False)) if count else np.array([])
           for number, count in zip(wanted, counts, strict=True)]
  before = np.cumsum(by_mask, 0) - by_mask

  def of_mask(n: int, id: str) -> np.ndarray:
    flat = mask(id).ravel()
    places = [np.empty(0, np.int64)]
    for of, ranks in enumerate(drawn):
      first, last = np.searchsorted(ranks, (before[n, of], before[n, of] + by_mask[n, of]))
      if last > first:
        places.append(np.flatnonzero(flat == of)[ranks[first:last] - before[n, of]])
    return np.sort(np.concatenate(places))

  return [of_mask(n, id) for n, id in enumerate(ids)]
