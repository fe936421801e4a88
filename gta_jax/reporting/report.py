"""What one or several runs found, on one page: report.md and the pictures that it shows."""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gta_jax.data.files import DataError
from gta_jax.data.sources import Dataset
from gta_jax.evaluation.pictures import comparison_grid, prediction_grid, write_image
from gta_jax.evaluation.scores import label_images
from gta_jax.evaluation.windows import Prediction
from gta_jax.inference import evaluations
from gta_jax.reporting import paper
from gta_jax.reporting.runs import Finished, read_finished, verdicts
from gta_jax.training import setup
from gta_jax.training.finished_run import load_networks
from gta_jax.training.logs import markdown_table, replace_text
from gta_jax.training.loop import FREE_FIELDS, flatten
from gta_jax.training.verdict import read_baseline

_LINES = ('-', '--', ':', '-.')  # styles of the curves, by the networks' order
_FIGURE_3 = ('sup_only', 'mean_teacher', 'gta')


def write_report(workdirs: Sequence[Path], out: Path, *, images: int = 4) -> Path:
  """Writes out/report.md and its pictures; figures whose runs are not given are left out by name.

  Args:
    workdirs: of finished runs.
    out: folder, made if missing.
    images: validation images in each picture.
  Returns: the path of report.md.
  Raises: ValueError without runs, or for a workdir without a finished run.
  """
  found = [read_finished(workdir) for workdir in workdirs]
  if not found:
    raise ValueError('no workdir is given to report on; give --workdirs A,B,...')
  out.mkdir(parents=True, exist_ok=True)
  write_curves(out / 'curves.png', found)
  parts = ['# Report', _score_table(found), '## Training curves', '![Curves](curves.png)']
  figures = (
    ('Predictions of three methods (Figure 3 of the paper)', 'methods.png', _methods_picture),
    ('Without and with re-weighting (Figure 4 of the paper)', 'reweighting.png',
     _reweighting_picture),
    ('Confidence; the least confident pixels are red', 'confidence.png', _confidence_picture))
  for title, name, draw in figures:
    try:
      text = draw(out / name, found, images)
      parts += [f'## {title}', f'{text}\n\n![{title}]({name})']
    except _MissingError as error:
      parts += [f'## {title}', f'Left out: {error}']
  replace_text(out / 'report.md', '\n\n'.join(parts) + '\n')
  return out / 'report.md'


class _MissingError(Exception):
  """Why a figure cannot be drawn, as a sentence."""


def _score_table(found: Sequence[Finished]) -> str:
  """mIoU over seeds, one row for each task, method, recipe and protocol."""
  groups: dict[tuple, list[Finished]] = {}
  for one in found:
    groups.setdefault((one.task, one.method, one.config.method.recipe), []).append(one)
  networks = tuple(dict.fromkeys(name for one in found for name in one.scored))
  rows = [['data', 'split', 'method', 'recipe', 'seeds', 'protocol', *networks, "the paper's"]]
  notes = [f'Left out: {reason}' for one in found for evaluation in evaluations.read(one.workdir)
           if (reason := _foreign(one, evaluation))]
  for ((source, _, split), method, recipe), group in groups.items():
    seeds = ', '.join(str(one.config.seed) for one in group)
    drawn = any(one.config.data.get('split_source', 'published') != 'published' for one in group)
    figure = None if drawn else paper.find(source, split, method)
    if len({one.results.get('labelled_sha256') for one in group} - {None}) > 1:
      notes.append(f'The runs of {method} ({recipe}) on {source}, split {split}, differ in their '
                   'labelled images, not in the seed alone; so their deviation holds both.')
    sheets = [_scores(one) for one in group]
    for protocol in (name for name in sheets[0] if all(name in sheet for sheet in sheets)):
      scores = [_mean([sheet[protocol][network]['miou'] for sheet in sheets
                       if network in sheet[protocol]]) for network in networks]
      rows.append([source, split, method, recipe, seeds, protocol, *scores, str(figure or '-')])
  rows += _baseline_rows(found, networks)
  notes += verdicts(found)
  return (
    'mIoU in percent of the last step, mean ± sample deviation over seeds: whole images as scored '
    'in training, and the protocols of evaluation.json where all seeds have it. The last column is '
    "**the paper's own figure**, with ResNet-101 and its own protocol (VOC: centre crops of 513 "
    'pixels); it was not measured here.\n\n' + '\n\n'.join([markdown_table(rows).rstrip(), *notes]))


def _baseline_rows(found: Sequence[Finished], networks: Sequence[str]) -> list[list[str]]:
  """The pixel classifiers that were fitted in the folders of runs, a row each."""
  rows = []
  for one in found:
    if baseline := read_baseline(one.workdir):
      data = one.config.data
      score = f'{100 * baseline.miou:.2f}'
      rows.append([data.source, data.split, baseline.name, '-', str(one.config.seed), 'whole',
                   score, *['-'] * (len(networks) - 1), '-'])
  return rows


def _scores(one: Finished) -> dict[str, dict[str, Any]]:
  """Protocol -> network -> scores of the last step."""
  sheet = {'whole': one.results['last']}
  for evaluation in evaluations.read(one.workdir):
    if evaluation.get('step') == one.results['last']['step'] and not _foreign(one, evaluation):
      suffix = ' (test)' if evaluation.get('split') == 'test' else ''
      sheet |= {f'{name}{suffix}': of for name, of in evaluation.get('protocols', {}).items()}
  return sheet


def _foreign(one: Finished, evaluation: dict[str, Any]) -> str:
  """Why an evaluation is not of the run's own validation images, as a sentence; else ''.

  Test images are others by design: of them the data set's name is compared.
  """
  own = one.dataset, one.results.get('validation_sha256')
  of_evaluation = evaluation.get('dataset', ''), evaluation.get('validation_sha256')
  if own == of_evaluation or (evaluation.get('split'), of_evaluation[0]) == ('test', own[0]):
    return ''
  return (f'{one.workdir / "evaluation.json"} has one of {evaluation.get("images")} images of '
          f'{evaluation.get("dataset", "an unnamed data set")}, not known to be those that the run '
          'was validated on; evaluate it with its own config.')


def _mean(mious: list[float | None]) -> str:
  scores = [100 * miou for miou in mious if miou is not None]
  if not scores:
    return '-'
  spread = f' ± {statistics.stdev(scores):.2f}' if len(scores) > 1 else ''
  return f'{statistics.mean(scores):.2f}{spread}'


def write_curves(path: Path, found: Sequence[Finished]) -> None:
  """Draws losses and the networks' validation mIoU against steps; a colour a run."""
  from matplotlib.figure import Figure  # noqa: PLC0415  Nothing else needs it. No window: Agg.

  figure = Figure(figsize=(12, 4.5), layout='constrained')
  losses, scores = figure.subplots(1, 2)
  for i, one in enumerate(found):
    keys = sorted({key for line in one.metrics for key in line if key.endswith('_loss')})
    for key, style in zip(keys, itertools.cycle(_LINES), strict=False):
      label = f'{one}: {key.removeprefix("train/").removesuffix("_loss").replace("_", ", ")}'
      losses.plot(*_series(one, key), style, color=f'C{i}', label=label, linewidth=1)
    for network, style in zip(one.scored, itertools.cycle(_LINES), strict=False):
      steps, values = _series(one, f'val/{network}_miou')
      if steps:
        scores.plot(steps, [100 * v for v in values], style, color=f'C{i}', marker='.',
                    label=f'{one}: {network}', linewidth=1)
  losses.set(xlabel='step', ylabel='loss', title='Training loss')
  scores.set(xlabel='step', ylabel='mIoU in %', title='Validation')
  for axes in (losses, scores):
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6)
  figure.savefig(path, dpi=120)


def _series(one: Finished, key: str) -> tuple[list[float], list[float]]:
  """Steps and values where the value is defined."""
  steps, values = [], []
  for line in one.metrics:
    step, value = line['step'], line.get(key)
    if step is not None and value is not None:
      steps.append(step)
      values.append(value)
  return steps, values


def _methods_picture(path: Path, found: Sequence[Finished], images: int) -> str:
  for task in dict.fromkeys(one.task for one in found):
    chosen = {one.method: one for one in sorted(found, key=lambda one: -one.config.seed)
              if one.task == task}
    if set(_FIGURE_3) <= set(chosen):
      return _compare(path, {name: chosen[name] for name in _FIGURE_3}, images)
  raise _MissingError(
    f'no data set and split has runs of all of {", ".join(_FIGURE_3)} among the given ones.')


def _reweighting_picture(path: Path, found: Sequence[Finished], images: int) -> str:
  def rest(one: Finished) -> dict[str, Any]:
    # The name says the same as the fields, which all stand in the config.
    other = ('method.name', 'method.reweight', *FREE_FIELDS)
    fields = {k: v for k, v in flatten(one.config.to_dict()).items() if k not in other}
    return fields | {'data.dir': one.config.data.dir}

  for without in found:
    for with_it in found:
      if (rest(without) == rest(with_it) and with_it.config.method.get('reweight')
          and not without.config.method.get('reweight')):
        return _compare(path, {'without re-weighting': without, 'with': with_it}, images)
  raise _MissingError('no two of the given runs differ in method.reweight alone.')


def _confidence_picture(path: Path, found: Sequence[Finished], images: int) -> str:
  teaching = [one for one in found if setup.make_method_of(one.config).uses_unlabelled]
  if not teaching:
    raise _MissingError('none of the given runs learns from pseudo-labels.')
  one = min(teaching, key=lambda one: (one.method != 'gta', one.config.seed))
  dataset, ids = _validation(one, images)
  predictions = _predict(one, dataset, ids, name=one.scored[0])
  share = one.config.method.get('drop_fraction', 0.2)
  write_image(path, prediction_grid(dataset, predictions, drop_share=share))
  return (f'{one}, on validation images. Red: the {share:.0%} of the pixels shown that training '
          'would drop, as method.drop_fraction says.')


def _compare(path: Path, chosen: dict[str, Finished], images: int) -> str:
  """Draws image, what each run predicts, and truth."""
  dataset, ids = _validation(next(iter(chosen.values())), images)
  columns = {}
  for heading, one in chosen.items():
    found = _predict(one, dataset, ids, name=heading)
    columns[heading] = {id: by_name[heading].labels for id, by_name in found.items()}
  write_image(path, comparison_grid(dataset, ids, columns))
  runs = '; '.join(f'{heading}: {one}' for heading, one in chosen.items())
  return f'Predictions of the last step: {runs}.'


def _validation(one: Finished, images: int) -> tuple[Dataset, list[str]]:
  """The run's data set and some ids, spread over its validation images."""
  try:
    dataset = setup.make_dataset(one.config)
  except DataError as error:
    raise _MissingError(f'the data set of {one.workdir} cannot be read. {error}') from error
  total = len(dataset.validation)
  count = min(images, total)
  return dataset, [dataset.validation[i * total // count] for i in range(count)]


def _predict(
  one: Finished, dataset: Dataset, ids: Sequence[str], *, name: str
) -> dict[str, dict[str, Prediction]]:
  try:
    network, variables, _ = load_networks(one.workdir, one.config, num_classes=len(one.classes))
    found = dict(label_images(
      network, {name: variables[one.scored[0]]}, dataset.reader, ids, batch_size=1,
      crop=one.config.data.crop, image_scale=one.config.data.image_scale))
  except ValueError as error:  # No checkpoint, or a DataError.
    raise _MissingError(f'{one.workdir} cannot be shown. {error}') from error
  return {id: found[id] for id in ids}
