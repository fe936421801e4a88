"""The page about runs that were never trained: their files are written directly."""

import dataclasses
import html.parser
import json
import re
import shutil
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import launch
from configs import shapes as shapes_config
from gta_jax.data import shapes
from gta_jax.evaluation.layers import make_layers
from gta_jax.evaluation.windows import Prediction
from gta_jax.inference import finished
from gta_jax.reporting import charts, paper, report, runs
from gta_jax.reporting.serve import PageServer
from gta_jax.training import from_data, setup, verdict
from gta_jax.training.logs import MetricWriter
from tests.reporting.browser import needs_browser, open_page

NETWORKS = ('teacher', 'student', 'assistant')


def tiny_config(method, seed):
  config = shapes_config.get_config(f'4,method={method}')
  config.update_from_flattened_dict({
    'seed': seed, 'data.unlabelled': 8, 'data.validation': 3, 'data.size': 40, 'data.crop': 32,
    'model.width': 0.125, 'train.labelled_batch': 2, 'train.unlabelled_batch': 2})
  return config


def write_run(workdir, method, seed, miou, dataset):
  """All that training leaves but checkpoints and pictures."""
  workdir.mkdir()
  (workdir / 'config.json').write_text(setup.to_json(tiny_config(method, seed)))
  described = {'name': 'shapes', 'classes': list(shapes.CLASSES),
               'palette': shapes.PALETTE.tolist()}
  (workdir / 'dataset.json').write_text(json.dumps(described))
  networks = NETWORKS[: 2 if method == 'sup_only' else 3]
  by_class = {name: i / 10 for i, name in enumerate(shapes.CLASSES)}
  scores = {name: {'miou': miou, 'pixel_accuracy': 0.9, 'iou': by_class} for name in networks}
  (workdir / 'results.json').write_text(json.dumps(
    {'validation_sha256': 'abc', 'last': {'step': 4, **scores}}))
  with MetricWriter(workdir, tensorboard=False) as writer:
    for step in (2, 4):
      writer.write(step, {'train/student_labelled_loss': 1 / step, 'train/student_rate': 0.1,
                          'train/kept_share': 0.8, 'train/kept_share_by_class/disc': 0.2})
      writer.write(step, {f'val/{name}_miou': miou * step / 4 for name in networks})
    writer.write(4, {'train/student_labelled_loss': float('nan')})
    writer.note(0, 'read <b>this</b> & that')
    writer.note(4, 'a class vanishes')
  labels = np.zeros((40, 40), np.uint8)
  found = Prediction(labels, np.full((40, 40), 0.5, np.float32))
  shown = [{'id': id, 'miou': dict.fromkeys(networks, i / 10), 'layers': make_layers(
    dataset.reader, id, dict.fromkeys(networks, found), dataset.palette,
    confidence_of=networks[0], threshold=0.6)} for i, id in enumerate(dataset.validation)]
  confusion = np.eye(len(shapes.CLASSES), dtype=int) * 3
  (workdir / 'report.json').write_text(json.dumps({
    'step': 4, 'steps': 4, 'command': "gta-jax --config 'shapes:4'", 'device': '1 cpu',
    'networks': networks, 'parameters': 1200, 'learning': 1000,
    'stages': [{'name': 'warmup', 'steps': 2}, {'name': 'main', 'steps': 2}],
    'images': {'labelled': 4, 'unlabelled': 8, 'validation': 3, 'test': 0},
    'timing': {'seconds': 60.0, 'step_seconds': {'main': 0.25}, 'evaluation_seconds': 1.5,
               'peak_bytes': {'host': 2**30}},
    'scores': scores, 'confusion': dict.fromkeys(networks, confusion.tolist()),
    'drop_share': 0.2, 'threshold': 0.6, 'shown': shown}))
  return workdir


@pytest.fixture(scope='module')
def dataset():
  return setup.make_dataset(tiny_config('gta', 0))


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory, dataset):
  folder = tmp_path_factory.mktemp('runs')
  return {name: write_run(folder / name, name[:-1], int(name[-1]), miou, dataset)
          for name, miou in (('sup_only0', 0.3), ('mean_teacher0', 0.35), ('gta1', 0.42),
                             ('gta0', 0.4))}


class Parsed(html.parser.HTMLParser):
  """Sections, rows of tables, and whatever a page would load."""

  VOID = ('meta', 'link', 'img', 'input')

  def __init__(self, text):
    super().__init__()
    self.open, self.sections, self.rows, self.loads, self.ids = [], [], [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids += [attrs['id']] if 'id' in attrs else []
    self.loads += [attrs[name] for name in ('src', 'href') if attrs.get(name)]
    self.sections += [attrs['class']] if tag == 'section' else []
    self.rows += [[]] if tag == 'tr' else []
    if tag in ('td', 'th'):
      self.rows[-1].append('')
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if {'td', 'th'} & set(self.open):
      self.rows[-1][-1] += data


def data_of(page):
  return json.loads(re.search(r'id="page-data">(.*?)</script>', page, re.DOTALL)[1])


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
  crop = next(row for row in parsed.rows if row[0] == 'data.crop' and len(row) == 3)
  assert crop[1] == '32' and crop[2]
  held = data_of(page)
  assert [image['name'] for image in held['images']][0].startswith('val/000000 (mIoU: teacher 0.00')
  assert list(held['images'][0]['layers']) == [
    'image', 'truth', *NETWORKS, 'confidence', 'dropped pixels']
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
  assert str(paper.find('voc', '2646', 'mean_teacher')) == '73.02 (Table 2)'
  assert str(paper.find('voc', '183', 'gta_confidence')) == '70.67 (Table 9)'
  assert paper.find('voc', '92', 'gta_confidence') is None
  assert paper.find('shapes', '183', 'gta') is None


@pytest.fixture
def server(workdirs, tmp_path):
  live = shutil.copytree(workdirs['gta0'], tmp_path / 'live')
  with PageServer([live]) as served:
    thread = threading.Thread(target=served.serve_forever, kwargs={'poll_interval': 0.05})
    thread.start()
    yield served, live
    served.shutdown()
    thread.join()


def test_a_served_page_follows_the_run_and_is_for_this_machine_alone(server):
  served, live = server
  assert served.server_address[0] == '127.0.0.1'
  tag = served.tag()
  with urllib.request.urlopen(served.url) as answer:
    assert answer.headers['ETag'] == tag and b'seed 0' in answer.read()
  kept = json.loads((live / 'report.json').read_text())
  (live / 'report.json').write_text(json.dumps({**kept, 'step': 3}))
  (live / 'results.json').unlink()
  with urllib.request.urlopen(urllib.request.Request(served.url, method='HEAD')) as answer:
    assert answer.headers['ETag'] != tag and answer.read() == b''
  with urllib.request.urlopen(served.url) as answer:
    assert b'evaluated at step 3 of 4' in answer.read()
  for url, headers, status in ((f'{served.url}etc/passwd', {}, 404),
                               (served.url, {'Host': 'elsewhere.example'}, 403)):
    with pytest.raises(urllib.error.HTTPError) as refused:
      urllib.request.urlopen(urllib.request.Request(url, headers=headers))
    assert refused.value.code == status
  (live / 'config.json').unlink()
  with pytest.raises(urllib.error.HTTPError) as failed:
    urllib.request.urlopen(served.url)
  assert failed.value.code == 500


# After the page's own scripts: keys and the slider, as a person uses them.
_USE = '''<script>setTimeout(() => {
  const press = (target, key) => target.dispatchEvent(
    new KeyboardEvent('keydown', {key, bubbles: true}));
  press(document.getElementById('view-strip'), 'n');
  press(document.getElementById('view-image'), 'n');  // a list takes letters itself
  const slider = document.getElementById('view-slider');
  slider.value = 25;
  slider.dispatchEvent(new Event('input'));
  document.querySelector('#view-strip button:last-child').click();
  document.title = [document.getElementById('view-image').selectedIndex,
    document.getElementById('view-right').value, document.activeElement.textContent,
    document.getElementById('view-top').style.clipPath].join('; ');
}, 500)</script>'''


@needs_browser
def test_a_browser_shows_it_without_a_word_on_the_console(workdirs, tmp_path):
  page = report.make_page([workdirs['gta0']])
  page = _USE.join(page.rpartition('</body>')[::2])
  (tmp_path / 'report.html').write_text(page)
  shown, said = open_page((tmp_path / 'report.html').as_uri(), tmp_path / 'profile')
  assert said == []
  assert shown.count('class="marks"') == 5
  title = re.search('<title>(.*?)</title>', shown)[1]
  assert title == '1; dropped pixels; dropped pixels; inset(0px 0px 0px 25%)'


@needs_browser
def test_a_browser_shows_a_served_page_of_several_runs(server, workdirs, tmp_path):
  served, _ = server
  served.workdirs = tuple(workdirs.values())
  shown, said = open_page(served.url, tmp_path / 'profile')
  assert said == []
  assert shown.count('class="marks"') == 4
  assert 'mean_teacher, split 4, seed 0: teacher</option>' in shown
