"""Pictures of one validation image that lie on top of each other, small enough for a web page."""

import base64
import io
from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image

from gta_jax.data.masks import encode_mask
from gta_jax.data.sources import Reader
from gta_jax.evaluation.pictures import UNCERTAIN_COLOUR, colour_confidence
from gta_jax.evaluation.windows import Prediction

IMAGE, TRUTH, CONFIDENCE, UNSURE = 'image', 'truth', 'confidence', 'least confident'


def make_layers(
  reader: Reader, id: str, predictions: Mapping[str, Prediction], palette: np.ndarray, *,
  confidence_of: str, threshold: float, largest: int = 480,
) -> dict[str, str]:
  """Image, truth, each network's labels, one network's confidence, and what is below a threshold.

  Args:
    reader: of the image and its mask.
    id: of the image.
    predictions: by network, at the image's size.
    palette: uint8 [K,3].
    confidence_of: the network whose confidence is shown.
    threshold: pixels below it are in UNSURE, which is transparent elsewhere.
    largest: side in pixels; larger images are shrunk.
  Returns: name -> data URI of a PNG or JPEG.
  """
  image, confidence = reader.image(id), predictions[confidence_of].confidence
  height, width = image.shape[:2]
  factor = min(1.0, largest / max(height, width))
  size = max(1, round(width * factor)), max(1, round(height * factor))
  masks = {TRUTH: reader.mask(id), **{name: of.labels for name, of in predictions.items()}}
  small = cv2.resize(confidence, size, interpolation=cv2.INTER_AREA)
  unsure = np.zeros((*small.shape, 4), np.uint8)
  unsure[small < threshold] = (*UNCERTAIN_COLOUR, 255)
  return {
    IMAGE: _uri('jpeg', _encode(cv2.resize(image, size, interpolation=cv2.INTER_AREA), 'JPEG')),
    **{name: _uri('png', encode_mask(
      cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT), palette))
      for name, mask in masks.items()},
    CONFIDENCE: _uri('jpeg', _encode(colour_confidence(small), 'JPEG')),
    UNSURE: _uri('png', _encode(unsure, 'PNG'))}


def _encode(pixels: np.ndarray, kind: str) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind, quality=80)
  return file.getvalue()


def _uri(kind: str, data: bytes) -> str:
  return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
