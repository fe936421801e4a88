"""What a pixel classifier makes of the same masks: a random forest on filters of each pixel."""

import json
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from gta_jax.data import sources
from gta_jax.data.files import IGNORE
from gta_jax.data.pixel_features import pixel_features
from gta_jax.data.sources import Dataset
from gta_jax.data.splits import ids_sha256
from gta_jax.data.writing import replace_text
from gta_jax.evaluation.metrics import Scores
from gta_jax.evaluation.scores import Evaluation
from gta_jax.training import config_rules, setup
from gta_jax.training.logs import note

_PIXELS = 60_000  # that the forest learns from, of all labelled images together
_TREES = 100
_NAME = 'baseline'


def run_baseline(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
  """Fits the classifier on the labelled masks, scores whole validation images, and writes
  WORKDIR/baseline.json.

  Returns: what the file holds: method, seed, pixels (learnt from), validation_sha256, the ids,
    the scores as in results.json, and confusions, [N,K,K] counts in the ids' order.
  Raises: ValueError for a config, DataError for data, that cannot be used.
  """
  config_rules.check(config)
  dataset = setup.make_dataset(config)
  sources.check_classes(dataset, sources.check(dataset))
  forest, grey, pixels = _fit(dataset, config.seed)
  confusions = []
  for i, id in enumerate(dataset.validation):
    features = pixel_features(dataset.reader.image(id), grey=grey)
    labels = forest.predict(features.reshape(-1, features.shape[-1])).reshape(features.shape[:2])
    confusions.append(_count(labels, dataset.reader.mask(id), len(dataset.classes)))
    if (i + 1) % 20 == 0:
      note(f'{i + 1} of {len(dataset.validation)} validation images are scored')
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


def _count(labels: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
  """int64 [K,K], truth by row; without jax, which would take most of a GPU for it."""
  known = mask != IGNORE
  pairs = classes * mask[known].astype(np.int64) + labels[known]
  return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _fit(dataset: Dataset, seed: int) -> tuple[Any, bool, int]:
  """The forest, whether it looks at grey levels alone, and how many pixels it learnt from."""
  from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415  Nothing else needs it.

  images = [dataset.reader.image(id) for id in dataset.labelled]
  masks = [dataset.reader.mask(id) for id in dataset.labelled]
  grey = all(bool((image == image[..., :1]).all()) for image in images)
  chosen = _choose(masks, len(dataset.classes), seed)
  features, labels = [], []
  for image, mask, where in zip(images, masks, chosen, strict=True):
    found = pixel_features(image, grey=grey)
    features.append(found.reshape(-1, found.shape[-1])[where])
    labels.append(mask.ravel()[where])
  forest = RandomForestClassifier(
    _TREES, min_samples_leaf=2, n_jobs=-1, random_state=seed).fit(
      np.concatenate(features), np.concatenate(labels))
  return forest, grey, sum(map(len, labels))


def _choose(masks: list[np.ndarray], classes: int, seed: int) -> list[np.ndarray]:
  """Places in each flat mask, drawn by class in proportion to the root of its frequency.

  As with the network's class weights, so that a rare class is seen and a frequent one known.
  """
  rng = np.random.default_rng(seed)
  flat = np.concatenate([mask.ravel() for mask in masks])
  counts = np.bincount(flat, minlength=IGNORE + 1)[:classes]
  wanted = np.floor(_PIXELS * np.sqrt(counts) / np.sqrt(counts).sum()).astype(int)
  drawn = [rng.choice(np.flatnonzero(flat == id), min(number, counts[id]), replace=False)
           for id, number in enumerate(wanted) if counts[id]]
  places = np.sort(np.concatenate(drawn))
  ends = np.cumsum([mask.size for mask in masks])
  starts = np.concatenate([[0], ends[:-1]])
  borders = np.searchsorted(places, ends)
  return [part - start for part, start in zip(
    np.split(places, borders[:-1]), starts, strict=True)]
