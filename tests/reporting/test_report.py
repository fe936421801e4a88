"""The page about runs that were never trained: their files are written directly."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import launch
from gta_jax.data import shapes, voc
from gta_jax.inference import finished
from gta_jax.methods.registry import METHODS
from gta_jax.reporting import charts, paper, report, runs
from gta_jax.training import from_data, setup, verdict
from tests.reporting.pages import NETWORKS, Parsed, data_of, tiny_config


def test_a_page_about_a_run_has_all_that_its_files_hold(workdirs, dataset, tmp_path):
  one = shutil.copytree(workdirs['gta0'], tmp_path / 'one')
  found = from_data.inspect(dataset)
  (one / 'inspection.json').write_text(json.dumps(
    from_data.to_json(found, from_data.proposals(found, tiny_config('gta', 0)))))
  scores = {'miou': 0.25, 'pixel_accuracy': 0.5, 'iou': dict.fromkeys(shapes.CLASSES, 0.25)}
  (one / 'baseline.json').write_text(json.dumps(
    {'ids': ['a'], 'confusions': [np.eye(7, dtype=int).tolist()], 'scores': scores}))
  assert launch.main(['gta-jax', '--mode', 'report', '--workdir', str(one)]) == 0
  page = (one / 'report.html').read_text()
  parsed = Parsed(page)
  assert parsed.sections == ['scores', 'curves', 'classes', 'viewer', 'notes', 'confusion', 'data',
                             'config', 'run']
  assert parsed.loads == ['data:,'] and len(parsed.ids) == len(set(parsed.ids))
  assert ['class', 'pixel classifier', *NETWORKS] in parsed.rows
  assert ['disc', '25.00', '10.00', '10.00', '10.00'] in parsed.rows
  assert ['mIoU', '25.00', '40.00', '40.00', '40.00'] in parsed.rows
  assert ['disc', '0.0', '100.0', '0.0', '0.0', '0.0', '0.0', '0.0'] in parsed.rows
  assert 'read &lt;b&gt;this&lt;/b&gt; &amp; that' in page and 'step 4: a class vanishes' in page
  assert "gta-jax --config &#x27;shapes:4&#x27;" in page and 'main 0.25 s' in page
  assert '0.1, then 0.2' in page
  crop = next(row for row in parsed.rows if row[0] == 'data.crop' and len(row) == 3)
  assert crop[1] == '32' and crop[2]
  held = data_of(page)
  assert [image['name'] for image in held['images']][0].startswith('val/000000 (mIoU: teacher 0.00')
  assert list(held['images'][0]['layers']) == [
    'image', 'truth', *NETWORKS, 'confidence', 'least confident']
  assert {row['series'] for row in held['charts'][0]['rows']} == set(NETWORKS)
  assert [layer['data']['values'] for layer in held['charts'][0]['spec']['layer'][:1]] == [
    [{'step': 0, 'stage': 'warmup'}, {'step': 2, 'stage': 'main'}]]
  assert len(held['charts']) == 5
  assert len(page) < 1_500_000


def test_a_page_about_several_runs_sets_them_side_by_side(workdirs, tmp_path):
  out = tmp_path / 'deep' / 'out'
  status = launch.main(['launch.py', '--mode', 'report', '--out', str(out),
                        '--workdirs', ','.join(map(str, workdirs.values()))])
  assert status == 0
  page = (out / 'report.html').read_text()
  parsed = Parsed(page)
  assert ['shapes', '4', 'gta', 'scratch', '1, 0', 'whole', *3 * ['41.00 ± 1.41']] in parsed.rows
  assert ['shapes', '4', 'sup_only', 'scratch', '0', 'whole', '30.00', '30.00', '-'] in parsed.rows
  assert ['mIoU', '30.00', '35.00', '42.00', '40.00'] in parsed.rows
  assert len(parsed.ids) == len(set(parsed.ids))
  held = data_of(page)
  assert len(held['charts']) == 4  # without that of single classes
  image, *_ = held['images']
  assert list(image['layers'])[2:] == [
    f'{method}, split 4, seed {seed}: teacher' for method, seed in
    (('sup_only', 0), ('mean_teacher', 0), ('gta', 1), ('gta', 0))]
  assert page.count('<details><summary>gta, split 4, seed') == 2


def test_a_page_that_is_there_follows_what_comes_after_the_run(workdirs, tmp_path, monkeypatch):
  one = shutil.copytree(workdirs['gta0'], tmp_path / 'one')
  monkeypatch.setattr(finished, 'evaluate_run', lambda *_, **__: None)
  evaluate = ['gta-jax', '--mode', 'evaluate', '--workdir', str(one)]
  assert launch.main(evaluate) == 0 and not (one / 'report.html').exists()
  (one / 'report.html').write_text('old')
  assert launch.main(evaluate) == 0 and len((one / 'report.html').read_text()) > 1e5


def test_the_data_of_a_run_that_took_no_proposal_are_shown(workdirs, dataset, tmp_path):
  one = shutil.copytree(workdirs['gta0'], tmp_path / 'one')
  (one / 'inspection.json').write_text(json.dumps(
    from_data.to_json(from_data.inspect(dataset), [])))
  page = report.make_page([one])
  assert 'data' in Parsed(page).sections and 'look (0 to 255)' in page and 'Proposed' not in page


def test_whatever_is_there_is_shown(workdirs, tmp_path):
  bare = shutil.copytree(workdirs['gta0'], tmp_path / 'bare')
  for name in ('results.json', 'report.json', 'metrics.jsonl', 'notes.jsonl'):
    (bare / name).unlink()
  page = report.make_page([bare])
  assert Parsed(page).sections == ['config', 'run']
  assert 'Nothing has been evaluated yet.' in page and 'vegaEmbed=' not in page
  under_way = shutil.copytree(workdirs['gta0'], tmp_path / 'under_way')
  (under_way / 'results.json').unlink()
  assert 'evaluated at step 4 of 4' in report.make_page([under_way])
  with (under_way / 'metrics.jsonl').open('a') as log:
    log.write('{"step": 6, "val/')  # is being written
  assert 'evaluated at step 4 of 4' in report.make_page([under_way])


def test_what_an_image_is_called_is_no_markup(workdirs, tmp_path):
  odd = shutil.copytree(workdirs['gta0'], tmp_path / 'odd')
  kept = json.loads((odd / 'report.json').read_text())
  kept['shown'][0]['id'] = '</script><script>alert(1)</script>'
  (odd / 'report.json').write_text(json.dumps(kept))
  page = report.make_page([odd])
  assert '<script>alert' not in page
  assert data_of(page)['images'][0]['name'].startswith('</script><script>alert(1)')


def test_curves_for_notebooks(workdirs, tmp_path):
  charts.write_curves(tmp_path / 'curves.png', [runs.read_record(workdirs['gta0'])])
  with Image.open(tmp_path / 'curves.png') as picture:
    assert picture.width > 1000
    assert len(set(picture.convert('RGB').getdata())) > 50


def test_a_long_log_is_thinned_to_means(workdirs):
  one = runs.read_record(workdirs['gta0'])
  long = dataclasses.replace(one, metrics=[
    {'step': step, 'train/student_labelled_loss': step % 2} for step in range(1, 1001)])
  chart, = charts.make_charts([long])
  assert len(chart.rows) == 334 and chart.rows[-1]['step'] == 1000
  assert sum(row['value'] for row in chart.rows) / 334 == pytest.approx(0.5, abs=0.01)


def test_curves_have_the_series_that_are_logged_and_no_class_is_a_loss(workdirs):
  logged = {'student_labelled_loss': 1.0, 'kept_share_by_class/forest_loss': 0.5, 'threshold': 0.9,
            'confidence': 0.8, 'kept_share_by_class/water_rate': 0.5, 'student_rate': 0.1}
  one = dataclasses.replace(runs.read_record(workdirs['gta0']), metrics=[
    {'step': 1} | {f'train/{name}': value for name, value in logged.items()}])
  series = {chart.title: sorted({row['series'] for row in chart.rows})
            for chart in charts.make_charts([one])}
  assert series == {
    'Training loss': ['student labelled'], 'Learning rate': ['student'],
    'Pseudo-labels': ['confidence threshold', 'mean confidence'],
    'Kept pseudo-labels by class': ['forest loss', 'water rate']}


@pytest.mark.parametrize('line', ['{"step": 4,', '[1]', '{"loss": 1.0}', '7'])
def test_a_damaged_log_is_named(workdirs, tmp_path, line):
  damaged = shutil.copytree(workdirs['sup_only0'], tmp_path / 'damaged')
  with (damaged / 'metrics.jsonl').open('a') as log:
    log.write(line + '\n')
  with pytest.raises(ValueError, match=f'{damaged}/metrics.jsonl is damaged'):
    report.make_page([damaged])


@pytest.mark.parametrize('name', ['inspection.json', 'report.json'])
def test_a_damaged_file_is_named(workdirs, tmp_path, name):
  damaged = shutil.copytree(workdirs['sup_only0'], tmp_path / 'damaged')
  (damaged / name).write_text('{"digest": 1}')
  with pytest.raises(ValueError, match=f'{name} is damaged'):
    report.make_page([damaged])


def test_protocols_of_an_evaluation_have_rows_and_the_paper_stands_beside(workdirs, tmp_path):
  one = tmp_path / 'one'
  shutil.copytree(workdirs['gta0'], one)
  config = setup.from_json(one / 'config.json')
  config.data.update(source='voc', split='183', dir=str(tmp_path / 'nowhere'))
  (one / 'config.json').write_text(setup.to_json(config))
  evaluation = {'step': 4, 'split': 'val', 'dataset': 'shapes', 'images': 3,
                'validation_sha256': 'abc',
                'protocols': {'crop_padding0': {'teacher': {'miou': 0.5}}}}
  of_test = evaluation | {'split': 'test', 'validation_sha256': 'of the test images',
                          'protocols': {'whole': {'teacher': {'miou': 0.6}}}}
  (one / 'evaluation.json').write_text(json.dumps({'evaluations': [evaluation, of_test]}))
  page = report.make_page([one])
  rows, paper_says = Parsed(page).rows, '73.16 ± 0.45 (Table 1)'
  for protocol, *scores in (('whole', '40.00', '40.00', '40.00'), ('crop_padding0', '50.00', '-',
                            '-'), ('whole (test)', '60.00', '-', '-')):
    assert ['voc', '183', 'gta', 'scratch', '0', protocol, *scores, paper_says] in rows
  assert 'Left out' not in page and 'it was not measured here' in page
  for foreign in ({'dataset': 'other'}, {'validation_sha256': 'def'}):
    (one / 'evaluation.json').write_text(
      json.dumps({'evaluations': [evaluation | foreign]}))
    page = report.make_page([one])
    assert not any('crop_padding0' in row for row in Parsed(page).rows)
    assert f'Left out: {one / "evaluation.json"} has one of 3 images of' in page
  results = json.loads((one / 'results.json').read_text())
  for labelled, stands in ((voc.LISTS.labelled['183'], True), ('of a list of the user', False),
                           (voc.LISTS.labelled['183'], True)):
    (one / 'results.json').write_text(json.dumps({**results, 'labelled_sha256': labelled}))
    assert (paper_says in report.make_page([one])) == stands
  config.data.split_source = 'seeded'
  (one / 'config.json').write_text(setup.to_json(config))
  assert paper_says not in report.make_page([one])


def test_seeds_that_drew_other_labelled_images_are_told(workdirs, tmp_path):
  pages = []
  for seed in ('gta0', 'gta1'):
    folder = shutil.copytree(workdirs[seed], tmp_path / seed)
    results = json.loads((folder / 'results.json').read_text())
    (folder / 'results.json').write_text(json.dumps({**results, 'labelled_sha256': seed}))
    pages.append(report.make_page(sorted(tmp_path.iterdir())))
  told = 'The runs of gta (scratch) on shapes, split 4, differ in their labelled images'
  assert told not in pages[0] and told in pages[1]


def test_the_verdict_against_supervised_training_stands_at_the_top(workdirs, tmp_path):
  folders = []
  for name, right in (('gta0', 90), ('sup_only0', 50)):
    folders.append(shutil.copytree(workdirs[name], tmp_path / name))
    counts = np.tile([[right, 100 - right], [0, 100]], (4, 1, 1))
    verdict.write_confusions(folders[-1], tuple('abcd'), {'teacher': counts})
  assert 'Against supervised training alone' in report.make_page(folders)


def test_folders_without_a_run_are_refused(tmp_path):
  with pytest.raises(ValueError, match='does not exist'):
    report.write_report([tmp_path / 'none'], tmp_path / 'out')
  with pytest.raises(ValueError, match='--workdirs'):
    report.write_report([], tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_the_papers_figures_stand_beside_their_rows():
  assert str(paper.find('voc', '183', 'gta')) == '73.16 ± 0.45 (Table 1)'
  assert str(paper.find('voc', '2646', 'mean_teacher_consistency')) == '73.02 (Table 2)'
  assert paper.find('voc', '2646', 'mean_teacher') is None  # its labels are hard
  assert str(paper.find('voc', '1464', 'u2pl')) == '79.49 (Table 1)'
  assert paper._FIGURES['voc'].keys() <= METHODS.keys()
  assert str(paper.find('voc', '183', 'gta_confidence')) == '70.67 (Table 9)'
  assert paper.find('voc', '92', 'gta_confidence') is None
  assert paper.find('shapes', '183', 'gta') is None
