"""mIoU over seeds, beside the paper's figures."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gta_jax.data import published
from gta_jax.inference import evaluations
from gta_jax.reporting import paper
from gta_jax.reporting.runs import Record, differences, short
from gta_jax.training import unseen

_TEST = ' (test)'  # behind a protocol's name
_ABOUT = (
  'mIoU in percent of the last step, mean ± sample deviation over seeds: whole images as scored in '
  'training, and the protocols of evaluation.json where all seeds have it.')
_ABOUT_PAPER = (
  "The last column is the paper's own figure, with ResNet-101 and its own protocol (VOC: centre "
  'crops of 513 pixels); it was not measured here.')


def seeds_table(found: Sequence[Record]) -> tuple[list[list[str]], list[str]]:
  """Finished runs, one row for each data set, config and protocol: those in it differ in the seed.

  Returns: rows, the first one being the head; none where no run has finished. And what should be
    known about them, as sentences.
  """
  notes = [f'{one} ({one.workdir}) is under way.' for one in found
           if len(found) > 1 and not one.results]
  finished = [one for one in found if one.results]
  if not finished:
    return [], notes
  groups, left_out = _groups(finished)
  notes += [*left_out, *_several_rows([group[0] for group in groups]), *_several_folders(found)]
  networks = tuple(dict.fromkeys(name for one in finished for name in one.networks))
  rows = [['data', 'split', 'method', 'recipe', 'seeds', 'protocol', *networks, "the paper's"]]
  notes += [f'Left out: {reason}' for one in finished
            for evaluation in evaluations.read(one.workdir)
            if (reason := _foreign(one, evaluation))]
  for group in groups:
    source, split, method, recipe = _head(group[0])
    seeds = ', '.join(str(one.config.seed) for one in group)
    figure = paper.find(source, split, method) if all(map(_on_papers_split, group)) else None
    if len({one.results.get('labelled_sha256') for one in group} - {None}) > 1:
      notes.append(f'The runs of {method} ({recipe}) on {source}, split {split}, differ in their '
                   'labelled images, not in the seed alone; so their deviation holds both.')
    sheets = [_scores(one) for one in group]
    tested = [frozenset(_test_images(one)) for one in group]
    if all(tested) and len({*tested}) > 1:
      notes.append(f'The runs of {method} ({recipe}) on {source}, split {split}, were tested on '
                   'different images; these scores are left out. Evaluate all of them with --split '
                   'test on one list.')
      sheets = [{name: of for name, of in sheet.items() if not name.endswith(_TEST)}
                for sheet in sheets]
    for protocol in (name for name in sheets[0] if all(name in sheet for sheet in sheets)):
      scores = [_mean([sheet[protocol][network]['miou'] for sheet in sheets
                       if network in sheet[protocol]]) for network in networks]
      rows.append([source, split, method, recipe, seeds, protocol, *scores, str(figure or '-')])
  if all(row[-1] == '-' for row in rows[1:]):
    return [row[:-1] for row in rows], [_ABOUT, *notes]
  return rows, [f'{_ABOUT} {_ABOUT_PAPER}', *notes]


def _groups(finished: Sequence[Record]) -> tuple[list[list[Record]], list[str]]:
  """Runs of one config on one data set, each seed once. And which were left out."""
  groups: dict[tuple, dict[int, Record]] = {}
  notes = []
  for one in finished:
    group = groups.setdefault((one.task, frozenset(one.settings.items())), {})
    first = group.setdefault(one.config.seed, one)
    if first is not one:
      notes.append(f'Left out: {one} ({one.workdir}) has the config and the seed of '
                   f'{first.workdir}; they count once.')
  return [list(group.values()) for group in groups.values()], notes


def _several_rows(firsts: Sequence[Record]) -> list[str]:
  """Why runs whose rows begin alike are not one row. firsts: one run of each row."""
  alike: dict[tuple[str, ...], list[Record]] = {}
  for one in firsts:
    alike.setdefault(_head(one), []).append(one)
  notes = []
  for (source, split, method, recipe), several in alike.items():
    unlike = [f'{name} ({"; ".join(map(short, values))})'
              for name, values in differences(several).items()]
    unlike += ['the data set'] * (len({one.task for one in several}) > 1)
    if unlike:
      notes.append(f'The runs of {method} ({recipe}) on {source}, split {split}, differ in more '
                   f'than the seed, hence in rows of their own; in the order of these: '
                   f'{", ".join(unlike)}.')
  return notes


def _several_folders(found: Sequence[Record]) -> list[str]:
  """Which folders are taken for one data set."""
  folders: dict[tuple, dict[Path, str]] = {}
  for one in found:
    if folder := unseen.folder_of(one.config):
      folders.setdefault(one.task, {})[folder] = one.config.data.dir
  return [f'{" and ".join(of.values())} count as one data set, as name, classes and validation '
          'images are called the same.' for of in folders.values() if len(of) > 1]


def _head(one: Record) -> tuple[str, str, str, str]:
  """The first cells of a run's row."""
  return (one.config.data.source, one.config.data.split, one.method, one.config.method.recipe)


def _on_papers_split(one: Record) -> bool:
  """Whether a run's labelled images are, as far as its files tell, those of a published list."""
  data, labelled = one.config.data, one.results.get('labelled_sha256')
  if data.get('split_source', 'published') != 'published' or data.source not in published.NAMES:
    return False
  return labelled is None or published.is_published(data.source, data.split, labelled)


def _scores(one: Record) -> dict[str, dict[str, Any]]:
  """Protocol -> network -> scores of the last step."""
  sheet = {'whole': one.results['last']}
  for evaluation in evaluations.read(one.workdir):
    if evaluation.get('step') == one.results['last']['step'] and not _foreign(one, evaluation):
      suffix = _TEST if evaluation.get('split') == 'test' else ''
      sheet |= {f'{name}{suffix}': of for name, of in evaluation.get('protocols', {}).items()}
  return sheet


def _test_images(one: Record) -> Iterator[str | None]:
  """Of each evaluation of the last step on test images, the digest of their ids."""
  for evaluation in evaluations.read(one.workdir):
    if (evaluation.get('split'), evaluation.get('step')) == ('test', one.results['last']['step']):
      yield evaluation.get('validation_sha256')


def _foreign(one: Record, evaluation: dict[str, Any]) -> str:
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
