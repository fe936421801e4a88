"""Which images to label next: those in which regions are uncertain, and which differ.

An image's uncertainty is the mean over its most uncertain regions, so that a small unclear part
counts in front of a large clear background (region-wise, as in active learning for segmentation:
Mackowiak et al., CEREALS, 2018). Of the most uncertain images, five for each that is asked for but
no more than half of all, those are taken one after the other that are farthest from all taken
before in the backbone's features: greedy k-centre (Sener and Savarese, 2018), so that not ten alike
come first.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from gta_jax.data.pseudo_masks import CODES, code_of_doubt, doubt_of_code
from gta_jax.data.sources import Dataset, ImageReader
from gta_jax.devices import sharding
from gta_jax.evaluation.batches import ValidationBatch, make_batches
from gta_jax.evaluation.protocols import WHOLE
from gta_jax.evaluation.windows import Images, predict_batch
from gta_jax.inference.model import Model
from gta_jax.ops.network import Array, Network, Variables
from gta_jax.training.logs import Progress

_REGIONS = 8  # along a side
_CANDIDATES = 5  # for each image that is asked for, at most


class Ranking(NamedTuple):
  """What to label, the first one first.

  ids: of the images.
  uncertainty: of each, in [0,1].
  distance: of each to the nearest one before it, 1 - cosine of their features; 0 for the first.
  threshold: of confidence, below which `drop_share` of the pixels of all unlabelled images are.
  """

  ids: tuple[str, ...]
  uncertainty: tuple[float, ...]
  distance: tuple[float, ...]
  threshold: float


def without_masks(dataset: Dataset) -> tuple[Dataset, int]:
  """The data set with those unlabelled images that have no mask, and how many have one.

  Raises: ValueError where all of them have one.
  """
  unlabelled = tuple(id for id in dataset.unlabelled if not dataset.reader.has_mask(id))
  known = len(dataset.unlabelled) - len(unlabelled)
  if known and not unlabelled:
    raise ValueError(
      f'All {known} unlabelled images of {dataset.name} have a mask already; add their ids to '
      'splits/NAME/labeled.txt and train, or add images without masks.')
  return dataclasses.replace(dataset, unlabelled=unlabelled), known


def rank(
  model: Model, dataset: Dataset, *, count: int, drop_share: float, network: str | None = None,
  threads: int = 4,
) -> Ranking:
  """Ranks the unlabelled images, which are read once; nothing of their pixels is kept.

  Args:
    model: that predicts.
    dataset: of the images; their masks, if any, are not looked at.
    count: how many are wanted; fewer come where there are fewer.
    drop_share: in [0,1]; see Ranking.threshold.
    network: one of the model's; the first by default.
    threads: images decoded at a time.
  Raises: ValueError without images, for a count below 1 or an unknown network.
  """
  ids = dataset.unlabelled
  if not ids or count < 1:
    raise ValueError(f'{len(ids)} unlabelled images and --count {count}; both must be at least 1.')
  network = model.check_network(network)
  scores: dict[str, float] = {}
  features: dict[str, np.ndarray] = {}
  counts = np.zeros(CODES, np.int64)
  with Progress(len(ids), unit='image') as progress:
    for id, confidence, pooled in _look_at(model, dataset, network, threads):
      scores[id], features[id] = uncertainty(confidence), pooled
      counts += np.bincount(code_of_doubt(confidence).ravel(), minlength=CODES)
      progress.advance()
      progress.show({})
  threshold = _threshold(counts, drop_share)
  chosen, distances = choose(
    np.array([scores[id] for id in ids]), np.stack([features[id] for id in ids]), count)
  return Ranking(tuple(ids[i] for i in chosen), tuple(scores[ids[i]] for i in chosen), distances,
                 threshold)


def _look_at(
  model: Model, dataset: Dataset, network: str, threads: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """(id, confidence [H,W], pooled features [C]) of every unlabelled image.

  Large images are cut into tiles, as in predictions; their features are those of a
  smaller copy.
  """
  variables, reader = model.variables[network], dataset.reader
  large = [id for id in dataset.unlabelled if model.is_tiled(reader.size(id))]

  def batches(reader: ImageReader, ids: Sequence[str], rows: int) -> Iterator[ValidationBatch]:
    return make_batches(
      model.network.mean, reader, ids, (WHOLE,), image_scale=model.image_scale,
      batch_size=sharding.round_up_to_devices(rows), crop=model.crop, multiple=model.multiple,
      threads=threads, devices=jax.local_device_count())

  def pooled(images: Images) -> np.ndarray:
    return np.asarray(_pooled_features(model.network, variables, images))

  view, apart = WHOLE.views[0], {*large}
  small = [id for id in dataset.unlabelled if id not in apart]
  for batch in batches(reader, small, model.batch_size):
    seen = sharding.place_locally(batch.arrays).images
    found = predict_batch(model.network, variables, seen, WHOLE, output_size=batch.output_sizes[0])
    of_images, confidences = pooled(seen[view]), np.asarray(found.confidence)
    for row, (id, (height, width)) in enumerate(batch.items):
      yield id, confidences[row, :height, :width], of_images[row]
  for id in large:
    image = reader.image(id)
    (_, found), = model.label([image], network=network)
    batch, = batches(_Copy(image, model.tile), (id,), 1)
    yield id, found.confidence, pooled(sharding.place_locally(batch.arrays).images[view])[0]


class _Copy:
  """Reads a smaller copy of one image, at most so many pixels a side."""

  def __init__(self, image: np.ndarray, largest: int):
    factor = largest / max(image.shape[:2])
    size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
    self._image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)

  def image(self, id: str) -> np.ndarray:
    return self._image

  def size(self, id: str) -> tuple[int, int]:
    height, width = self._image.shape[:2]
    return height, width


def _threshold(counts: np.ndarray, share: float) -> float:
  """The confidence below which at least a share of the pixels are; counts: [CODES], of doubts."""
  doubtful = np.cumsum(counts[::-1]) / counts.sum()  # of each code and all above it
  code = CODES - 1 - int(np.searchsorted(doubtful, share))
  # Between this code, the last one that counts, and the next: there float16 rounds.
  return 1 - float(doubt_of_code(np.array([code, max(code - 1, 0)], np.uint16)).mean())


def uncertainty(confidence: np.ndarray) -> float:
  """Mean of 1 - confidence over the most uncertain quarter of an image's regions.

  Args:
    confidence: float [H,W] in [0,1], the largest probability of each pixel.
  """
  height, width = confidence.shape
  grid = min(width, _REGIONS), min(height, _REGIONS)
  regions = np.sort(1 - cv2.resize(confidence, grid, interpolation=cv2.INTER_AREA), axis=None)
  return float(regions[-max(1, regions.size // 4):].mean())


def choose(
  scores: np.ndarray, features: np.ndarray, count: int
) -> tuple[list[int], tuple[float, ...]]:
  """Greedy k-centre among the images with the highest scores; the highest of all comes first.

  Args:
    scores: [N].
    features: [N,C].
    count: at most so many are chosen, from the min(5 count, N / 2) highest scores, or from the
      `count` highest where that is fewer.
  Returns: positions in the order in which they were chosen, and the distance of each to the
    nearest one before it, 1 - cosine; 0 for the first.
  """
  # Where every image is a candidate, distance alone decides, and the clearest may come second.
  most = max(count, min(_CANDIDATES * count, len(scores) // 2))
  candidates = np.argsort(-scores, kind='stable')[:most]
  some = features[candidates]
  some = some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12)
  chosen, distances = [0], [0.0]
  nearest = 1 - some @ some[0]
  while len(chosen) < min(count, len(candidates)):
    nearest[chosen] = -np.inf
    chosen.append(int(nearest.argmax()))
    distances.append(max(0.0, float(nearest[chosen[-1]])))
    nearest = np.minimum(nearest, 1 - some @ some[chosen[-1]])
  return candidates[chosen].tolist(), tuple(distances)


@functools.partial(jax.jit, static_argnames='network')
def _pooled_features(network: Network, variables: Variables, images: Images) -> Array:
  """[B,C] float32, the mean of the coarsest stage over what is no padding."""
  stages, _ = network.encode(variables, network.normalize(images.image), train=False)
  x = stages[-1].astype(jnp.float32)
  rows, columns = (
    jnp.arange(cells) * (side / cells) < size[:, None]
    for cells, side, size in zip(x.shape[1:3], images.image.shape[1:3], images.size.T, strict=True))
  weights = (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)
  return jnp.einsum('bhwc,bhw->bc', x, weights) / weights.sum((1, 2))[:, None]
