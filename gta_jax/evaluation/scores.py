"""Scores of several networks under several protocols in one pass; predictions of whole images."""

import functools
import itertools
import math
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gta_jax.data.sources import Dataset, ImageReader
from gta_jax.devices import sharding
from gta_jax.evaluation.batches import Arrays, ValidationBatch, make_batches
from gta_jax.evaluation.metrics import IGNORE, Scores, confusion_matrix
from gta_jax.evaluation.protocols import WHOLE, Protocol
from gta_jax.evaluation.windows import Prediction, predict_batch
from gta_jax.ops.network import Array, Network, Variables

Place = Callable[[Arrays], Arrays]
_MOST_COUNTS = 20_000_000  # of a network's confusions by image: 160 MB


class Evaluation(NamedTuple):
  """scores: by network. agreement: share of valid pixels, in [0,1], that two networks label alike,
  under 'one_other' in alphabetical order; NaN without any valid pixel. by_image: by network, int64
  [N,K,K] counts in the order of dataset.validation; empty where they would be too many to keep."""

  scores: dict[str, Scores]
  agreement: dict[str, float]
  by_image: Mapping[str, np.ndarray] = types.MappingProxyType({})

  def scalars(self) -> dict[str, float]:
    """The same in plain keys: NAME_miou, NAME_pixel_accuracy, agreement_NAME_OTHER."""
    result = {f'{name}_miou': score.miou for name, score in self.scores.items()}
    result |= {f'{name}_pixel_accuracy': s.pixel_accuracy for name, s in self.scores.items()}
    return result | {f'agreement_{pair}': share for pair, share in self.agreement.items()}

  def plain(self, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The scores as JSON, by network: miou, pixel_accuracy, and iou by class; NaN is null."""
    def of_network(scores: Scores) -> dict[str, Any]:
      iou = {name: _plain(value) for name, value in zip(classes, scores.iou, strict=True)}
      accuracy = _plain(scores.pixel_accuracy)
      return {'miou': _plain(scores.miou), 'pixel_accuracy': accuracy, 'iou': iou}

    return {name: of_network(scores) for name, scores in self.scores.items()}


def _plain(value: float) -> float | None:
  return None if math.isnan(value) else value


def evaluate(
  network: Network, variables_by_name: Mapping[str, Variables], dataset: Dataset, **options: Any
) -> Evaluation:
  """Scores networks of one shape on whole validation images; options as of evaluate_protocols."""
  return evaluate_protocols(
    network, variables_by_name, dataset, (WHOLE,), **options)[WHOLE.name]


def evaluate_protocols(
  network: Network,
  variables_by_name: Mapping[str, Variables],
  dataset: Dataset,
  protocols: Sequence[Protocol],
  *,
  batch_size: int,
  crop: int,
  image_scale: float = 1.0,
  multiple: int | None = None,
  threads: int = 4,
  place: Place = lambda arrays: arrays,
  part: tuple[int, int] = (0, 1),
) -> dict[str, Evaluation]:
  """Scores networks of one shape on validation images, each decoded once for all protocols.

  Scores are at the masks' own resolution, whatever image_scale is. They depend neither on the order
  of the images nor on batch_size (but for a pixel whose two best logits differ by a rounding).

  Args:
    network: the common shape.
    variables_by_name: on the device already, or they travel at every batch.
    protocols: with names of their own.
    batch_size: images a batch, fewer where they are large (see batches); memory grows with it, at
      least 4 B H W K bytes of logits.
    crop: side of the crops that the networks were trained on, in pixels after image_scale; whole
      images are padded to sides that line up with feature maps as the crop's do (see batches).
    image_scale: images are resized by this factor before the network, logits back after it.
    multiple: padded sides differ from `crop` by multiples of this many pixels; the larger, the
      fewer programs are compiled, and the further predictions are from those without padding
      (multiple=1). By default the network's, about 32.
    threads: images decoded at a time.
    place: puts a batch's arrays (batch first) onto devices, say split over several.
    part: (i, n): of n processes that all call this, the i-th; each scores every n-th image, all
      get the scores of the whole.
  Returns: by the protocol's name.
  Raises: ValueError without images, networks or protocols; DataError of the reader.
  """
  if not dataset.validation or not variables_by_name or not protocols:
    raise ValueError(f'There are {len(dataset.validation)} validation images, '
                     f'{len(variables_by_name)} networks to score and {len(protocols)} protocols; '
                     'give at least one of each.')
  classes, places = len(dataset.classes), {id: i for i, id in enumerate(dataset.validation)}
  kept = len(places) * classes**2 <= _MOST_COUNTS
  total = {protocol.name: (
    {name: np.zeros((len(places) if kept else 1, classes, classes), np.int64)
     for name in variables_by_name},
    dict.fromkeys(_pairs(variables_by_name), np.int64(0))) for protocol in protocols}
  waiting = None
  batches = make_batches(
    network.mean, dataset.reader, dataset.validation[part[0]::part[1]], protocols,
    batch_size=batch_size, image_scale=image_scale, crop=crop,
    multiple=multiple or network.multiple, threads=threads, devices=jax.local_device_count(),
    num_classes=classes)
  for batch in batches:
    placed = batch._replace(arrays=place(batch.arrays))
    counts = _count_batch(network, variables_by_name, placed, protocols, classes)
    # One batch behind, so that the next one is decoded while the device works on this one.
    total, waiting = _add(total, waiting), (
      counts, [places[id] if kept else 0 for id, _ in batch.items])
  total = _add(total, waiting)
  total = sharding.sum_over_processes(total) if part[1] > 1 else total
  return {protocol.name: _evaluation(list(variables_by_name), *total[protocol.name], kept=kept)
          for protocol in protocols}


def _count_batch(
  network: Network, variables_by_name: Mapping[str, Variables], batch: ValidationBatch,
  protocols: Sequence[Protocol], num_classes: int,
) -> dict[str, tuple[dict, dict]]:
  """What _count finds, by protocol. Protocols that differ in the truth alone predict once."""
  counts, labels = {}, {}
  for protocol in protocols:
    rule = (protocol.views, protocol.window, protocol.flip)
    if rule not in labels:
      labels[rule] = {
        name: predict_batch(network, variables, batch.arrays.images, protocol,
                            output_size=batch.output_sizes[protocol.crop]).labels
        for name, variables in variables_by_name.items()
      }
    truth = batch.arrays.labels[protocol.crop, protocol.padding_label]
    counts[protocol.name] = _count(labels[rule], truth, num_classes=num_classes)
  return counts


def _evaluation(
  names: Sequence[str], confusions: dict[str, np.ndarray], alike: dict[str, int], *, kept: bool
) -> Evaluation:
  valid = confusions[names[0]].sum()
  return Evaluation(
    {name: Scores.from_confusion(confusions[name].sum(0)) for name in names},
    {pair: float(n / valid) if valid else float('nan') for pair, n in alike.items()},
    confusions if kept else {})


@functools.partial(jax.jit, static_argnames='num_classes')
def _count(labels: dict[str, Array], truth: Array, *, num_classes: int) -> tuple[dict, dict]:
  """Confusion matrices [B,K,K] by name, and the number of valid pixels two names label alike."""
  confusion = jax.vmap(functools.partial(confusion_matrix, num_classes=num_classes))
  alike = {
    pair: jnp.sum((labels[one] == labels[other]) & (truth != IGNORE))
    for pair, (one, other) in _pairs(labels).items()
  }
  return {name: confusion(of_one, truth) for name, of_one in labels.items()}, alike


def _add(total: Any, waiting: tuple[dict, list[int]] | None) -> Any:
  """Adds counts from the device, and the images' places, to int64 totals on the host."""
  if waiting is None:
    return total
  counts, places = waiting
  added = {}
  for protocol, (confusions, alike) in counts.items():
    sums, pairs = total[protocol]
    for name, of_images in confusions.items():
      np.add.at(sums[name], places, np.asarray(of_images, np.int64)[:len(places)])
    added[protocol] = sums, {
      pair: pairs[pair] + np.asarray(count, np.int64) for pair, count in alike.items()}
  return added


def _pairs(names: Iterable[str]) -> dict[str, tuple[str, str]]:
  """'one_other' -> (one, other), in alphabetical order."""
  return {'_'.join(pair): pair for pair in itertools.combinations(sorted(names), 2)}


def label_images(
  network: Network,
  variables_by_name: Mapping[str, Variables],
  reader: ImageReader,
  ids: Sequence[str],
  *,
  batch_size: int,
  crop: int,
  protocol: Protocol = WHOLE,
  done: Collection[str] = (),
  image_scale: float = 1.0,
  multiple: int | None = None,
  threads: int = 4,
  place: Place = lambda arrays: arrays,
) -> Iterator[tuple[str, dict[str, Prediction]]]:
  """Yields (id, prediction by network) at the images' own sizes, as the batches come.

  Args: as those of evaluate_protocols.
    protocol: of whole images, with any scales and flip.
    done: ids that are not needed again. Batches of these alone are left out; the others keep their
      images, and so their results to the last bit.
  Yields: Prediction holds NumPy arrays [H,W]. Images of equal padded size come together, otherwise
    in the order of ids.
  """
  batches = make_batches(
    network.mean, reader, ids, (protocol,), batch_size=batch_size, image_scale=image_scale,
    crop=crop, multiple=multiple or network.multiple, threads=threads,
    devices=jax.local_device_count(), done=done)
  for batch in batches:
    images = place(batch.arrays).images
    found = {
      name: predict_batch(network, variables, images, protocol,
                          output_size=batch.output_sizes[protocol.crop])
      for name, variables in variables_by_name.items()
    }
    arrays = {name: [sharding.first_rows(array, len(batch.items)) for array in prediction]
              for name, prediction in found.items()}
    for i, (image_id, (height, width)) in enumerate(batch.items):
      yield image_id, {
        name: Prediction(*(x[i, :height, :width] for x in pair)) for name, pair in arrays.items()
      }
