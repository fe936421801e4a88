"""The page about runs that were never trained: their checkpoints and logs are written directly."""

import json
import shutil

import pytest
from PIL import Image

import launch
from configs import shapes as shapes_config
from gta_jax.data import shapes
from gta_jax.reporting import paper, report
from gta_jax.training import setup
from gta_jax.training.checkpoint import Checkpoints
from gta_jax.training.logs import MetricWriter


def tiny_config(method, seed):
  config = shapes_config.get_config(f'4,method={method}')
  config.update_from_flattened_dict({
    'seed': seed, 'data.unlabelled': 8, 'data.validation': 3, 'data.size': 40, 'data.crop': 32,
    'model.width': 0.125, 'train.labelled_batch': 2, 'train.unlabelled_batch': 2})
  return config


def write_run(workdir, method, seed, miou, checkpoints):
  workdir.mkdir()
  (workdir / 'config.json').write_text(setup.to_json(tiny_config(method, seed)))
  described = {'name': 'shapes', 'classes': list(shapes.CLASSES),
               'palette': shapes.PALETTE.tolist()}
  (workdir / 'dataset.json').write_text(json.dumps(described))
  networks = ('teacher', 'student', 'assistant')[: 2 if method == 'sup_only' else 3]
  last = {name: {'miou': miou} for name in networks}
  (workdir / 'results.json').write_text(json.dumps(
    {'validation_sha256': 'abc', 'last': {'step': 4, **last}}))
  with MetricWriter(workdir, tensorboard=False) as writer:
    for step in (2, 4):
      writer.write(step, {'train/student_labelled_loss': 1 / step})
    writer.write(4, {f'val/{name}_miou': miou for name in networks})
    writer.write(4, {'train/student_labelled_loss': float('nan')})
  shutil.copytree(checkpoints, workdir / 'checkpoints')
  return workdir


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs')
  with Checkpoints(folder / 'checkpoints') as checkpoints:
    checkpoints.save(4, setup.make_run(tiny_config('gta', 0)).initial_state())
  return {name: write_run(folder / name, name[:-1], int(name[-1]), miou, folder / 'checkpoints')
          for name, miou in (('sup_only0', 0.3), ('mean_teacher0', 0.35), ('gta_unweighted1', 0.38),
                             ('gta1', 0.42), ('gta0', 0.4))}


def test_a_page_with_all_figures(workdirs, tmp_path):
  out = tmp_path / 'deep' / 'out'
  status = launch.main(['launch.py', '--mode', 'report', '--out', str(out),
                        '--workdirs', ','.join(map(str, workdirs.values()))])
  assert status == 0
  page = (out / 'report.md').read_text()
  assert f'| shapes | 4 | gta | scratch | 1, 0 | whole {3 * "| 41.00 ± 1.41 "}| - |' in page
  assert '| shapes | 4 | sup_only | scratch | 0 | whole | 30.00 | 30.00 | - | - |' in page
  assert 'Left out' not in page
  # The first seed of each method; the pair of one seed; the dropped share of the config.
  assert 'gta: gta, split 4, seed 0.' in page and 'with: gta, split 4, seed 1.' in page
  assert 'Red: the 20%' in page
  widths = {'methods': 5, 'reweighting': 4, 'confidence': 4}
  for name, columns in widths.items():
    assert f']({name}.png)' in page
    with Image.open(out / f'{name}.png') as picture:
      assert picture.width == 6 + columns * 206
      assert len(picture.getcolors(10**6)) > 5
  with Image.open(out / 'curves.png') as picture:
    assert picture.width > 1000
    assert len(set(picture.convert('RGB').getdata())) > 50


def test_what_is_missing_is_left_out_by_name(workdirs, tmp_path):
  gone = tmp_path / 'gone'
  shutil.copytree(workdirs['gta0'], gone)
  shutil.rmtree(gone / 'checkpoints')
  page = report.write_report([gone], tmp_path / 'out').read_text()
  assert page.count('Left out') == 3
  assert 'all of sup_only, mean_teacher, gta' in page and 'method.reweight alone' in page
  assert f'{gone} cannot be shown' in page
  assert (tmp_path / 'out' / 'curves.png').exists()
  page = report.write_report([workdirs['sup_only0']], tmp_path / 'out').read_text()
  assert 'none of the given runs learns from pseudo-labels' in page


def test_runs_that_differ_in_more_than_reweighting_are_not_shown_as_a_pair(workdirs, tmp_path):
  other = shutil.copytree(workdirs['gta_unweighted1'], tmp_path / 'other')
  config = setup.from_json(other / 'config.json')
  config.optim.rate = 0.5
  (other / 'config.json').write_text(setup.to_json(config))
  found = [report.read_finished(folder) for folder in (workdirs['gta1'], other)]
  with pytest.raises(report._MissingError, match='differ in method.reweight alone'):
    report._reweighting_picture(tmp_path / 'none.png', found, 1)


@pytest.mark.parametrize('line', ['{"step": 4,', '[1]', '{"loss": 1.0}', '7'])
def test_a_damaged_log_is_named(workdirs, tmp_path, line):
  damaged = shutil.copytree(workdirs['sup_only0'], tmp_path / 'damaged')
  with (damaged / 'metrics.jsonl').open('a') as log:
    log.write(line + '\n')
  with pytest.raises(ValueError, match=f'{damaged}/metrics.jsonl is damaged'):
    report.read_finished(damaged)


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
  page = report.write_report([one], tmp_path / 'out').read_text()
  paper_says = '73.16 ± 0.45 (Table 1)'
  assert f'| 0 | whole | 40.00 | 40.00 | 40.00 | {paper_says} |' in page
  assert f'| 0 | crop_padding0 | 50.00 | - | - | {paper_says} |' in page
  assert f'| 0 | whole (test) | 60.00 | - | - | {paper_says} |' in page
  assert 'Left out: ' + str(one / 'evaluation.json') not in page
  for foreign in ({'dataset': 'other'}, {'validation_sha256': 'def'}):
    (one / 'evaluation.json').write_text(
      json.dumps({'evaluations': [evaluation | foreign]}))
    page = report.write_report([one], tmp_path / 'out').read_text()
    assert '| 0 | crop_padding0' not in page
    assert f'Left out: {one / "evaluation.json"} has one of 3 images of' in page
  config.data.split_source = 'seeded'
  (one / 'config.json').write_text(setup.to_json(config))
  assert paper_says not in report.write_report([one], tmp_path / 'out').read_text()


def test_seeds_that_drew_other_labelled_images_are_told(workdirs, tmp_path):
  page = []
  for seed in ('gta0', 'gta1'):
    folder = shutil.copytree(workdirs[seed], tmp_path / seed)
    results = json.loads((folder / 'results.json').read_text())
    (folder / 'results.json').write_text(json.dumps({**results, 'labelled_sha256': seed}))
    page.append(report._score_table([report.read_finished(f) for f in sorted(tmp_path.iterdir())]))
  told = 'The runs of gta (scratch) on shapes, split 4, differ in their labelled images'
  assert told not in page[0] and told in page[1]


def test_runs_that_have_not_finished_are_refused(workdirs, tmp_path):
  unfinished = tmp_path / 'unfinished'
  shutil.copytree(workdirs['gta0'], unfinished)
  (unfinished / 'results.json').unlink()
  for folder, message in ((unfinished, 'has not finished'), (tmp_path / 'none', 'does not exist')):
    with pytest.raises(ValueError, match=message):
      report.write_report([folder], tmp_path / 'out')
  with pytest.raises(ValueError, match='--workdirs'):
    report.write_report([], tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_the_papers_figures_stand_beside_their_rows():
  assert str(paper.find('voc', '183', 'gta')) == '73.16 ± 0.45 (Table 1)'
  assert str(paper.find('voc', '2646', 'mean_teacher')) == '73.02 (Table 2)'
  assert str(paper.find('voc', '183', 'gta_confidence')) == '70.67 (Table 9)'
  assert paper.find('voc', '92', 'gta_confidence') is None
  assert paper.find('shapes', '183', 'gta') is None
