"""Which runs a page sets side by side, and what it calls them."""

import json
import shutil

from gta_jax.reporting import report, runs
from gta_jax.training import from_data, setup
from tests.reporting.pages import Parsed, data_of


def copy(workdir, to, *, results=None, **fields):
  """A run with other fields in its config, and other results."""
  shutil.copytree(workdir, to)
  config = setup.from_json(to / 'config.json')
  config.update_from_flattened_dict(fields)
  (to / 'config.json').write_text(setup.to_json(config))
  kept = json.loads((to / 'results.json').read_text())
  (to / 'results.json').write_text(json.dumps(kept | (results or {})))
  return to


def test_runs_in_folders_of_one_name_have_names_of_their_own(workdirs, tmp_path):
  folders = [copy(workdirs['gta0'], tmp_path / place, results=None)
             for place in ('x/a/mine', 'x/b/mine', 'x/c/b/mine', 'x/c/other')]
  labels = runs.labels_of([runs.read_record(folder) for folder in folders])
  assert [label.removeprefix('gta, split 4, seed 0') for label in labels] == [
    ' (a/mine)', ' (x/b/mine)', ' (c/b/mine)', ' (other)']
  page = report.make_page(folders)
  assert ['class', *(f'{label}: teacher' for label in labels)] in Parsed(page).rows
  assert {row['run'] for row in data_of(page)['charts'][0]['rows']} == set(labels)


def test_the_page_puts_in_brackets_what_the_config_sets_itself(workdirs, dataset, tmp_path):
  one = copy(workdirs['gta0'], tmp_path / 'one', **{'data.crop': 64})
  found, legend = from_data.inspect(dataset), 'in brackets what the config sets itself'
  taken = from_data.Proposal('data.crop', 64, 'it fits')
  for proposed, bracketed in (([taken], False), ([taken, from_data.Proposal(
      'model.output_stride', 5, 'why not')], True)):
    (one / 'inspection.json').write_text(json.dumps(from_data.to_json(found, proposed)))
    page = report.make_page([one])
    assert '  data.crop ' in page and (legend in page) == bracketed
    assert ('(model.output_stride)' in page) == bracketed
