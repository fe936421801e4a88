"""Data sets whose unlabelled images have the labels that a run has given them."""

import concurrent.futures
import dataclasses
from collections.abc import Mapping

import cv2
import numpy as np

from gta_jax.data.files import IGNORE, damaged, decode_mask, read_bytes
from gta_jax.data.sources import Dataset, Reader

CODES = 0x3C00 + 1  # float16's bits from 0 to 1
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class PseudoMaskReader:
  """A reader with masks of its own for some images.

  Attributes:
    reader: of the images and of the other masks.
    masks: id -> palette PNG.
  """

  reader: Reader
  masks: Mapping[str, str]

  def image(self, id: str) -> np.ndarray:
    return self.reader.image(id)

  def size(self, id: str) -> tuple[int, int]:
    return self.reader.size(id)

  def has_mask(self, id: str) -> bool:
    return id in self.masks or self.reader.has_mask(id)

  def mask(self, id: str) -> np.ndarray:
    if id not in self.masks:
      return self.reader.mask(id)
    return decode_mask(read_bytes(self.masks[id]), self.masks[id])


@dataclasses.dataclass(frozen=True)
class ConfidentMaskReader(PseudoMaskReader):
  """The same with confidences, and with labels only where the confidence suffices.

  Attributes:
    doubts: id -> PNG as encode_doubt makes it.
    limits: for each class the largest code of a doubt whose pixel keeps its label.
  """

  doubts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  limits: tuple[int, ...] = ()

  def mask(self, id: str) -> np.ndarray:
    labels = super().mask(id)
    if id not in self.doubts:
      return labels
    kept = self._codes(id) <= np.array(self.limits, np.uint16)[labels]
    return np.where(kept, labels, np.uint8(IGNORE))

  def confidence(self, id: str) -> np.ndarray:
    """uint8 [H,W] in 255ths."""
    return np.round(255 * (1 - doubt_of_code(self._codes(id)))).astype(np.uint8)

  def _codes(self, id: str) -> np.ndarray:
    return decode_doubt(read_bytes(self.doubts[id]), self.doubts[id])


def doubt_limits(
  masks: Mapping[str, str], doubts: Mapping[str, str], *, share: tuple[int, int],
  num_classes: int, every: int = 16,
) -> tuple[int, ...]:
  """How doubtful a pixel of each class may be, so that a share of the class keeps its label.

  The limit is the doubt of rank floor(a n), counted from 0, among the n sampled pixels of the
  class: floor(a n) + 1 of them keep their label, and those that tie with the last one. All do where
  a n < 1, as DMT has it, and a class that is never predicted limits nothing.

  Args:
    masks: id -> PNG of labels without 255.
    doubts: id -> PNG of encode_doubt.
    share: (numerator, denominator) of a, in [0,1].
    num_classes: K.
    every: one pixel in so many is sampled, row by row.
  Returns: K codes.
  """
  def of_image(id: str) -> np.ndarray:
    labels = decode_mask(read_bytes(masks[id]), masks[id]).ravel()[::every]
    codes = decode_doubt(read_bytes(doubts[id]), doubts[id]).ravel()[::every]
    pairs = labels.astype(np.int64) * CODES + codes
    return np.bincount(pairs, minlength=num_classes * CODES)

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    counts = sum(pool.map(of_image, masks), np.zeros(num_classes * CODES, np.int64))
  limits = []
  for of_class in counts.reshape(num_classes, CODES):
    total = int(of_class.sum())
    rank = min(share[0] * total // share[1], total - 1)
    limits.append(int(np.searchsorted(of_class.cumsum(), rank, side='right'))
                  if share[0] * total >= share[1] else CODES - 1)
  return tuple(limits)


def with_pseudo_masks(dataset: Dataset, reader: PseudoMaskReader) -> Dataset:
  """The data set whose unlabelled images are those that the reader has masks for, in their order.

  No other mask of an unlabelled image can be read through it by a stream.
  """
  return dataclasses.replace(dataset, unlabelled=tuple(reader.masks), reader=reader)


def encode_doubt(confidence: np.ndarray) -> bytes:
  """A 16-bit grey PNG of 1 - confidence, float [H,W] in [0,1], as the bits of float16.

  The codes have the order of the doubts, and are fine where it matters: most confidences are near
  one, where 8 bits would tie them.
  """
  return cv2.imencode('.png', code_of_doubt(confidence))[1].tobytes()


def code_of_doubt(confidence: np.ndarray) -> np.ndarray:
  """uint16 [H,W] below CODES, larger where confidence, float [H,W] in [0,1], is smaller."""
  return np.clip(1 - confidence.astype(np.float64), 0, 1).astype(np.float16).view(np.uint16)


def decode_doubt(data: bytes, path: str) -> np.ndarray:
  """uint16 [H,W] codes of encode_doubt. Raises DataError for damaged data."""
  try:
    codes = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  except cv2.error as error:
    raise damaged(path) from error
  if codes is None or codes.dtype != np.uint16 or codes.ndim != 2:
    raise damaged(path)
  return codes


def doubt_of_code(codes: np.ndarray) -> np.ndarray:
  """float32 of the codes' shape."""
  return np.ascontiguousarray(codes).view(np.float16).astype(np.float32)
