"""Evaluation and prediction by the command, from the workdir of a finished run."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import launch
from gta_jax.inference import baseline, evaluations
from gta_jax.inference import finished as inference


def test_evaluation_of_a_workdir_gives_the_scores_of_training(finished, tmp_path):
  workdir, results = shutil.copytree(finished[0], tmp_path / 'run'), finished[1]
  arguments = ['launch.py', '--mode', 'evaluate', '--workdir', str(workdir)]
  assert launch.main([*arguments, '--protocols', 'whole,crop_padding0,sliding+flip']) == 0
  found, = json.loads((workdir / 'evaluation.json').read_text())['evaluations']
  assert found['dataset'] == json.loads((workdir / 'dataset.json').read_text())['name']
  assert found['validation_sha256'] == results['validation_sha256']
  found = found['protocols']
  assert list(found) == ['whole', 'crop_padding0', 'sliding+flip']
  for name in ('teacher', 'student', 'assistant'):
    expected = results['last'][name]
    assert found['whole'][name]['miou'] == pytest.approx(expected['miou'], abs=1e-9)
  assert found['sliding+flip']['student'] != found['whole']['student']
  sheet = (workdir / 'evaluation.md').read_text()
  accuracy = found['crop_padding0']['student']['pixel_accuracy']
  assert '| student | crop_padding0 | ' in sheet and f' | {100 * accuracy:.2f} |' in sheet
  assert sheet.count('\n| ') == 3 * 3 + 2 + 7 + 2
  assert (workdir / 'splits' / 'val.txt').read_text().splitlines() == [
    f'val/{i:06}' for i in range(3)]
  assert len((workdir / 'splits' / '4' / 'labeled.txt').read_text().splitlines()) == 4
  best = inference.evaluate_run(workdir, None, which='best')
  assert best['step'] == results['best']['step']
  kept = evaluations.read(workdir)
  assert [one['checkpoint'] for one in kept] == ['last', 'best']
  assert kept[0]['protocols'].keys() == found.keys()
  with pytest.raises(ValueError, match='names no test images; only a folder of your own has them'):
    inference.evaluate_run(workdir, None, split='test')


def test_a_folder_without_test_images_is_told_where_to_list_them(folder_run):
  with pytest.raises(ValueError, match=r'list their ids in .*data/splits/test\.txt'):
    inference.evaluate_run(folder_run / 'run', None, split='test')


def test_unlabelled_images_are_not_read_for_a_score(folder_run, monkeypatch):
  monkeypatch.setattr(baseline, '_TREES', 2)
  kept, = (folder_run / 'run' / 'splits').glob('*/unlabeled.txt')
  id = kept.read_text().split()[0]
  image = next((folder_run / 'data' / 'images').glob(f'{id}.*'))
  image.write_bytes(image.read_bytes()[:60])
  assert inference.evaluate_run(folder_run / 'run', None)['split'] == 'val'
  baseline.run_baseline(None, folder_run / 'run')


def test_prediction_of_a_folder(finished, tmp_path, capsys):
  workdir, _ = finished
  images = tmp_path / 'in'
  images.mkdir()
  rng = np.random.default_rng(0)
  for name, size in (('a.jpg', (50, 40)), ('b.png', (33, 61))):
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(images / name)
  status = launch.main(['launch.py', '--mode', 'predict', '--workdir', str(workdir),
                        '--images', str(images), '--out', str(tmp_path / 'out')])
  assert status == 0
  with Image.open(tmp_path / 'out' / 'b.png') as mask:
    assert mask.mode == 'P' and mask.size == (61, 33) and np.asarray(mask).max() < 7
  assert 'has not ended' not in capsys.readouterr().err
  stopped = shutil.copytree(workdir, tmp_path / 'stopped')
  (stopped / 'results.json').unlink()
  for steps in (' of 12', ''):
    inference.predict_images(stopped, None, images=images, out=tmp_path / 'out', overwrite=True)
    assert f'The networks are of step 12{steps}: the run has not ended.' in capsys.readouterr().err
    (stopped / 'report.json').write_text('damaged')


def test_an_interruption_is_one_sentence_and_a_status(monkeypatch, capsys):
  def interrupt(*_, **options):
    raise KeyboardInterrupt('3 of 5 images are done.')

  monkeypatch.setattr(inference, 'predict_images', interrupt)
  arguments = ['gta-jax', '--mode', 'predict', '--workdir', 'w', '--images', 'in', '--out', 'out']
  assert launch.main(arguments) == 130
  assert capsys.readouterr().err == 'stopped: 3 of 5 images are done.\n'


def test_a_workdir_without_a_run_is_refused(tmp_path):
  with pytest.raises(ValueError, match='config.json is missing'):
    inference.evaluate_run(tmp_path, None)


def test_scores_are_said_before_they_are_written_and_where_they_cannot_be_nothing_is_done(
  finished, monkeypatch, capsys
):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(evaluations, 'replace_text', full)
  arguments = ['gta-jax', '--mode', 'evaluate', '--workdir', str(finished[0])]
  assert launch.main(arguments) == 2
  assert '| teacher | whole | ' in capsys.readouterr().out
  monkeypatch.setattr(inference.os, 'access', lambda *_: False)
  assert launch.main(arguments) == 2
  said = capsys.readouterr()
  assert 'is read-only, and the scores are written there' in said.err and not said.out


def test_test_images_without_a_mask_are_named(folder_run):
  id = sorted(path.stem for path in (folder_run / 'data' / 'images').iterdir())[-1]
  (folder_run / 'data' / 'splits' / 'test.txt').write_text(id)
  (folder_run / 'data' / 'masks' / f'{id}.png').unlink(missing_ok=True)
  with pytest.raises(ValueError, match=f"'{id}' of the test images of data has no mask to score"):
    inference.evaluate_run(folder_run / 'run', None, split='test')
