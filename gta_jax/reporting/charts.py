"""The curves of runs as Vega-Lite specifications, and the library that draws them in a page.

Vega's bundle has 0.9 MB, a fifth of plotly's 4.8 MB; it draws SVG, whose text takes the page's
colours and is read out by screen readers. vl-convert brings it as a package, needs no network, and
draws the same specifications as PNG where there is no browser.
"""

import functools
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gta_jax.reporting.runs import Record, labels_of

_POINTS = 400  # of a series; a longer one is averaged
_BUNDLE = 'import sys, vl_convert; sys.stdout.write(vl_convert.javascript_bundle())'
Row = dict[str, Any]


class Chart(NamedTuple):
  """title: of a heading. unit: of the values. spec: Vega-Lite. rows: step, run, series, value."""

  title: str
  unit: str
  spec: dict[str, Any]
  rows: list[Row]


@functools.cache
def vega_bundle() -> str:
  """Vega, Vega-Lite and vega-embed as one script.

  From a process of its own: it starts V8, whose 150 MB a run that trains should not keep.
  """
  done = subprocess.run([sys.executable, '-c', _BUNDLE], capture_output=True, text=True,
                        check=False, encoding='utf-8')
  if done.returncode:
    raise OSError(f'the charts cannot be drawn: {done.stderr.strip().splitlines()[-1:]}; install '
                  'vl-convert-python.')
  return done.stdout


def make_charts(found: Sequence[Record]) -> list[Chart]:
  """mIoU, losses, rates, kept shares against steps; those of which the logs hold something.

  Curves of single classes are shown of one run alone.
  """
  charts = []
  for title, unit, factor, name_of in _KINDS if len(found) == 1 else _KINDS[:-1]:
    rows = [row | {'run': label} for one, label in zip(found, labels_of(found), strict=True)
            for row in _rows(one, name_of, factor)]
    if rows:
      charts.append(Chart(title, unit, _spec(rows, unit, found), rows))
  return charts


def write_curves(path: Path, found: Sequence[Record]) -> None:
  """Writes mIoU and losses as a PNG, for notebooks."""
  import vl_convert  # noqa: PLC0415  Starts V8; pages do without, see vega_bundle.

  specs = [chart.spec | {'title': chart.title, 'width': 420, 'data': {'values': chart.rows}}
           for chart in make_charts(found)[:2]]
  path.write_bytes(vl_convert.vegalite_to_png({'hconcat': specs, 'background': 'white'}, scale=1.5))


def _network_of(suffix: str, prefix: str) -> Callable[[str], str]:
  def name(key: str) -> str:
    if key.startswith(prefix) and key.endswith(suffix):
      own = key.removeprefix(prefix).removesuffix(suffix)
      return '' if suffix and '/' in own else own.replace('_', ' ')  # That is one of many classes.
    return ''

  return name


def _kept(key: str) -> str:
  return {'train/kept_share': 'kept pixels', 'train/threshold': 'confidence threshold',
          'train/confidence': 'mean confidence'}.get(key, '')


# Title, unit, factor, and the name of a series by its key in the log ('': not of this chart).
_KINDS = (
  ('Validation mIoU', '%', 100, _network_of('_miou', 'val/')),
  ('Training loss', '', 1, _network_of('_loss', 'train/')),
  ('Learning rate', '', 1, _network_of('_rate', 'train/')),
  ('Pseudo-labels', 'share', 1, _kept),
  ('Kept pseudo-labels by class', 'share', 1, _network_of('', 'train/kept_share_by_class/')),
)


def _rows(one: Record, name_of: Callable[[str], str], factor: float) -> list[Row]:
  series: dict[str, list[tuple[int, float]]] = {}
  for line in one.metrics:
    for key, value in line.items():
      if value is not None and (name := name_of(key)):
        series.setdefault(name, []).append((line['step'], factor * value))
  return [{'step': step, 'series': name, 'value': value}
          for name, points in series.items() for step, value in _thinned(points)]


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
  """At most _POINTS of them: means of neighbours, at the last one's step."""
  size = -(-len(points) // _POINTS)
  parts = [points[i:i + size] for i in range(0, len(points), size)]
  return [(part[-1][0], float(f'{sum(v for _, v in part) / len(part):.5g}')) for part in parts]


def _spec(rows: list[Row], unit: str, found: Sequence[Record]) -> dict[str, Any]:
  several = len(found) > 1
  few = len(rows) / len({(row['run'], row['series']) for row in rows}) < 40
  main, dash = ('run', 'series') if several else ('series', None)
  axis = {'field': 'value', 'type': 'quantitative', 'title': unit or None,
          'scale': {'zero': unit == 'share'}}
  encoding = {
    'x': {'field': 'step', 'type': 'quantitative', 'title': 'step'}, 'y': axis,
    'color': {'field': main, 'type': 'nominal', 'title': None,
              'scale': {'scheme': 'tableau10'}, 'legend': {'orient': 'bottom', 'columns': 3}},
    'opacity': {'condition': {'param': 'chosen', 'value': 1}, 'value': 0.12},
    'tooltip': [{'field': name} for name in ('run', 'series', 'step', 'value')]}
  if dash:
    encoding['strokeDash'] = {
      'field': dash, 'type': 'nominal', 'title': None, 'legend': {'orient': 'bottom'}}
  lines = {
    'mark': {'type': 'line', 'point': few, 'strokeWidth': 1.8}, 'encoding': encoding,
    'params': [{'name': 'chosen', 'select': {'type': 'point', 'fields': [main]},
                'bind': 'legend'}]}
  return {'$schema': 'https://vega.github.io/schema/vega-lite/v6.json', 'width': 'container',
          'height': 240, 'data': {'name': 'rows'},
          'layer': [*_borders(found, max(row['step'] for row in rows)), lines]}


def _borders(found: Sequence[Record], last: int) -> list[dict[str, Any]]:
  """Dashed lines where stages begin that the runs have in common."""
  stages = [one.snapshot.get('stages', []) for one in found]
  if not stages[0] or any(other != stages[0] for other in stages):
    return []
  start, values = 0, []
  for stage in stages[0]:
    if stage['steps'] and start <= last:
      values.append({'step': start, 'stage': stage['name']})
    start += stage['steps']
  if len(values) < 2:
    return []
  x = {'field': 'step', 'type': 'quantitative'}
  text = {'type': 'text', 'align': 'left', 'dx': 4, 'y': 8, 'color': 'gray', 'fontSize': 11}
  return [{'data': {'values': values}, 'mark': {'type': 'rule', 'strokeDash': [4, 4],
                                                'color': 'gray'}, 'encoding': {'x': x}},
          {'data': {'values': values}, 'mark': text,
           'encoding': {'x': x, 'text': {'field': 'stage'}}}]
