"""TFDS builders that write and read ArrayRecord without tensorflow. Imported only when needed."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from gta_jax.data.files import IGNORE, DataError, decode_image, decode_mask, image_size
from gta_jax.data.mask_code import unknown_ids
from gta_jax.data.records import VERSION, Example, Source

_ENCODED = {name: tfds.decode.SkipDecoding() for name in ('image', 'label')}
_MAX_PIXELS = 1 << 26


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes the examples of a Source: id, encoded image, encoded mask of class ids."""

  VERSION = tfds.core.Version(VERSION)

  def __init__(self, source: Source, archives: Sequence[Path], store: Path):
    self._source, self._archives = source, archives
    super().__init__(data_dir=store, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict({
      'id': tfds.features.Text(),
      'image': tfds.features.Image(shape=(None, None, 3)),
      'label': tfds.features.Image(shape=(None, None, 1)),
    })
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    del dl_manager  # Its downloads do not go on where they stopped.
    seen = set()
    return {split: self._generate_examples(split, examples, seen)
            for split, examples in self._source.examples(*self._archives).items()}

  def _generate_examples(
      self, split: str, examples: Iterator[Example], seen: set[str]) -> Iterator[tuple[str, dict]]:
    before = len(seen)
    for example in examples:
      if example.id in seen:
        raise DataError(f'{self._source.name} has {example.id!r} twice; get the archives again.')
      seen.add(example.id)
      _check(example, len(self._source.classes))
      yield example.id, {'id': example.id, 'image': io.BytesIO(example.image),
                         'label': io.BytesIO(example.label)}
    if len(seen) == before:
      raise DataError(f'{self._source.name} has no {split} images; get the archives again.')


class VocAug(_Builder, skip_registration=True):
  """PASCAL VOC 2012 with SBD's masks: splits clean, augmented (the others), validation."""


class Cityscapes(_Builder, skip_registration=True):
  """Cityscapes' fine annotations as 19 train ids: splits train, validation."""


def write(source: Source, archives: Sequence[Path], store: Path) -> None:
  """Writes STORE/NAME/VERSION, under another name until it is whole."""
  builder = {b.name: b for b in (VocAug, Cityscapes)}[source.name](source, archives, store)
  builder.download_and_prepare(download_dir=str(store / 'downloads'))


def split_names(folder: Path) -> list[str]:
  """The splits of a written data set."""
  return sorted(tfds.builder_from_directory(str(folder)).info.splits)


def open_split(folder: Path, split: str) -> Any:
  """Random access to a split's records: {'id', 'image', 'label'}, the bytes as they were given."""
  builder = tfds.builder_from_directory(str(folder))
  # The decorator of tfds loses the method's parameters.
  return builder.as_data_source(split, decoders=_ENCODED)  # pyright: ignore[reportCallIssue]


def _check(example: Example, num_classes: int) -> None:
  """Decodes an example, so that reading its record later cannot fail."""
  try:
    height, width = image_size(io.BytesIO(example.image), example.id)
  except DataError as error:
    raise DataError(f'{example.id}: the image is damaged; get the archives again.') from error
  if height * width > _MAX_PIXELS:
    raise DataError(f'{example.id} has {height}x{width} pixels; it is not from this data set.')
  image, mask = decode_image(example.image, example.id), decode_mask(example.label, example.id)
  if image.shape[:2] != mask.shape:
    raise DataError(f'{example.id}: the image has height and width {image.shape[:2]}, the mask '
                    f'{mask.shape}; get the archives again.')
  if unknown_ids(mask, num_classes):
    raise DataError(f'The mask of {example.id} holds ids from {num_classes} to {IGNORE - 1}; it is '
                    'not from this data set.')
