"""The files of a run: whole ones come back as they were, damaged ones are named."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import gta_jax
from configs import cityscapes, folder, shapes, voc
from gta_jax.inference import finished
from gta_jax.methods.registry import METHODS, RECIPES, has_recipe
from gta_jax.models import weights
from gta_jax.training import cautions, datasets, from_data, setup
from gta_jax.training.init_from import first_state
from tests.runs import tiny_config
from tests.torch_names import torch_state


@pytest.fixture
def workdir(tmp_path):
  (tmp_path / 'config.json').write_text(setup.to_json(shapes.get_config()))
  described = {'name': 'x', 'classes': ['a', 'b'], 'palette': [[0, 0, 0], [1, 2, 3]], 'note': ''}
  (tmp_path / 'dataset.json').write_text(json.dumps(described))
  return tmp_path


def edited(path, **changes):
  found = json.loads(path.read_text())
  for name, value in changes.items():
    section, _, field = name.rpartition('__')
    (found[section] if section else found)[field] = value
  path.write_text(json.dumps(found))


def test_the_config_comes_back_as_it_was(workdir):
  assert setup.from_json(workdir / 'config.json').to_dict() == shapes.get_config().to_dict()


DINOV2 = {'model.backbone': 'dinov2_s', 'model.decoder': 'dpt'}


@pytest.mark.parametrize('content', [b'', b'{"seed": ', b'\xff\xfe\x00', b'[]', b'5', b'{}',
                                     b'[' * 100_000, b'{"a.b": 1}'])
def test_a_config_that_is_no_config_is_refused(workdir, content):
  (workdir / 'config.json').write_bytes(content)
  with pytest.raises(ValueError, match=r'config\.json is damaged'):
    setup.from_json(workdir / 'config.json')


@pytest.mark.parametrize('changes, message', [
  ({'data__crop': 'big'}, "data.crop='big'"),
  ({'data': 5}, 'data.source is missing'),
  ({'method__drop_fraction': 2}, 'drop_fraction=2 is out of range'),
  ({'method__mixing': 7}, 'mixing=7 is not possible'),
  ({'method__reweight': 1}, 'reweight=1 is not possible'),
  ({'method__speed': 1}, r"method has the unknown fields \['speed'\]"),
  ({'method__transmitted': ['mouth']}, r"transmitted holds \['mouth'\]; use some of: backbone"),
  ({'method__student_learns': [['x']]}, 'student_learns holds'),
])
def test_a_damaged_field_is_named(workdir, changes, message):
  edited(workdir / 'config.json', **changes)
  with pytest.raises(ValueError, match=rf'config\.json is damaged: .*{message}'):
    setup.from_json(workdir / 'config.json')


@pytest.mark.parametrize('changes', [
  {'classes': []}, {'classes': [1, 2]}, {'classes': None}, {'palette': [[0, 0, 0]]},
  {'palette': [[0, 0, 0], [1, 2, 300]]}, {'palette': [[0, 0, 0], [1, 2]]},
  {'palette': [[0, 0, 0], [1, 2, 'x']]}, {'palette': 3}])
def test_damaged_classes_and_colours_are_refused(workdir, changes):
  edited(workdir / 'dataset.json', **changes)
  with pytest.raises(ValueError, match=r'dataset\.json is damaged.*a colour each'):
    finished.evaluate_run(workdir, None)


def test_a_run_without_checkpoints_is_refused_before_its_data_are_read(workdir, monkeypatch):
  monkeypatch.setattr(datasets, 'make_dataset', None)
  with pytest.raises(ValueError, match='checkpoints does not exist; train first'):
    finished.evaluate_run(workdir, None)
  (workdir / 'checkpoints').mkdir()
  with pytest.raises(ValueError, match='holds no scored checkpoint'):
    finished.evaluate_run(workdir, None, which='best')


def test_folders_of_a_prediction_are_checked_before_its_network_is_read(workdir, monkeypatch):
  monkeypatch.setattr(finished, 'load_networks', None)
  with pytest.raises(ValueError, match='nowhere is not a folder'):
    finished.predict_images(workdir, None, images=workdir / 'nowhere', out=workdir / 'out')


@pytest.mark.parametrize('field, said', [
  ('model.deptth', 'did you mean model.depth'), ('train.epoch', 'did you mean train.epochs'),
  ('evaluate.protocol', 'did you mean evaluate.protocols'), ('loss.gain', 'loss has ohem_'),
  ('data.crop_size', 'data.'), ('optim.lr', 'did you mean optim.rate')])
def test_fields_that_nothing_reads_are_refused(field, said):
  config = shapes.get_config('4')
  section, name = field.split('.')
  config[section][name] = 1.0
  with pytest.raises(ValueError, match=f'{field} is no field of a config.*{said}'):
    setup.make_run(config)


def test_a_recipe_that_comes_too_late_is_refused():
  config = gta_jax.load_config('shapes:4,method=cutmix')
  config.method.recipe = 'released'
  with pytest.raises(ValueError, match="'released' was set after .*,method=cutmix,recipe=released"):
    setup.make_method_of(config)
  config = gta_jax.load_config('shapes:4,method=cutmix,recipe=released')
  config.method.batch_norm = 'own'  # One option is the user's.
  assert setup.make_method_of(config).batch_norm == 'own'


def test_a_method_that_is_not_here_is_not_called_damage(workdir):
  edited(workdir / 'config.json', method__name='mine')
  with pytest.raises(ValueError, match="names the method 'mine', which this installation") as told:
    setup.from_json(workdir / 'config.json')
  assert 'damaged' not in str(told.value)


def test_a_field_that_is_not_read_is_said_as_the_run_begins():
  changed = tiny_config(**{'optim.name': 'adamw', 'optim.momentum': 0.5})
  assert 'optim.momentum=0.5 has no effect without optim.name=sgd.' in setup.make_run(changed).notes


def test_a_source_of_splits_that_is_not_read_is_refused():
  with pytest.raises(ValueError, match='split_source=seeded has no effect where data.source='):
    datasets.make_dataset(tiny_config(**{'data.split_source': 'seeded'}))


@pytest.mark.parametrize('change, message', [
  ({'model.depth': 51}, 'depth=51 is unknown'),
  ({'method.shared': ('auxiliary',)}, 'auxiliary, a head .* model.auxiliary=True'),
  ({'method.transmitted': ('backbone', 'auxiliary')}, 'auxiliary, a head .* take it out'),
  ({'model.weights': 'none.pth'}, 'model.weights=none.pth does not exist'),
  ({'model.weights': 'timm/resnet50.tv_in1k'}, 'are of depth=50'),
  (DINOV2, 'data.crop=64 is not a multiple of 14, .* use 56 or 70'),
  (DINOV2 | {'data.crop': 10}, 'data.crop=10 is not a multiple of 14, .* use 14'),
  (DINOV2 | {'data.crop': 98, 'evaluate.protocols': ('whole', 'sliding96')},
   'images in protocol sliding96=96 is not a multiple of 14, .* use 84 or 98'),
  (DINOV2 | {'data.crop': 98, 'evaluate.protocols': ('crop+multiscale',)},
   r'images in protocol crop\+multiscale=49 is not a multiple of 14, .* use 42 or 56'),
])
def test_what_is_wrong_with_the_network_is_said_before_the_data_are_read(
    change, message, monkeypatch):
  monkeypatch.setattr(setup, 'checked_dataset', None)
  config = shapes.get_config('4')
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=message):
    setup.make_run(config)


def test_a_method_without_its_unlabelled_images_is_refused():
  config = shapes.get_config('4')
  config.data.unlabelled = 0
  with pytest.raises(ValueError, match='no unlabelled images; add some, or .*sup_only'):
    setup.make_run(config)


def test_drawn_splits_are_numbers_of_a_sane_size():
  for split in ('²', '٣٣٣٣٣٣٣', '9' * 5000, 'x', '-1'):
    with pytest.raises(ValueError, match='is not a number below'):
      setup.make_run(shapes.get_config(split))


OF_DATA = {
  'data.pixel_range': (), 'data.image_scale': 1.0, 'data.crop': 96, 'model.decoder': 'deeplab',
  'model.output_stride': 16, 'loss.class_weights': (), 'train.labelled_batch': 8,
  'train.unlabelled_batch': 8, 'train.epochs': 50.0, 'train.evaluate_epochs': 10.0,
  'method.warmup_epochs': 25.0, 'method.jitter': 0.8, 'method.greyscale': 0.2,
}  # what a folder's data may say

OF_RELEASE = [name for name in METHODS if has_recipe(name, 'released')]


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('module', [shapes, folder, voc, cityscapes])
def test_every_config_fits_the_recipes_with_its_own_batches(module, recipe):
  """Groups that do not divide a batch are replaced by some that do, and this is said."""
  for method in OF_RELEASE:
    notes = check_method(module, f'183,method={method},recipe={recipe}')
    grouped = recipe == 'released' and module in (shapes, folder) and method != 'sup_only'
    assert ('method.threshold_images=3 does not divide the batch of 8; groups of 2 are used'
            in notes) == grouped, method


@pytest.mark.parametrize('module', [shapes, folder, voc])
def test_every_method_fits_the_configs(module):
  for method in METHODS.keys() - set(OF_RELEASE):
    check_method(module, f'183,method={method}')


def check_method(module, argument):
  config = from_data.with_values(module.get_config(argument), OF_DATA)
  tools = setup.make_tools(config, num_classes=21, epoch_steps=100)
  return setup.make_method_of(config).check(tools)


@pytest.mark.parametrize('overrides, message', [
  ({'train.labelled_batch': 0}, 'train.labelled_batch=0 is not possible; use a whole number from'),
  ({'train.epochs': 0}, 'train.epochs=0.0 is not possible; use a number from'),
  ({'train.checkpoint_steps': -1}, 'checkpoint_steps=-1 is not possible; use a whole number'),
  ({'train.non_finite': 'ignore'}, "'ignore' is not possible; use one of: stop, skip"),
  ({'data.source': 'coco'}, "'coco' is unknown; use one of: folder, shapes"),
  ({'data.source': 'folder'}, '--config.data.dir'),
  ({'model.depth': 99}, 'depth'),
  ({'loss.class_weights': (1.0,)}, '1 values for 7'),
  ({'method.mixing': 'mixup'}, 'none, cutmix'),
  ({'train.per_device_batch': 3, 'train.labelled_batch': 4},
   'per_device_batch=3 on . devices does not divide a batch of 4'),
  ({'data.padding_label': 200}, 'padding_label=200 is none of the 7 classes; use 0 to 6, or 255'),
  ({'train.per_device_batch': 1, 'loss.ohem_threshold': 0.7}, 'use model.remat=True'),
  ({'train.per_device_batch': 1, 'train.labelled_batch': 4, 'method.batch_norm': 'joint'},
   'into 4 and 2 parts'),
])
def test_bad_configs_are_refused_before_work_starts(overrides, message):
  with pytest.raises(ValueError, match=message):
    setup.make_run(tiny_config(**overrides))


def test_what_is_not_cut_is_not_refused_for_being_cut():
  devices, batch = jax.device_count(), tiny_config().train.labelled_batch
  setup.make_run(tiny_config(**{
    'train.per_device_batch': batch // devices, 'train.unlabelled_batch': batch,
    'loss.ohem_threshold': 0.7}))


def test_a_folder_is_not_turned_into_shapes():
  config = gta_jax.load_config(
    'folder:4,model=tiny,method=gta', {'data.source': 'shapes', 'data.pixel_range': (),
    'method.warmup_epochs': 1.0, 'method.jitter': 0.0, 'method.greyscale': 0.0})
  with pytest.raises(ValueError, match='data.source=shapes needs data.unlabelled too'):
    datasets.make_dataset(config)


@pytest.mark.parametrize('workdir', ['.', 'splits/run', 'images'])
def test_a_run_among_the_data_is_refused(workdir, tmp_path):
  config = gta_jax.load_config('folder:4', {'data.dir': str(tmp_path)})
  with pytest.raises(ValueError, match='is the folder of the data, .*give another --workdir'):
    setup.make_run(config, workdir=tmp_path / workdir)


def test_weights_of_a_file_are_loaded_and_never_silently_random(tmp_path):
  """Only the backbone is taken; the decoder stays as it was drawn."""
  made = setup.make_run(tiny_config())
  start = made.drawn_state().networks['student']
  backbone = {kind: {'backbone': tree['backbone']} for kind, tree in start.items()}
  state = torch_state(backbone, prefixes={'backbone': ''})
  path = tmp_path / 'weights.safetensors'
  save_file(state, path)
  config = tiny_config(**{'model.weights': str(path)})
  loaded = first_state(setup.make_run(config)).networks['student']
  np.testing.assert_array_equal(
    loaded['params']['backbone']['layer4_0']['bn2']['bias'], state['layer4.0.bn2.bias'])
  jax.tree.map(np.testing.assert_array_equal, loaded['params']['decoder'],
               start['params']['decoder'])
  assert made.network.mean == (0.485, 0.456, 0.406)
  assert setup.make_network(tiny_config(**{'model.mean': (0.5, 0.5, 0.5)}), 7).mean == (0.5,) * 3
  with pytest.raises(ValueError, match='nowhere.safetensors does not exist'):
    setup.make_run(tiny_config(**{'model.weights': 'nowhere.safetensors'}))


@pytest.mark.parametrize('module, argument, fields, said', [
  (folder, '46,model=small', {}, ''), (folder, '46,model=base', {}, ''), (voc, '183', {}, ''),
  (voc, '183', {'train.per_device_batch': 4}, 'sees 4 values in a pass'),
  (voc, '183,method=cutmix', {'train.unlabelled_batch': 1}, 'sees 1 values in a pass'),
  # What is not read, and what goes through together with other images.
  (voc, '183,method=sup_only', {'train.unlabelled_batch': 1}, ''), (voc, '183,method=dmt', {}, '')])
def test_few_values_of_image_pooling_are_noted(module, argument, fields, said):
  config = from_data.with_values(module.get_config(argument), OF_DATA)
  config.update_from_flattened_dict(fields)
  method = setup.make_method_of(config)
  tools = setup.make_tools(config, num_classes=21, epoch_steps=10)
  notes = cautions.cautions(config, method, method.stages(tools))
  assert said in ' '.join(notes) and bool(notes) == bool(said)


@pytest.mark.parametrize('field, value, message', [
  ('model.weights', 'nowhere.pth', 'model.weights=nowhere.pth does not exist'),
  ('evaluate.protocols', ('nonsense',), "protocol 'nonsense' is unknown"),
  ('train.init_from', 'nowhere', 'train.init_from=nowhere holds no run')])
def test_no_folder_is_looked_through_for_a_config_that_cannot_run(
    field, value, message, monkeypatch):
  monkeypatch.setattr(setup, 'checked_dataset', None)
  config = folder.get_config('46')
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    setup.make_run(config)


def test_models_of_a_folder_are_those_that_it_lists():
  with pytest.raises(ValueError, match='huge is unknown; use one of: small, base, large, tiny'):
    folder.get_config('46,model=huge')
  for model in ('small', 'base', 'large', 'tiny'):
    config = from_data.with_values(folder.get_config(f'46,model={model}'), OF_DATA)
    weights.check(config.model.weights, config.model)
    setup.make_tools(config, num_classes=3, epoch_steps=100)
