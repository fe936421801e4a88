"""The pixel classifier, and the verdict on a run beside it."""

import json
import shutil

import numpy as np
import pytest
from scipy import ndimage

from configs import folder, shapes
from gta_jax import command
from gta_jax.data.pixel_features import pixel_features
from gta_jax.data.splits import ids_sha256
from gta_jax.inference import baseline
from gta_jax.training import datasets, setup, verdict
from tests.data.test_inspection import make


def test_the_classifier_is_scored_as_networks_are(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(baseline, '_TREES', 5)
  monkeypatch.setattr(baseline, '_PIXELS', 400)
  data = make(tmp_path / 'data', thickness=20)
  flags = ['gta-jax', '--mode', 'baseline', '--config', 'folder:2', f'--config.data.dir={data}',
           '--workdir', str(tmp_path / 'run')]
  assert command.main(flags) == 0
  found = json.loads((tmp_path / 'run' / 'baseline.json').read_text())
  assert found['ids'] == ['02', '03'] and found['pixels'] == 399
  assert np.sum(found['confusions']) == 2 * 63 * 80  # the row without labels does not count
  assert found['scores']['miou'] > 0.9 and set(found['scores']['iou']) == {'rock', 'vein'}
  assert 'vein: IoU ' in capsys.readouterr().out
  config = folder.get_config('2')
  config.data.dir = str(data)
  assert baseline.run_baseline(config, tmp_path / 'again') == found
  # Threads that add votes as they finish would round differently from time to time.
  assert baseline._fit(datasets.make_dataset(config), 0)[0].n_jobs == 1


def test_a_run_brings_its_own_config_and_masks(folder_run, monkeypatch, capsys):
  monkeypatch.setattr(baseline, '_TREES', 2)
  masks = folder_run / 'data' / 'masks'
  for image in (folder_run / 'data' / 'images').iterdir():  # With more masks, another draw.
    if not (masks / f'{image.stem}.png').exists():
      shutil.copy(next(masks.iterdir()), masks / f'{image.stem}.png')
  found = baseline.run_baseline(None, folder_run / 'run')
  ids, = (folder_run / 'run' / 'splits').glob('*/labeled.txt')
  assert found['labelled_sha256'] == ids_sha256(ids.read_text().split())
  assert command.main(['gta-jax', '--mode', 'baseline', '--workdir', 'none']) == 2
  assert 'holds no run whose data could be taken; give --config' in capsys.readouterr().err


def test_rare_classes_are_drawn_by_the_root_of_their_frequency(monkeypatch):
  monkeypatch.setattr(baseline, '_PIXELS', 40)
  masks = [np.zeros((30, 30), np.uint8), np.full((20, 50), 255, np.uint8)]
  masks[1].ravel()[300:400] = 1
  first, second = baseline._choose('01', lambda id: masks[int(id)], 3, seed=0)
  assert len(first) == 30 and len(second) == 10 and (masks[1].ravel()[second] == 1).all()


def test_a_large_image_is_looked_at_in_parts_that_show_the_same(monkeypatch):
  rng = np.random.default_rng(0)
  image = ndimage.zoom(rng.integers(0, 256, (40, 30, 3), np.uint8), (5, 5, 1), order=1)
  features = pixel_features(image, grey=False)
  places = np.sort(rng.choice(image.shape[0] * image.shape[1], 300, replace=False))
  monkeypatch.setattr(baseline, '_TILE', 100)
  found = baseline._features_at(image, places, grey=False)
  np.testing.assert_allclose(found, features.reshape(-1, 25)[places], rtol=1e-4, atol=1e-3)

  class FirstFeature:
    def predict(self, features):
      return features[:, 0].astype(np.uint8)

  labels = baseline._label(FirstFeature(), image, grey=False)
  np.testing.assert_array_equal(labels, features[..., 0].astype(np.uint8))


def scored(name, *, right, ids='abcdefghij'):
  counts = np.array([[[right, 10 - right], [10 - right, right]]] * len(ids))
  return verdict.Scored(name, tuple(ids), counts)


def test_the_verdict_says_how_far_and_how_sure():
  network, forest = scored('the teacher', right=9), scored('the pixel classifier', right=7)
  said = verdict.verdict(network, forest, None, scored('other', right=1, ids='xyz'))
  assert said == (
    'On 10 validation images the teacher has mIoU 81.8. Against the pixel classifier (53.8) these '
    'are +28.0 points, 95 % interval +28.0 to +28.0: it is better on images like these. '
    'The intervals are over images alone: with another seed a training may end one or two points '
    'higher or lower, so compare several.')
  assert 'intervals' not in verdict.verdict(network)
  assert 'worse on images' in verdict.verdict(forest, network)
  assert 'no difference is shown' in verdict.verdict(network, scored('it', right=9))
  one = verdict.verdict(scored('one', right=9, ids='a'), scored('two', right=1, ids='a'))
  assert 'points on one image, which says nothing of others: no difference is shown' in one
  blank = network._replace(confusions=network.confusions * (np.arange(10) < 3)[:, None, None])
  assert verdict.verdict(blank).startswith('On 3 validation images ')
  padded = np.pad(network.confusions, ((0, 0), (0, 1), (0, 1)))
  assert 'Against' not in verdict.verdict(network._replace(confusions=padded), forest)


def test_what_learnt_from_other_masks_is_not_compared(tmp_path):
  counts = np.tile(np.eye(2, dtype=int), (2, 1, 1))
  verdict.write_confusions(tmp_path, ('a', 'b'), {'teacher': counts})
  (tmp_path / 'splits' / '2').mkdir(parents=True)
  (tmp_path / 'splits' / '2' / 'labeled.txt').write_text('d\nc\n')
  for labelled, compared in ((['c', 'd'], True), (['c', 'e'], False)):
    (tmp_path / 'baseline.json').write_text(json.dumps({
      'ids': ['a', 'b'], 'confusions': counts.tolist(), 'labelled_sha256': ids_sha256(labelled)}))
    said = verdict.over_baseline(tmp_path, 'teacher')
    assert ('Against the pixel classifier' in said) == compared
    assert ('not compared with the pixel classifier, which learnt from other masks' in said) != (
      compared)


def test_images_are_compared_by_their_ids_and_files_come_back(tmp_path, capsys):
  rng = np.random.default_rng(0)
  counts = rng.integers(0, 9, (3, 2, 2))
  verdict.write_confusions(tmp_path, ('a', 'b', 'c'), {'teacher': counts})
  assert verdict.over_baseline(tmp_path / 'none', 'teacher') == ''
  assert '--mode baseline' in verdict.over_baseline(tmp_path, 'teacher')
  (tmp_path / 'baseline.json').write_text(json.dumps(
    {'ids': ['c', 'a', 'b'], 'confusions': counts[[2, 0, 1]].tolist()}))
  assert '+0.0 points, 95 % interval +0.0 to +0.0' in verdict.over_baseline(tmp_path, 'teacher')
  whole = (tmp_path / 'confusions.npz').read_bytes()
  for damaged in (b'no', b'', whole[:-30]):
    (tmp_path / 'confusions.npz').write_bytes(damaged)
    with pytest.raises(ValueError, match=r'confusions\.npz is damaged'):
      verdict.read_run(tmp_path, name='it', network='teacher')
    assert verdict.over_baseline(tmp_path, 'teacher') == ''
    assert 'confusions.npz is damaged' in capsys.readouterr().err


def test_the_results_of_a_run_hold_the_newest_verdict(tmp_path, monkeypatch):
  counts = np.tile(np.eye(2, dtype=int), (2, 1, 1))
  verdict.write_confusions(tmp_path, ('a', 'b'), {'teacher': counts})
  (tmp_path / 'config.json').write_text(setup.to_json(shapes.get_config('4')))
  (tmp_path / 'dataset.json').write_text(json.dumps(
    {'classes': ['rock', 'vein'], 'palette': [[0, 0, 0], [9, 9, 9]]}))

  def run_baseline(config, workdir):
    del config
    found = {'ids': ['a', 'b'], 'confusions': counts.tolist(), 'method': 'a forest',
             'scores': {'miou': 1.0, 'iou': {}}}
    (workdir / 'baseline.json').write_text(json.dumps(found))
    return found

  monkeypatch.setattr(baseline, 'run_baseline', run_baseline)
  command_line = ['gta-jax', '--mode', 'baseline', '--config', 'shapes:4',
                  '--workdir', str(tmp_path)]
  assert command.main(command_line) == 0
  assert not (tmp_path / 'results.json').exists()  # The run is under way.
  (tmp_path / 'results.json').write_text(json.dumps(
    {'seed': 0, 'verdict': verdict.verdict(scored('old', right=9))}))
  assert command.main(command_line) == 0
  assert json.loads((tmp_path / 'results.json').read_text()) == {
    'seed': 0, 'verdict': verdict.over_baseline(tmp_path, 'teacher')}
