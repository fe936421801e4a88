"""Which runs a page sets side by side, and what it calls them."""

import json
import shutil

import numpy as np
import pytest

from gta_jax.data import shapes
from gta_jax.data.splits import ids_sha256
from gta_jax.reporting import report, runs, seeds
from gta_jax.training import from_data, setup, verdict
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


def table(*workdirs):
  """Seeds and scores of the rows, and the notes."""
  rows, (_, *notes) = seeds.seeds_table([runs.read_record(workdir) for workdir in workdirs])
  return [(row[4], row[6]) for row in rows[1:]], ' '.join(notes)


def test_runs_of_other_configs_are_no_seeds_of_one(workdirs, tmp_path):
  longer = copy(workdirs['gta1'], tmp_path / 'gta1', **{'train.epochs': 7.0})
  elsewhere = copy(workdirs['gta1'], tmp_path / 'elsewhere',
                   **{'data.threads': 3, 'evaluate.worst': 1, 'data.cache': 5.0})
  rows, notes = table(workdirs['gta0'], longer)
  assert rows == [('0', '40.00'), ('1', '42.00')]
  epochs = setup.from_json(workdirs['gta0'] / 'config.json').train.epochs
  assert f'in the order of these: train.epochs ({epochs}; 7.0).' in notes
  rows, notes = table(workdirs['gta0'], elsewhere)
  assert rows == [('0, 1', '41.00 ± 1.41')] and not notes


def test_class_weights_of_a_draw_are_the_seeds_and_others_are_not(workdirs, dataset, tmp_path):
  found = from_data.inspect(dataset)
  weights = [(1.0,) * (len(shapes.CLASSES) - 1) + (last,) for last in (2.0, 3.0)]
  folders = [copy(workdirs[f'gta{seed}'], tmp_path / str(seed), **{'loss.class_weights': of})
             for seed, of in enumerate(weights)]
  assert [seed for seed, _ in table(*folders)[0]] == ['0', '1']
  for folder, of in zip(folders, weights, strict=True):
    (folder / 'inspection.json').write_text(json.dumps(from_data.to_json(found, [
      from_data.Proposal('loss.class_weights', of, 'it follows')])))
  assert [seed for seed, _ in table(*folders)[0]] == ['0, 1']


def test_a_seed_counts_once(workdirs, tmp_path):
  again = copy(workdirs['gta0'], tmp_path / 'again')
  rows, notes = table(workdirs['gta0'], again, workdirs['gta1'])
  assert rows == [('0, 1', '41.00 ± 1.41')]
  assert f'({again}) has the config and the seed of {workdirs["gta0"]}' in notes
  page = report.make_page([again, again / '..' / 'again'])
  assert '<title>gta, split 4, seed 0</title>' in page


def test_scores_of_other_test_images_are_no_mean(workdirs, tmp_path):
  folders = [copy(workdirs[f'gta{seed}'], tmp_path / str(seed)) for seed in range(2)]
  for digests, rows in ((('a', 'a'), 2), (('a', 'b'), 1)):
    for folder, digest in zip(folders, digests, strict=True):
      (folder / 'evaluation.json').write_text(json.dumps({'evaluations': [{
        'step': 4, 'split': 'test', 'dataset': 'shapes', 'images': 3, 'validation_sha256': digest,
        'protocols': {'whole': {'teacher': {'miou': 0.6}}}}]}))
    found, notes = table(*folders)
    assert len(found) == rows and ('tested on different images' in notes) == (rows == 1)
  (folders[1] / 'evaluation.json').unlink()
  assert table(*folders) == ([('0, 1', '41.00 ± 1.41')], '')


def test_data_are_known_by_what_they_hold_not_by_their_spelling(
    workdirs, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  places = ('d_ids', f'{tmp_path}/d_ids/', f'{tmp_path}/moved/d_ids')
  first, same, moved = (copy(workdirs[f'gta{i % 2}'], tmp_path / str(i), **{'data.dir': of})
                        for i, of in enumerate(places))
  assert table(first, same) == ([('0, 1', '41.00 ± 1.41')], '')
  assert f'{places[2]} count as one data set' in table(same, moved)[1]
  other = copy(workdirs['gta1'], tmp_path / 'other', results={'validation_sha256': 'def'})
  rows, notes = table(workdirs['gta0'], other)
  assert len(rows) == 2 and 'in the order of these: the data set.' in notes
  # A run under way has its lists.
  (tmp_path / 'other' / 'results.json').unlink()
  (tmp_path / 'other' / 'splits').mkdir()
  (tmp_path / 'other' / 'splits' / 'val.txt').write_text('a\n')
  assert len(runs.read_record(other).validation_sha256) == 64


def test_runs_in_folders_of_one_name_have_names_of_their_own(workdirs, tmp_path):
  folders = [copy(workdirs['gta0'], tmp_path / place, results=None)
             for place in ('x/a/mine', 'x/b/mine', 'x/c/b/mine', 'x/c/other')]
  labels = runs.labels_of([runs.read_record(folder) for folder in folders])
  assert [label.removeprefix('gta, split 4, seed 0') for label in labels] == [
    ' (a/mine)', ' (x/b/mine)', ' (c/b/mine)', ' (other)']
  page = report.make_page(folders)
  assert ['class', *(f'{label}: teacher' for label in labels)] in Parsed(page).rows
  assert {row['run'] for row in data_of(page)['charts'][0]['rows']} == set(labels)


@pytest.mark.parametrize(('fields', 'said'), [
  ([{}], 'supervised training alone ('),
  ([{'train.epochs': 7.0, 'data.threads': 3}], 'alone with train.epochs=7.0 instead of 80.0 ('),
  ([{'train.epochs': 7.0}, {}], 'supervised training alone ('),
  ([{'seed': 1}], '')])
def test_what_supervised_training_differs_in_is_said(workdirs, tmp_path, fields, said):
  folders = [copy(workdirs['gta0'], tmp_path / 'gta', **{'train.epochs': 80.0})]
  folders += [copy(workdirs['sup_only0'], tmp_path / str(i), **({'train.epochs': 80.0} | of))
              for i, of in enumerate(fields)]
  for folder, right in zip(folders, (90, 50, 50), strict=False):
    counts = np.tile([[right, 100 - right], [0, 100]], (4, 1, 1))
    verdict.write_confusions(folder, tuple('abcd'), {'teacher': counts})
  sentences = runs.verdicts([runs.read_record(folder) for folder in folders])
  assert (f'Against {said}' if said.startswith('sup') else said) in ' '.join(sentences)
  assert len(sentences) == bool(said)


def test_of_several_baselines_that_of_the_same_masks_counts(workdirs, tmp_path):
  folders = [copy(workdirs['gta0'], tmp_path / name) for name in 'abc']
  for folder, masks in zip(folders, ('m', 'n', 'n'), strict=True):
    shutil.rmtree(folder / 'splits', ignore_errors=True)
    (folder / 'splits' / '4').mkdir(parents=True)
    (folder / 'splits' / '4' / 'labeled.txt').write_text(f'{masks}\n')
    counts = np.tile([[50, 50], [0, 100]], (4, 1, 1))
    verdict.write_confusions(folder, tuple('abcd'), {'teacher': counts})
    if folder.name != 'b':
      (folder / 'baseline.json').write_text(json.dumps(
        {'ids': [*'abcd'], 'confusions': counts.tolist(), 'labelled_sha256': ids_sha256([masks])}))
  of_b = runs.verdicts([runs.read_record(folder) for folder in folders])[1]
  assert 'Against the pixel classifier' in of_b and 'other masks' not in of_b


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
