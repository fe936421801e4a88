"""An inspection of a data set, and what it proposes for training, as text."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import ml_collections

from gta_jax.data import sources
from gta_jax.data.files import DataError
from gta_jax.data.inspection import Inspection
from gta_jax.data.proposals import Proposal, shown
from gta_jax.data.twins import of_twins
from gta_jax.data.writing import check_writable, replace_text
from gta_jax.training import config_rules, datasets, from_data
from gta_jax.training.workdir_files import has_checkpoint, read_json

_WIDTH = 100
_KINDS = 8  # rows of kinds of images; the others are counted


def inspect_data(config: ml_collections.ConfigDict, folder: Path) -> str:
  """Inspects the data of a config and writes FOLDER/inspection.json.

  Returns: a table. What training would refuse stands in it too, where the files themselves are
    whole.
  Raises: ValueError for a config, and DataError for files that cannot be used; where another
    file of this name is in the folder, or the inspection that a run there began with, of other
    files.
  """
  path = folder / 'inspection.json'
  before = read_json(path) if path.exists() else {}
  if path.exists() and 'digest' not in before:
    raise ValueError(f'{path} is no inspection; move it, or give another --workdir.')
  config_rules.check(config)
  check_writable(folder, '--workdir')
  dataset = datasets.make_dataset(config)
  held = sources.check(dataset)
  try:
    notes = sources.check_classes(dataset, held)
  except DataError as error:
    notes = [f'Training will refuse this: {error}']
  notes += of_twins(dataset)
  found = from_data.inspect(dataset, folder)
  if has_checkpoint(folder) and before.get('digest', found.digest) != found.digest:
    raise ValueError(f'{path} is what the run there began with, of other files than {found.name} '
                     'has now; give another --workdir, or none.')
  # Nothing follows from masks without a label, which training refuses.
  proposed = from_data.proposals(found, config) if found.has_labels else []
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(from_data.to_json(found, proposed), indent=2) + '\n'
  replace_text(path, text)
  return inspection_table(
    found, proposed, from_data.unset(config), [*dataset.note.splitlines(), *notes])


def inspection_table(
  found: Inspection, proposed: Sequence[Proposal], unset: Iterable[str], notes: Sequence[str]
) -> str:
  """What --mode inspect prints.

  Args:
    found: about the data.
    proposed: for fields of a config.
    unset: the fields that take the proposal; the others are set already.
    notes: further sentences, of the data set's reader and checks.
  """
  roles = ', '.join(f'{count} {role}' for role, count in found.images.items() if count)
  unset = set(unset)
  parts = [f'{found.name}: {roles} images', _kinds(found), _classes(found), _looks(found)]
  if remarks := [*notes, *found.remarks]:
    parts.append('\n'.join(['Worth knowing', *(_wrapped(remark) for remark in remarks)]))
  if not proposed:  # of a run whose config left nothing to the data but the range of 16 bits
    return '\n\n'.join(parts)
  rows = [(one.field if one.field in unset else f'({one.field})', shown(one.value))
          for one in proposed]
  fields, values = (max(map(len, column)) for column in zip(*rows, strict=True))
  bracketed = any(one.field not in unset for one in proposed)
  lines = ['Proposed; in brackets what the config sets itself' if bracketed else 'Proposed']
  for (field, value), one in zip(rows, proposed, strict=True):
    long = len(value) > 24
    head = f'  {field:<{fields}}  ' + (value if long else f'{value:<{min(values, 24)}}  ')
    lines.append(head + ('' if long else one.reason))
    if long:
      lines.append(f'  {"":<{fields}}  {one.reason}')
  return '\n\n'.join([*parts, '\n'.join(lines)])


def _kinds(found: Inspection) -> str:
  rows = [['images', 'format', 'bits', 'height x width']]
  rows += [[str(kind['images']), kind['format'] or '-', str(kind['bits']),
            f'{kind["height"]} x {kind["width"]}'] for kind in found.kinds[:_KINDS]]
  table = _table(rows)
  if more := found.kinds[_KINDS:]:
    table += f'\n  and {sum(kind["images"] for kind in more)} of {len(more)} more kinds'
  return f'{table}\n  {"grey" if found.grey else "colour"}{_sampled(found, "headers")}'


def _classes(found: Inspection) -> str:
  rows = [['class', *(f'{role} {what}' for role in found.pixels for what in ('%', 'masks')),
           'width']]
  for i, name in enumerate(found.classes):
    row = [name]
    for role, pixels in found.pixels.items():
      share = 100 * pixels[i] / max(sum(pixels), 1)
      row += [f'{share:.2f}' if pixels[i] else '-', str(found.holding[role][i])]
    width = found.widths[i]
    rows.append([*row, '-' if width is None else f'{width:g}'])
  void = ', '.join(f'{100 * share:.1f} % of {role}' for role, share in found.void.items())
  return (f'{_table(rows)}\n  without a label: {void} pixels\n  width: half of the class lies '
          f'where a circle of so many pixels fits{_sampled(found, "masks for widths")}')


def _looks(found: Inspection) -> str:
  rows = [['look (0 to 255)', 'brightness', 'contrast', 'images looked at']]
  for role, look in found.looks.items():
    some, of = found.looked_at[f'{role} images']
    rows.append([role, *(f'{look[name][0]:.0f} ± {look[name][1]:.0f}'
                         for name in ('brightness', 'contrast')), f'{some} of {of}'])
  return _table(rows) + (f'\n  {found.told}' if found.told else '')


def _sampled(found: Inspection, what: str) -> str:
  some, of = found.looked_at[what]
  return '' if some == of else f'; {some} of {of} looked at'


def _table(rows: Sequence[Sequence[str]]) -> str:
  """The first column to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join('  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
                   for row in rows)


def _wrapped(text: str) -> str:
  return textwrap.fill(text, _WIDTH, initial_indent='  - ', subsequent_indent='    ')
