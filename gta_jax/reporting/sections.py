"""The parts of a page about runs, each from what their files hold; '' where they hold nothing."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gta_jax.reporting import elements
from gta_jax.reporting.charts import Chart
from gta_jax.reporting.inspection_table import inspection_table
from gta_jax.reporting.runs import Record, labels_of
from gta_jax.reporting.viewer import viewer_images
from gta_jax.training import from_data
from gta_jax.training.logs import percent
from gta_jax.training.same_run import flatten

_MOST_CLASSES = 64  # of a confusion matrix; a larger one is not read by anybody


def charts_section(charts: Sequence[Chart]) -> str:
  """Places for the curves, which the page's script draws, and the mIoU as a table."""
  places = ''.join(
    f'<figure><figcaption>{escape(chart.title)}{f" ({escape(chart.unit)})" if chart.unit else ""}'
    f'</figcaption><div class="chart" data-chart="{number}" role="img" '
    f'aria-label="{escape(chart.title)} against steps"></div></figure>'
    for number, chart in enumerate(charts))
  values = ''
  if scored := [chart for chart in charts if chart.title.endswith('mIoU')]:
    values = elements.folded('mIoU as a table', _values_table(scored[0]))
  return elements.section('curves', 'Curves', f'<div class="charts">{places}</div>' * bool(places),
                          values)


def _values_table(chart: Chart) -> str:
  series = dict.fromkeys((row['run'], row['series']) for row in chart.rows)
  several = len({run for run, _ in series}) > 1
  values = {(row['step'], row['run'], row['series']): row['value'] for row in chart.rows}
  rows = [['step', *(f'{run}: {name}' if several else name for run, name in series)]]
  rows += [[str(step), *(f'{values[step, *key]:.2f}' if (step, *key) in values else '-'
                         for key in series)] for step in sorted({step for step, *_ in values})]
  return elements.table(rows, caption=f'{chart.title} in {chart.unit}')


def classes_section(found: Sequence[Record]) -> str:
  """IoU by class of every network, or of the predicting one of several runs, and what to beat."""
  tables = []
  for task in dict.fromkeys(one.task for one in found):
    own = [one for one in found if one.task == task and one.scores]
    labels = dict(zip(map(id, found), labels_of(found), strict=True))
    columns: dict[str, Mapping[str, Any]] = {}
    for one in own:
      # Of the same images; which masks it learnt from stands in the verdict.
      if 'scores' in one.baseline and (
          one.baseline.get('validation_sha256', one.validation_sha256) == one.validation_sha256):
        columns.setdefault('pixel classifier', one.baseline['scores'])
      shown = one.scores if len(found) == 1 else dict([next(iter(one.scores.items()))])
      columns |= {name if len(found) == 1 else f'{labels[id(one)]}: {name}': scores
                  for name, scores in shown.items()}
    if own:
      tables.append(_class_table(columns, own[0]))
  hint = ''
  if len(found) == 1 and tables and found[0].method != 'sup_only':
    missing = [] if found[0].baseline else ['a pixel classifier, found by --mode baseline']
    missing += ['supervised training alone (method=sup_only), by --mode report --workdirs A,B']
    hint = f'To be had beside it: {"; ".join(missing)}.'
  return elements.section('classes', 'By class', *tables, elements.paragraph(hint, 'remark'))


def _class_table(columns: Mapping[str, Mapping[str, Any]], one: Record) -> str:
  rows = [['class', *columns]]
  rows += [[name, *(percent(scores['iou'].get(name)) for scores in columns.values())]
           for name in one.classes]
  rows += [['mIoU', *(percent(scores['miou']) for scores in columns.values())],
           ['pixel accuracy', *(percent(of.get('pixel_accuracy')) for of in columns.values())]]
  return elements.table(rows, caption=f'IoU in %, whole validation images of {one.dataset}',
                        marked=[len(rows) - 3])


def viewer_section(found: Sequence[Record]) -> str:
  """The controls of the viewer; the page's script fills them."""
  if not viewer_images(found):
    return ''
  boxes = ''.join(
    f'<li><span style="background:rgb({",".join(map(str, rgb))})"></span>{escape(name)}</li>'
    for name, rgb in zip(found[0].classes, found[0].palette, strict=True))
  about = 'The images that score worst come first.' if len(found) == 1 else (
    'What the network of each run that predicts makes of the same images.')
  if len(found) == 1 and (share := found[0].snapshot.get('drop_share')) is not None:
    about += (f' Least confident: the {share:.0%} of all pixels that are shown, with a confidence '
              f'below {found[0].snapshot["threshold"]:.2f}.')
  return elements.section('viewer', 'Validation images', elements.paragraph(about), f'''
<div id="view">
<p class="controls">
<label>image <select id="view-image"></select></label>
<button type="button" id="view-before" aria-label="image before">&larr;</button>
<button type="button" id="view-after" aria-label="next image">&rarr;</button>
<label>left <select id="view-left"></select></label>
<label>right <select id="view-right"></select></label>
</p>
<div id="view-stage"><div class="pane" id="view-base"><img alt=""></div>
<div class="pane" id="view-top"><img alt=""></div></div>
<p><label for="view-slider">from left to right</label>
<input id="view-slider" type="range" min="0" max="100" value="50"></p>
<div id="view-strip" aria-label="all layers; a press puts one to the right"></div>
<ul class="legend">{boxes}</ul>
</div>''')


def confusion_section(one: Record, opened: bool = True) -> str:
  """The confusion matrix of each network, in percent of the true class."""
  if len(one.classes) > _MOST_CLASSES:
    return ''
  parts = [elements.folded(name, _confusion_table(counts, one.classes, name),
                           opened=opened and name == one.networks[0])
           for name, counts in one.snapshot.get('confusion', {}).items()]
  return elements.section('confusion', 'Confusion', *parts)


def _confusion_table(
  counts: Sequence[Sequence[int]], classes: Sequence[str], network: str
) -> str:
  head = ''.join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
  body = ''
  for name, row in zip(classes, counts, strict=True):
    total = sum(row)
    cells = ''.join(
      f'<td style="--share:{count / total:.3f}" title="{count} pixels">{100 * count / total:.1f}'
      '</td>' if total else '<td>-</td>' for count in row)
    body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
  caption = f'{network}: % of the pixels of a class (row) that are labelled as another (column)'
  return (f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}">'
          f'<table class="confusion"><caption>{escape(caption)}</caption><thead><tr><th></th>{head}'
          f'</tr></thead><tbody>{body}</tbody></table></div>')


def data_section(one: Record) -> str:
  """The inspection of the data, as --mode inspect prints it."""
  if not one.inspection:
    return ''
  found, proposed = from_data.of_json(one.inspection)
  text = inspection_table(found, proposed, one.taken, ())
  return elements.section('data', 'Data', f'<pre tabindex="0">{escape(text)}</pre>')


def config_section(one: Record) -> str:
  """What followed from the data with its reasons, and every field."""
  fields = flatten(json.loads(one.config.to_json()))
  reasons = []
  if one.inspection:
    _, proposed = from_data.of_json(one.inspection)
    reasons = [[p.field, _shown(fields[p.field]), p.reason if p.field in one.taken else
                'set by hand'] for p in proposed if p.field in fields]
  taken = elements.table([['field', 'value', 'reason'], *reasons]) if reasons else ''
  every = elements.table([['field', 'value'], *([k, _shown(v)] for k, v in fields.items())])
  return elements.section('config', 'Config', taken, elements.folded(
    f'all {len(fields)} fields', every))


def _shown(value: Any) -> str:
  return json.dumps(value)


def warnings_section(one: Record) -> str:
  """What the run has told, and the files that it left out."""
  notes = [f'step {line["step"]}: {line["note"]}' if line['step'] else line['note']
           for line in one.notes]
  skipped = [f'left out: {reason}' for reason in one.results.get('skipped', {}).values()]
  return elements.section('notes', 'Notes and warnings', elements.bullets([*notes, *skipped]))


def facts_section(one: Record) -> str:
  """Where, with what, how long, and how to do it again."""
  found, timing = one.snapshot, one.snapshot.get('timing', {})
  if not found:
    return elements.section('run', 'Run', elements.paragraph(
      'Nothing has been evaluated yet.' if not one.results else
      'report.json is missing, as in runs of earlier versions: pictures, confusion matrices and '
      'timing are not known.'))
  stages = ', '.join(f'{stage["name"]} {stage["steps"]}' for stage in found['stages'])
  images = ', '.join(f'{count} {role}' for role, count in found['images'].items() if count)
  waiting = timing.get('waiting_share', {})  # not in runs of earlier versions
  pace = ', '.join(
    f'{name} {seconds:.3g} s' + (f' (waits for images up to {waiting[name]:.0%} of it)'
                                 if waiting.get(name, 0) >= 0.01 else '')
    for name, seconds in timing['step_seconds'].items())
  memory = ', '.join(
    f'{kind} {size / 2**30:.2f} GiB' for kind, size in timing['peak_bytes'].items())
  frozen = '' if found['learning'] == found['parameters'] else f', {found["learning"]:,} learn'
  evaluation = timing['evaluation_seconds']
  rows = {
    'data': f'{one.dataset}: {images} images', 'device': found['device'],
    'gta_jax': ', then '.join(dict.fromkeys(str(entry.get('gta_jax')) for entry in one.starts)),
    'networks': f'{", ".join(found["networks"])}; {found["parameters"]:,} parameters each{frozen}',
    'steps': f'{found["step"]} of {found["steps"]} ({stages})',
    'a step': pace, 'an evaluation': f'{evaluation:.1f} s' if evaluation else '',
    'since it was started last': f'{timing["seconds"] / 60:.1f} minutes', 'most memory': memory,
    'workdir': str(one.workdir)}
  shown = ''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>'
                  for name, value in rows.items() if value)
  command = f'<pre tabindex="0">{escape(found["command"])}</pre>' if found['command'] else ''
  return elements.section('run', 'Run', f'<dl>{shown}</dl>', command and elements.paragraph(
    'The same again, or to go on:'), command)
