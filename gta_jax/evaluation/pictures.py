"""Pictures of masks and confidence: overlays, and a grid of validation images."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gta_jax.data.masks import full_palette
from gta_jax.data.sources import Dataset, spread
from gta_jax.data.writing import replace_bytes
from gta_jax.evaluation.scores import Place, label_images
from gta_jax.evaluation.windows import Prediction
from gta_jax.ops.network import Network, Variables

UNCERTAIN_COLOUR = (214, 39, 40)
# From 0 to 1: dark to light, so that it reads in grey too, and without the red of uncertain pixels.
_CONFIDENCE_COLOURS = ((13, 22, 66), (30, 84, 122), (42, 144, 132), (135, 199, 98), (250, 235, 120))
_FORMATS = {'.png': 'PNG', '.jpg': 'JPEG'}
_GAP = 6  # pixels between pictures
_JPEG_SIDE = 65_500  # pixels, the most that libjpeg writes


def colourise(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """RGB uint8 [H,W,3] of labels uint8 [H,W]; palette is uint8 [K,3]."""
  return full_palette(palette)[labels]


def overlay(
  image: np.ndarray, labels: np.ndarray, palette: np.ndarray, *, opacity: float = 0.5
) -> np.ndarray:
  """Lays the colours of labels [H,W] over an image [H,W,3], all uint8; opacity is in [0,1]."""
  return cv2.addWeighted(image, 1 - opacity, colourise(labels, palette), opacity, 0)


def colour_confidence(confidence: np.ndarray, *, threshold: float | None = None) -> np.ndarray:
  """RGB uint8 [H,W,3] of float [H,W] in [0,1]: dark to light, red below the threshold."""
  anchors = np.linspace(0, 1, len(_CONFIDENCE_COLOURS))
  channels = [np.interp(confidence, anchors, c) for c in zip(*_CONFIDENCE_COLOURS, strict=True)]
  colours = np.stack(channels, -1).astype(np.uint8)
  if threshold is not None:
    colours[confidence < threshold] = UNCERTAIN_COLOUR
  return colours


def write_image(path: Path, image: np.ndarray) -> None:
  """Writes uint8 [H,W,3] RGB or [H,W] grey as .png, or as .jpg, if need be a smaller one."""
  file = io.BytesIO()
  if path.suffix == '.jpg' and (longest := max(image.shape[:2])) > _JPEG_SIDE:
    height, width = (max(1, side * _JPEG_SIDE // longest) for side in image.shape[:2])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
  # A PNG would take three times as long for a few percent.
  Image.fromarray(image).save(
    file, _FORMATS[path.suffix], optimize=path.suffix == '.jpg', quality=90)
  replace_bytes(path, file.getvalue())


def legend(classes: Sequence[str], palette: np.ndarray, *, width: int = 480) -> np.ndarray:
  """RGB uint8 [H,width,3]: a coloured box and a name for each class, in as many lines as needed."""
  font = ImageFont.load_default(12)
  places, x, y = [], _GAP, _GAP
  for name in classes:
    extent = 22 + int(font.getlength(name)) + 2 * _GAP
    if x + extent > width and x > _GAP:
      x, y = _GAP, y + 20
    places.append((x, y))
    x += extent
  picture = Image.new('RGB', (width, y + 20), 'white')
  draw = ImageDraw.Draw(picture)
  for name, colour, (left, top) in zip(classes, palette.tolist(), places, strict=True):
    draw.rectangle((left, top, left + 16, top + 12), fill=tuple(colour), outline=(90, 90, 90))
    draw.text((left + 22, top + 6), name, fill='black', font=font, anchor='lm')
  return np.asarray(picture)


def grid(headings: Sequence[str], rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
  """Sets pictures in a table under headings.

  Args:
    headings: one for each column; a second line after a newline is allowed.
    rows: uint8 [H,W,3] pictures, of one width everywhere and of one height in each row.
  Returns: RGB uint8 [H,W,3] on white.
  """
  font = ImageFont.load_default(13)
  width = rows[0][0].shape[1]
  y = 2 * _GAP + 16 * max(heading.count('\n') + 1 for heading in headings)
  heights = [row[0].shape[0] + _GAP for row in rows]
  picture = Image.new('RGB', (_GAP + len(headings) * (width + _GAP), y + sum(heights)), 'white')
  draw = ImageDraw.Draw(picture)
  for column, heading in enumerate(headings):
    middle = _GAP + column * (width + _GAP) + width // 2
    draw.text((middle, y // 2), heading, fill='black', font=font, anchor='mm', align='center')
  for row, height in zip(rows, heights, strict=True):
    for column, cell in enumerate(row):
      picture.paste(Image.fromarray(cell), (_GAP + column * (width + _GAP), y))
    y += height
  return np.asarray(picture)


def prediction_grid(
  dataset: Dataset,
  predictions: Mapping[str, Mapping[str, Prediction]],
  *,
  confidence_of: str | None = None,
  drop_share: float = 0.2,
  cell_width: int = 200,
) -> np.ndarray:
  """Image, truth, each network's prediction and one network's confidence, one image a row.

  Args:
    dataset: of the images, with masks.
    predictions: image id -> network's name -> prediction at the image's size, as `label_images`
      yields them; at least one.
    confidence_of: the network whose confidence is shown; the first one if None.
    drop_share: of all pixels shown, the least confident ones that are marked, in [0,1].
    cell_width: of each picture in pixels.
  Returns: RGB uint8 [H,W,3], with a legend of the classes below.
  """
  names = list(next(iter(predictions.values())))
  confidence_of = confidence_of or names[0]
  certain = [by_name[confidence_of].confidence for by_name in predictions.values()]
  threshold = float(np.quantile(np.concatenate([c.ravel() for c in certain]), drop_share))
  headings = ['image', 'truth', *names, f"{confidence_of}'s confidence\n"
              f'(red: lowest {drop_share:.0%}, below {threshold:.2f})']
  rows = []
  for (image_id, by_name), confidence in zip(predictions.items(), certain, strict=True):
    image = dataset.reader.image(image_id)
    # A strip, a few pixels wide and thousands high, would make a picture of gigabytes: it is shown
    # squeezed.
    size = cell_width, min(4 * cell_width,
                           max(1, round(image.shape[0] * cell_width / image.shape[1])))
    masks = [dataset.reader.mask(image_id), *(by_name[name].labels for name in names)]
    small = [cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT) for mask in masks]
    rows.append([
      cv2.resize(image, size, interpolation=cv2.INTER_AREA),
      *(colourise(mask, dataset.palette) for mask in small),
      colour_confidence(cv2.resize(confidence, size), threshold=threshold),
    ])
  table = grid(headings, rows)
  return np.concatenate([table, legend(dataset.classes, dataset.palette, width=table.shape[1])])


def write_picture(
  path: Path,
  network: Network,
  variables_by_name: Mapping[str, Variables],
  dataset: Dataset,
  *,
  crop: int,
  count: int = 4,
  batch_size: int = 1,
  image_scale: float = 1.0,
  multiple: int | None = None,
  drop_share: float = 0.2,
  place: Place = lambda arrays: arrays,
) -> None:
  """Writes the grid of `count` validation images, spread over their list; nothing for count 0.

  With the crop, batch_size, image_scale, multiple and place of the evaluation nothing new is
  compiled.
  """
  ids = spread(dataset.validation, count)
  if not ids:
    return
  predictions = dict(label_images(
    network, variables_by_name, dataset.reader, ids, batch_size=batch_size, crop=crop,
    image_scale=image_scale, multiple=multiple, place=place))
  ordered = {image_id: predictions[image_id] for image_id in ids}
  write_image(path, prediction_grid(dataset, ordered, drop_share=drop_share))
