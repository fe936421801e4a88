"""What the viewer of a page shows: layers of validation images, those of all runs together."""

from collections.abc import Sequence
from typing import Any

from gta_jax.evaluation.layers import IMAGE, TRUTH
from gta_jax.reporting.runs import Record, labels_of
from gta_jax.training.logs import percent

_MOST_OF_SEVERAL = 6  # images of a page about several runs


def viewer_images(found: Sequence[Record]) -> list[dict[str, Any]]:
  """Images with their layers, in the order in which they are shown.

  Of one run all layers, the worst image first. Of several runs image and truth, and what the
  network of each run that predicts makes of it; images that most of the runs show come first.

  Returns: {'name': of the image, 'layers': name -> data URI}.
  """
  if len(found) == 1:
    return [{'name': f'{image["id"]}{_scores(image["miou"])}', 'layers': image['layers']}
            for image in found[0].snapshot.get('shown', [])]
  merged: dict[tuple, dict[str, Any]] = {}
  for one, label in zip(found, labels_of(found), strict=True):
    for image in one.snapshot.get('shown', []):
      layers, own = image['layers'], one.networks[0]
      into = merged.setdefault((one.task, image['id']), {'name': image['id'], 'layers': {
        name: layers[name] for name in (IMAGE, TRUTH)}})['layers']
      into[f'{label}: {own}'] = layers[own]
  return sorted(merged.values(), key=lambda image: -len(image['layers']))[:_MOST_OF_SEVERAL]


def _scores(miou: dict[str, float | None]) -> str:
  known = ', '.join(f'{name} {percent(value)} %' for name, value in miou.items())
  return f' (mIoU: {known})' if known else ''
