"""report.json: the newest evaluation of a run, with what its page shows and no other file holds."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gta_jax.data.sources import spread
from gta_jax.data.writing import replace_text
from gta_jax.evaluation.layers import make_layers
from gta_jax.evaluation.metrics import iou
from gta_jax.evaluation.pictures import prediction_grid
from gta_jax.evaluation.scores import Evaluation
from gta_jax.evaluation.windows import Prediction
from gta_jax.methods.options import drop_share
from gta_jax.training.setup import Run
from gta_jax.training.summary import device_line, parameter_counts
from gta_jax.training.workdir_files import read_json

FILE = 'report.json'
_FIELDS = {'step', 'steps', 'command', 'device', 'networks', 'parameters', 'learning', 'stages',
           'images', 'timing', 'scores', 'confusion', 'drop_share', 'threshold', 'shown'}
Predict = Callable[[Sequence[str]], Iterator[tuple[str, dict[str, Prediction]]]]


def write_snapshot(
  run: Run, workdir: Path, step: int, found: Evaluation, predict: Predict, *, command: str,
  timing: dict[str, Any],
) -> np.ndarray | None:
  """Writes WORKDIR/report.json about an evaluation.

  Args:
    run: under way.
    workdir: of the file.
    step: that was evaluated.
    found: its scores.
    predict: ids -> (id, prediction by network), of the networks that were scored.
    command: that repeats the run; '' if not known.
    timing: what Pace.summary gives.
  Returns: the grid of evaluate.pictures validation images, uint8 [H,W,3]; None for none.
  """
  data, names = run.dataset, run.method.scored
  pictures = spread(data.validation, run.config.evaluate.pictures)
  ids, miou = shown_ids(run, found), _miou_by_image(found, data.validation)
  predictions = dict(predict(ids)) if ids else {}
  share = drop_share(run.config.method)
  shown, threshold = [], 0.0
  if ids:
    certain = [of[names[0]].confidence.ravel() for of in predictions.values()]
    threshold = float(np.quantile(np.concatenate(certain), share))
  for id in ids:
    layers = make_layers(data.reader, id, predictions[id], data.palette, confidence_of=names[0],
                         threshold=threshold)
    shown.append({'id': id, 'miou': miou.get(id, {}), 'layers': layers})
  parameters, learning = parameter_counts(run)
  snapshot = {
    'step': step, 'steps': run.total_steps, 'command': command, 'device': device_line(),
    'networks': list(names), 'parameters': parameters, 'learning': learning,
    'stages': [{'name': stage.name, 'steps': stage.steps} for stage in run.stages],
    'images': {'labelled': len(data.labelled), 'unlabelled': len(data.unlabelled),
               'validation': len(data.validation), 'test': len(data.test)},
    'timing': timing, 'scores': found.plain(data.classes),
    'confusion': {name: scores.confusion.tolist() for name, scores in found.scores.items()},
    'drop_share': share, 'threshold': threshold, 'shown': shown}
  replace_text(workdir / FILE, json.dumps(snapshot) + '\n')
  if not pictures:
    return None
  return prediction_grid(data, {id: predictions[id] for id in pictures}, drop_share=share)


def shown_ids(run: Run, found: Evaluation) -> list[str]:
  """The validation images that are shown: the worst ones, then others."""
  data, options = run.dataset, run.config.evaluate
  worst = worst_ids(_miou_by_image(found, data.validation), run.method.scored[0],
                    options.get('worst', 0))
  return list(dict.fromkeys([*worst, *spread(data.validation, options.pictures)]))


def read_snapshot(workdir: Path) -> dict[str, Any]:
  """What write_snapshot wrote; empty before the first evaluation. ValueError for another file."""
  path = workdir / FILE
  if not path.is_file():
    return {}
  found = read_json(path)
  if missing := _FIELDS - found.keys():
    raise ValueError(f'{path} is damaged: it lacks {", ".join(sorted(missing))}; remove it, the '
                     'next evaluation writes it anew.')
  return found


def worst_ids(miou: dict[str, dict[str, float | None]], network: str, count: int) -> list[str]:
  """The images with the lowest mIoU over the classes that they hold, the worst first."""
  known = {id: of[network] for id, of in miou.items() if of[network] is not None}
  return sorted(known, key=lambda id: (known[id], id))[:count]


def _miou_by_image(
  found: Evaluation, ids: Sequence[str]
) -> dict[str, dict[str, float | None]]:
  """Image -> network -> mIoU over the classes in its truth or prediction; None without any."""
  by_image: dict[str, dict[str, float | None]] = {
    id: {} for id in ids} if found.by_image else {}
  for name, confusions in found.by_image.items():
    for id, confusion in zip(ids, confusions, strict=True):
      value = float(iou(confusion)[1])
      by_image[id][name] = None if math.isnan(value) else value
  return by_image
