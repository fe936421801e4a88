"""What a config leaves to the data is found once, and stays with the run."""

import dataclasses
import json
import shutil

import pytest
from ml_collections import config_dict

from configs import folder, shapes
from gta_jax import command
from gta_jax.config_base import OF_STRONG_VIEWS
from gta_jax.inference import evaluations, finished
from gta_jax.training import datasets, from_data, loop, setup, verdict
from tests.data.test_inspection import make


def test_a_run_that_goes_on_keeps_what_it_found(tmp_path):
  config = folder.get_config('1')
  assert 'data.pixel_range' in from_data.unset(config)
  found = from_data.with_values(config, {'data.pixel_range': (3, 9), 'data.threads': 5})
  assert found.data.pixel_range == (3, 9) and found.data.threads != 5
  assert config.data.pixel_range is None
  assert from_data.as_begun(config, tmp_path) is config
  (tmp_path / 'config.json').write_text(json.dumps(found.to_dict()))
  assert from_data.as_begun(config, tmp_path).data.pixel_range == (3, 9)
  assert from_data.as_begun(shapes.get_config(), tmp_path).data.pixel_range == ()
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='is damaged'):
    from_data.as_begun(config, tmp_path)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return make(tmp_path_factory.mktemp('data'))


def of_folder(data, **fields):
  config = folder.get_config('2,model=base,method=sup_only')
  config.update_from_flattened_dict({
    'data.dir': str(data), 'model.weights': '', 'model.depth': 10, 'model.width': 0.125,
    'train.unlabelled_batch': 4, 'train.labelled_batch': 2, 'data.crop': 32,
    'evaluate.batch': 2, 'evaluate.pictures': 1, **fields})
  return config


def test_what_a_run_keeps_unasked_is_said(data, tmp_path):
  begun = setup.make_run(of_folder(data, **{'train.epochs': 3.0}))
  (tmp_path / 'config.json').write_text(setup.to_json(begun.config))
  (tmp_path / 'inspection.json').write_text(json.dumps(begun.inspection))
  assert setup.make_run(of_folder(data), workdir=tmp_path).config.train.epochs == 200
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'checkpoints' / '4.json').touch()
  again = setup.make_run(of_folder(data), workdir=tmp_path)
  assert again.config.train.epochs == 3
  said, = (text for text in again.notes if 'This run began with' in text)
  assert 'train.epochs=3.0 (the data propose 200' in said and 'data.crop' not in said
  same = setup.make_run(of_folder(data, **{'train.epochs': 3.0}), workdir=tmp_path)
  assert not any('This run began with' in text for text in same.notes)


def test_a_folder_decides_what_is_not_set_and_says_why(data, tmp_path):
  made = setup.make_run(of_folder(data), workdir=tmp_path / 'none')
  assert from_data.unset(made.config) == ()
  assert made.config.data.crop == 32 and made.config.model.decoder == 'unet'
  assert made.config.data.pixel_range == () and len(made.config.loss.class_weights) == 2
  assert made.config.train.epochs == 200 and made.total_steps == 1000
  said = '\n'.join(made.notes)
  assert 'model.decoder=unet: vein is 3.5 pixels wide' in said and 'data.crop=' not in said
  assert "'rock' has 96.2 %" in said
  proposed = {one['field'] for one in made.inspection['proposals']}
  assert proposed == {'data.image_scale', 'model.decoder', 'model.output_stride', 'train.epochs',
                      'train.evaluate_epochs', 'loss.class_weights', 'method.warmup_epochs'}
  assert not (tmp_path / 'none').exists()


def test_a_folder_without_a_named_method_learns_from_every_pseudo_label():
  def chosen(arg):
    method = folder.get_config(arg).method
    return method.name, method.get('threshold')

  assert chosen('46') == chosen('46,method=fixmatch_ema') == ('fixmatch_ema', 0)
  assert chosen('46,method=fixmatch') == ('fixmatch', 0)
  assert chosen('46,recipe=paper') == ('fixmatch_ema', 0.95)  # as published
  assert chosen('46,model=large') == ('unimatch_v2', 0.95)
  assert chosen('46,model=large,method=gta') == ('gta', None)
  assert chosen('46,method=cutmix_consistency') == ('cutmix_consistency', 0.97)


def test_a_folder_decides_which_strong_views_there_are(data, tmp_path):
  def left(arg):
    config = folder.get_config(arg)
    return {name for name in from_data.unset(config) if name in OF_STRONG_VIEWS}

  assert left('2') == left('2,model=base,method=corrmatch') == {*OF_STRONG_VIEWS}
  assert left('2,recipe=paper') == left('2,method=gta') == left('2,method=sup_only') == set()
  assert left('2,method=pseudo_seg') == {'method.jitter'}
  assert folder.get_config('2,method=gta').method.jitter == 0

  config = of_folder(data)
  config.method = folder.get_config('2').method
  made = setup.make_run(config, workdir=tmp_path)
  assert made.config.method.jitter == made.config.method.greyscale == 0
  assert 'grey level alone tells the classes' in '\n'.join(made.notes)
  told = dataclasses.replace(from_data.inspect(datasets.make_dataset(config)), told_by_colour=0.1)
  config.method = folder.get_config('2,method=pseudo_seg').method
  by_field = {one.field: one.value for one in from_data.proposals(told, config)}
  assert by_field['method.jitter'] == 1 and 'method.greyscale' not in by_field
  config.method = folder.get_config('2,method=gta').method
  assert not {*OF_STRONG_VIEWS} & {one.field for one in from_data.proposals(told, config)}


def test_an_inspection_of_an_older_version_is_read(data):
  found = from_data.inspect(datasets.make_dataset(of_folder(data)))
  kept = from_data.to_json(found, [])
  del kept['told_by_colour']
  assert from_data.of_json(kept)[0].told_by_colour is None
  del kept['widths']
  with pytest.raises(ValueError, match='is damaged'):
    from_data.of_json(kept)


def test_other_data_leave_nothing_open(data):
  config = shapes.get_config('4')
  del config.data.crop
  config.data.crop = config_dict.placeholder(int)
  with pytest.raises(ValueError, match='data.crop=None is not possible'):
    setup.make_run(config)


def test_an_inspection_is_read_where_the_files_are_the_same(data, tmp_path, monkeypatch, capsys):
  flags = ['gta-jax', '--mode', 'inspect', '--config', 'folder:2', f'--config.data.dir={data}',
           '--config.data.crop=32', '--workdir', str(tmp_path)]
  assert command.main(flags) == 0
  table = capsys.readouterr().out
  assert '2 labelled, 20 unlabelled, 2 validation images' in table
  assert '24         PNG     8         64 x 80' in table and '(data.crop) ' in table
  # In the part about looks, and as the reason of two proposals.
  assert table.count('grey level alone tells the classes') == 3
  with monkeypatch.context() as patch:
    patch.setattr(from_data.inspection, 'inspect', None)
    assert setup.make_run(of_folder(data), workdir=tmp_path).inspection['grey']
  (tmp_path / 'inspection.json').write_text('{"digest": 5}')
  assert setup.make_run(of_folder(data), workdir=tmp_path).inspection['grey']
  (tmp_path / 'inspection.json').write_text('{}')
  assert command.main(flags) == 2
  assert 'inspection.json is no inspection; move it' in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_keeps_what_it_was_told_and_scores_its_test_images(data, tmp_path):
  data, tmp_path = shutil.copytree(data, tmp_path / 'data'), tmp_path / 'run'
  (data / 'splits' / 'test.txt').write_text('03')
  (data / 'splits' / 'val.txt').write_text('02')
  config = of_folder(data, **{'train.epochs': 0.6, 'train.evaluate_epochs': 0.6})
  loop.train(setup.make_run(config, workdir=tmp_path), tmp_path)
  kept = json.loads((tmp_path / 'config.json').read_text())
  assert kept['model']['decoder'] == 'unet' and kept['data']['crop'] == 32
  assert json.loads((tmp_path / 'inspection.json').read_text())['classes'] == ['rock', 'vein']
  (tmp_path / 'inspection.json').unlink()
  again = setup.make_run(config, workdir=tmp_path)
  assert again.inspection == {} and again.config.to_dict() == setup.from_json(
    tmp_path / 'config.json').to_dict()
  results = json.loads((tmp_path / 'results.json').read_text())
  by_image = verdict.read_run(tmp_path, name='it', network='teacher')
  assert by_image.ids == ('02',)
  assert by_image.miou == pytest.approx(results['last']['teacher']['miou'])
  finished.evaluate_run(tmp_path, None)
  tested = finished.evaluate_run(tmp_path, None, split='test')
  assert tested['split'] == 'test' and tested['images'] == 1
  assert [one['split'] for one in evaluations.read(tmp_path)] == ['val', 'test']
  assert ' (test), last checkpoint, step 3' in (tmp_path / 'evaluation.md').read_text()
