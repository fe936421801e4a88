"""Whole-image inference at the images' own sizes, and the scores of several networks in one pass.

Images are padded at the right and at the bottom to a multiple of some pixels; images of equal
padded size share one compiled program. Padding is not neutral. A small ResNet-18 (output stride 16,
trained briefly on 96x96 crops of half-size CamVid) changed its class on these shares of pixels
against multiple=1, which pads nothing (in brackets mIoU in percent, 40 images):

    sides     | multiple 1 | 16           | 32           | 128
    180 x 240 | (24.4)     | 9.4 % (26.0) | 10.6 % (26.3) | 18.1 % (24.4)
    161 x 225 | (23.9)     | 13.9 % (25.9) | 16.4 % (26.1) | 18.8 % (25.7)
    176 x 240 | (26.4)     | 0 % (26.4)   | 5.2 % (26.4) | 14.2 % (25.0)

Part is a gain: with aligned corners, features and pixels line up as in training only where sides
are multiples of the output stride. Beyond that, padding leaks through dilated convolutions and
image pooling. Hence 32; a data set of one size whose sides are such multiples needs none.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gta_jax.data.sources import DataError, Dataset, Reader
from gta_jax.data.transforms import scale_image
from gta_jax.metrics import IGNORE, Scores, confusion_matrix
from gta_jax.network import Array, Network, Variables
from gta_jax.resizing import interpolation_matrix

Size = tuple[int, int]  # (height, width) in pixels
LogitsFn = Callable[[Network, Variables, Array], Array]


class Prediction(NamedTuple):
  """labels: [...,H,W] uint8 classes. confidence: [...,H,W] float32, the largest probability."""

  labels: Any
  confidence: Any


class Evaluation(NamedTuple):
  """scores: by network. agreement: share of valid pixels, in [0,1], that two networks label alike,
  under 'one_other' in alphabetical order; NaN without any valid pixel."""

  scores: dict[str, Scores]
  agreement: dict[str, float]

  def scalars(self) -> dict[str, float]:
    """The same in plain keys: NAME_miou, NAME_pixel_accuracy, agreement_NAME_OTHER."""
    result = {f'{name}_miou': score.miou for name, score in self.scores.items()}
    result |= {f'{name}_pixel_accuracy': s.pixel_accuracy for name, s in self.scores.items()}
    return result | {f'agreement_{pair}': share for pair, share in self.agreement.items()}


class _Batch(NamedTuple):
  """Images of one padded size. The arrays hold batch_size rows; rows past the items are filler."""

  items: tuple[tuple[str, Size], ...]  # (id, the image's own size)
  output_size: Size  # of predictions, padded
  arrays: dict[str, np.ndarray]


def whole_image_logits(network: Network, variables: Variables, images: Array) -> Array:
  """Logits [B,h,w,K] of uint8 images [B,H,W,3], at any resolution whose corners are the images'.

  The seam for other protocols: a function of this signature, hashable and the same object at every
  call (else each call compiles anew), may cut windows, mirror, or average several scales.
  """
  return network.apply(variables, network.normalize(images), train=False)[0].main


@functools.partial(jax.jit, static_argnames=('network', 'output_size', 'logits_fn'))
def predict_batch(
  network: Network,
  variables: Variables,
  images: Array,
  ratio: Array,
  *,
  output_size: Size,
  logits_fn: LogitsFn = whole_image_logits,
) -> Prediction:
  """Labels and confidence of a padded batch. Logits, not labels, are resized.

  Args:
    network: static.
    variables: of one network.
    images: [B,h,w,3] uint8, padded at the right and at the bottom.
    ratio: [B,2] float32, (resized - 1) / (original - 1) for each image's height and width without
      padding; 1 if it was not resized.
    output_size: (H,W), at least the originals' sizes.
    logits_fn: as whole_image_logits.
  Returns: Prediction of [B,H,W]; what lies outside an image's own size has no meaning.
  """
  low = logits_fn(network, variables, images).astype(jnp.float32)
  rows, columns = (
    _restoring_matrices(output_size[i], images.shape[1 + i], low.shape[1 + i], ratio[:, i])
    for i in (0, 1)
  )
  logits = jnp.einsum('bHh,bhwk->bHwk', rows, low, precision=jax.lax.Precision.HIGHEST)
  logits = jnp.einsum('bWw,bHwk->bHWk', columns, logits, precision=jax.lax.Precision.HIGHEST)
  labels = jnp.argmax(logits, -1).astype(jnp.uint8)
  return Prediction(labels, 1 / jnp.exp(logits - logits.max(-1, keepdims=True)).sum(-1))


def _restoring_matrices(target: int, padded: int, low: int, ratio: Array) -> Array:
  """[B,target,low]: from low to padded resolution, and from there to each image's original one.

  Both with aligned corners. At ratio 1 the second is the identity, exactly.
  """
  position = jnp.arange(target) * ratio[:, None]
  taps = jnp.maximum(0, 1 - jnp.abs(position[..., None] - jnp.arange(padded)))
  return jnp.matmul(taps, interpolation_matrix(padded, low), precision=jax.lax.Precision.HIGHEST)


def evaluate(
  network: Network,
  variables_by_name: Mapping[str, Variables],
  dataset: Dataset,
  *,
  batch_size: int,
  image_scale: float = 1.0,
  multiple: int = 32,
  threads: int = 4,
  logits_fn: LogitsFn = whole_image_logits,
  place: Callable[[dict[str, np.ndarray]], Mapping[str, Any]] = dict,
) -> Evaluation:
  """Scores networks of one shape on whole validation images, each decoded once.

  Scores are at the masks' own resolution, whatever image_scale is. They depend neither on the order
  of the images nor on batch_size (but for a pixel whose two best logits differ by a rounding).

  Args:
    network: the common shape.
    variables_by_name: on the device already, or they travel at every batch.
    batch_size: images a batch; memory grows with it, at least 4 B H W K bytes of logits.
    image_scale: images are resized by this factor before the network, logits back after it.
    multiple: sides are padded to a multiple of this many pixels; the larger, the fewer programs
      are compiled, and the further predictions are from those without padding (multiple=1).
    threads: images decoded at a time.
    logits_fn: the protocol, see whole_image_logits.
    place: puts a batch's arrays (batch first) onto devices, say split over several.
  Raises: ValueError without images or networks; DataError of the reader.
  """
  if not dataset.validation or not variables_by_name:
    raise ValueError(f'There are {len(dataset.validation)} validation images and '
                     f'{len(variables_by_name)} networks to score; give at least one of each.')
  total, waiting = None, None
  for batch in _batches(network.mean, dataset.reader, dataset.validation, batch_size=batch_size,
                        image_scale=image_scale, multiple=multiple, threads=threads, masks=True):
    arrays = place(batch.arrays)
    labels = {
      name: predict_batch(network, variables, arrays['image'], arrays['ratio'],
                          output_size=batch.output_size, logits_fn=logits_fn).labels
      for name, variables in variables_by_name.items()
    }
    counts = _count(labels, arrays['label'], num_classes=len(dataset.classes))
    # One batch behind, so that the next one is decoded while the device works on this one.
    total, waiting = _add(total, waiting), counts
  confusions, alike = _add(total, waiting)
  valid = next(iter(confusions.values())).sum()
  return Evaluation(
    {name: Scores.from_confusion(confusions[name]) for name in variables_by_name},
    {pair: float(n / valid) if valid else float('nan') for pair, n in alike.items()},
  )


@functools.partial(jax.jit, static_argnames='num_classes')
def _count(labels: dict[str, Array], truth: Array, *, num_classes: int) -> tuple[dict, dict]:
  """Confusion matrices by name, and the number of valid pixels labelled alike by pair of names."""
  confusion = functools.partial(confusion_matrix, label=truth, num_classes=num_classes)
  alike = {
    f'{one}_{other}': jnp.sum((labels[one] == labels[other]) & (truth != IGNORE))
    for one, other in itertools.combinations(sorted(labels), 2)
  }
  return {name: confusion(of_one) for name, of_one in labels.items()}, alike


def _add(total: Any, counts: Any) -> Any:
  """Adds counts from the device to int64 totals on the host; None is nothing."""
  if counts is None:
    return total
  counts = jax.tree.map(lambda x: np.asarray(x, np.int64), counts)
  return counts if total is None else jax.tree.map(np.add, total, counts)


def predict(
  network: Network,
  variables_by_name: Mapping[str, Variables],
  reader: Reader,
  ids: Sequence[str],
  *,
  batch_size: int,
  image_scale: float = 1.0,
  multiple: int = 32,
  threads: int = 4,
  logits_fn: LogitsFn = whole_image_logits,
) -> Iterator[tuple[str, dict[str, Prediction]]]:
  """Yields (id, prediction by network) at the images' own sizes, as the batches come.

  Args: as those of evaluate; the reader needs image and size only.
  Yields: Prediction holds NumPy arrays [H,W]. Images of equal padded size come together, otherwise
    in the order of ids.
  """
  batches = _batches(network.mean, reader, ids, batch_size=batch_size, image_scale=image_scale,
                     multiple=multiple, threads=threads, masks=False)
  for batch in batches:
    found = {
      name: predict_batch(network, variables, batch.arrays['image'], batch.arrays['ratio'],
                          output_size=batch.output_size, logits_fn=logits_fn)
      for name, variables in variables_by_name.items()
    }
    arrays = {name: tuple(map(np.asarray, prediction)) for name, prediction in found.items()}
    for i, (image_id, (height, width)) in enumerate(batch.items):
      yield image_id, {
        name: Prediction(*(x[i, :height, :width] for x in pair)) for name, pair in arrays.items()
      }


def _batches(
  mean: Sequence[float],
  reader: Reader,
  ids: Sequence[str],
  *,
  batch_size: int,
  image_scale: float,
  multiple: int,
  threads: int,
  masks: bool,
) -> Iterator[_Batch]:
  """Groups images of equal padded size into batches, the last of a group filled up."""
  if batch_size < 1 or multiple < 1 or not image_scale > 0:
    raise ValueError(f'batch_size={batch_size}, multiple={multiple}, image_scale={image_scale}; '
                     'the first two must be at least 1 and the scale above 0.')
  groups: dict[Size, list[tuple[str, Size]]] = {}
  for image_id in ids:
    size = reader.size(image_id)
    scaled = (max(1, round(side * image_scale)) for side in size)
    padded = tuple(multiple * math.ceil(side / multiple) for side in scaled)
    groups.setdefault(padded, []).append((image_id, size))
  # The mean colour is zero after normalisation, like the padding of the first convolution.
  colour = np.round(255 * np.array(mean)).astype(np.uint8)
  load = functools.partial(_load, reader, image_scale=image_scale, masks=masks)
  with ThreadPoolExecutor(max(threads, 1)) as pool:
    for padded, members in groups.items():
      # The largest sides that image_scale brings down to `padded`: one program serves the group.
      output_size = tuple(int((side + 0.5) / image_scale) for side in padded)
      for start in range(0, len(members), batch_size):
        items = tuple(members[start : start + batch_size])
        arrays = {
          'image': np.broadcast_to(colour, (batch_size, *padded, 3)).copy(),
          'ratio': np.ones((batch_size, 2), np.float32),
          'label': np.full((batch_size, *output_size), IGNORE, np.uint8),
        }
        rows = [{name: array[i] for name, array in arrays.items()} for i in range(len(items))]
        list(pool.map(load, items, rows))
        yield _Batch(items, output_size, arrays)


def _load(
  reader: Reader, item: tuple[str, Size], row: dict, *, image_scale: float, masks: bool
) -> None:
  """Decodes an image, and its mask if wanted, into the views `row` of a batch's arrays."""
  image_id, size = item
  try:
    image, mask = reader.image(image_id), reader.mask(image_id) if masks else None
    if image.shape[:2] != size or (masks and mask.shape != size):
      raise DataError(f'{image_id!r} or its mask has changed its size since {size} was read.')
  except DataError as error:
    if not masks:
      raise
    raise DataError(f'{error} It is a validation image: scores without it would be others, so '
                    'it is not skipped; start again once it is there.') from error
  image = scale_image(image, image_scale)
  row['image'][: image.shape[0], : image.shape[1]] = image
  if image_scale != 1:
    row['ratio'][:] = (np.array(image.shape[:2]) - 1) / np.maximum(np.array(size) - 1, 1)
  if masks:
    row['label'][: size[0], : size[1]] = mask
