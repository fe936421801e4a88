"""One page about one or several runs: report.html, with all that it needs inside."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from gta_jax.data.writing import replace_text
from gta_jax.reporting import elements, sections
from gta_jax.reporting.charts import make_charts, vega_bundle
from gta_jax.reporting.runs import Record, labels_of, read_record, verdicts
from gta_jax.reporting.seeds import seeds_table
from gta_jax.reporting.viewer import viewer_images

FILE = 'report.html'
# Nothing is loaded from anywhere; Vega compiles the expressions of its charts. A page that is
# served asks its server whether a newer one is there.
_POLICY = ("default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
           "script-src 'unsafe-inline' 'unsafe-eval'; connect-src 'self'")
_HERE = Path(__file__).parent


def write_report(workdirs: Sequence[Path], out: Path) -> Path:
  """Writes out/report.html about runs, finished or under way, with whatever is there.

  Args:
    workdirs: of the runs.
    out: folder, made if missing.
  Returns: the path of the page.
  Raises: ValueError without runs, for a workdir without one, or for a damaged file.
  """
  page = make_page(workdirs)
  out.mkdir(parents=True, exist_ok=True)
  replace_text(out / FILE, page)
  return out / FILE


def make_page(workdirs: Sequence[Path]) -> str:
  """The page as text; arguments and errors as write_report."""
  if not workdirs:
    raise ValueError('no run is given to report on; give --workdir W, or --workdirs A,B,...')
  # A folder that is given twice, however it is spelt, is one run.
  found = [read_record(workdir) for workdir in {path.resolve(): path for path in workdirs}.values()]
  charts = make_charts(found)
  title = str(found[0]) if len(found) == 1 else f'{len(found)} runs'
  rows, notes = seeds_table(found)
  parts = [
    elements.section('scores', 'Scores', *map(elements.paragraph, verdicts(found)),
                     elements.table(rows), elements.bullets(notes)),
    sections.charts_section(charts), sections.classes_section(found),
    sections.viewer_section(found)]
  if len(found) == 1:
    parts += _of_run(found[0])
  else:
    parts += [elements.folded(label, '\n'.join(_of_run(one, opened=False)))
              for one, label in zip(found, labels_of(found), strict=True)]
  data = {'charts': [{'spec': chart.spec, 'rows': chart.rows} for chart in charts],
          'images': viewer_images(found)}
  script = vega_bundle() if charts else ''
  return _PAGE.format(
    policy=escape(_POLICY), title=escape(title), style=(_HERE / 'page.css').read_text('utf-8'),
    state=escape(_state(found)), body='\n'.join(filter(None, parts)), data=_json(data),
    library=script, script=(_HERE / 'page.js').read_text('utf-8'))


def _of_run(one: Record, *, opened: bool = True) -> list[str]:
  return [sections.warnings_section(one), sections.confusion_section(one, opened),
          sections.data_section(one), sections.config_section(one), sections.facts_section(one)]


def _state(found: Sequence[Record]) -> str:
  if len(found) > 1:
    return f'{sum(bool(one.results) for one in found)} of {len(found)} have finished'
  one = found[0]
  if one.results:
    return f'{one.dataset}, finished'
  if not one.snapshot:
    return f'{one.dataset}, under way, before its first evaluation'
  return f'{one.dataset}, evaluated at step {one.snapshot["step"]} of {one.snapshot["steps"]}'


def _json(value: Any) -> str:
  """JSON that no HTML parser takes for markup."""
  return json.dumps(value, separators=(',', ':')).replace('<', '\\u003c')


_PAGE = '''<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style></head>
<body><header><h1>{title}</h1><p>{state}</p>
<p id="newer" role="status" hidden><a href="">A newer evaluation is there.</a></p></header>
<main>
{body}
</main>
<script type="application/json" id="page-data">{data}</script>
<script>{library}</script>
<script>{script}</script>
</body></html>
'''
