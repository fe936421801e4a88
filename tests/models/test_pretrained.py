"""Torch state dicts: names, shapes, files, and what is said of those that do not fit."""

import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from gta_jax.models.pretrained import convert, load_state_dict
from gta_jax.models.segmenter import make_segmenter

WIDTHS = (8, 16, 32, 64)


@pytest.fixture(scope='module')
def variables():
  network = make_segmenter(num_classes=3, depth=10, width=0.125, stem='torchvision')
  return network.init(jax.random.key(0), (32, 32))


def _torch_state(layers):
  """A state dict of (name, out, in, size, has bias); size 0 is a BatchNorm of `out` channels."""
  rng, state = np.random.default_rng(0), {}
  for name, out, channels, size, bias in layers:
    state[f'{name}.weight'] = rng.standard_normal((out, channels, size, size) if size else out)
    if bias:
      state[f'{name}.bias'] = rng.standard_normal(out)
    if not size:
      state |= {f'{name}.running_mean': rng.standard_normal(out),
                f'{name}.running_var': rng.uniform(1, 2, out),
                f'{name}.num_batches_tracked': np.array(7)}
  return {name: np.asarray(value, np.float32) for name, value in state.items()}


def _backbone_layers(prefix=''):
  layers, channels = [('conv1', 8, 3, 7, False), ('bn1', 8, 0, 0, True)], 8
  for stage, out in enumerate(WIDTHS, start=1):
    block = f'layer{stage}.0'
    layers += [(f'{block}.conv1', out, channels, 3, False), (f'{block}.bn1', out, 0, 0, True),
               (f'{block}.conv2', out, out, 3, False), (f'{block}.bn2', out, 0, 0, True)]
    if out != channels:
      layers += [(f'{block}.downsample.0', out, channels, 1, False),
                 (f'{block}.downsample.1', out, 0, 0, True)]
    channels = out
  return [(prefix + name, *rest) for name, *rest in layers]


def _published_state():
  layers = [*_backbone_layers('encoder.'), ('decoder.low_conv.0', 32, 8, 1, True),
            ('decoder.low_conv.1', 32, 0, 0, True), ('decoder.aspp.conv1.1', 32, 64, 1, False),
            ('decoder.aspp.conv1.2', 32, 0, 0, True)]
  for branch, size in enumerate((1, 3, 3, 3), start=2):
    layers += [(f'decoder.aspp.conv{branch}.0', 32, 64, size, False),
               (f'decoder.aspp.conv{branch}.1', 32, 0, 0, True)]
  layers += [('decoder.head.0', 32, 160, 3, False), ('decoder.head.1', 32, 0, 0, True)]
  for head in ('classifier', 'representation'):
    layers += [(f'decoder.{head}.0', 32, 64, 3, True), (f'decoder.{head}.1', 32, 0, 0, True),
               (f'decoder.{head}.4', 32, 32, 3, True), (f'decoder.{head}.5', 32, 0, 0, True),
               (f'decoder.{head}.8', 3, 32, 1, True)]
  return _torch_state(layers)


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_published_names_fill_every_leaf(variables, prefix):
  state = _published_state()
  new, report = convert({prefix + name: value for name, value in state.items()}, variables)
  assert len(report.loaded) == len(jax.tree.leaves(variables))
  assert set(report.loaded) | set(report.ignored) == set(state)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
    lambda x: (x.shape, x.dtype), variables)
  params, statistics = new['params'], new['batch_stats']
  np.testing.assert_array_equal(
    params['decoder']['aspp']['conv3_0']['kernel'][0, 2],
    state['decoder.aspp.conv3.0.weight'][:, :, 0, 2].T)
  np.testing.assert_array_equal(params['classifier']['4']['bias'],
                                state['decoder.classifier.4.bias'])
  np.testing.assert_array_equal(statistics['backbone']['layer2_0']['downsample_1']['var'],
                                state['encoder.layer2.0.downsample.1.running_var'])


@pytest.mark.parametrize('prefix', ['', 'encoder.'])
def test_backbone_scope_leaves_the_rest_alone(variables, prefix):
  state = _torch_state([*_backbone_layers(prefix), ('decoder.head.0', 5, 5, 3, False)])
  state |= {'fc.weight': np.ones((10, 64)), 'fc.bias': np.ones(10)}
  new, report = convert(state, variables, scope='backbone')
  np.testing.assert_array_equal(new['params']['backbone']['bn1']['bias'],
                                state[f'{prefix}bn1.bias'])
  for part in ('decoder', 'classifier'):
    jax.tree.map(np.testing.assert_array_equal, new['params'][part], variables['params'][part])
  assert {'fc.weight', 'fc.bias', 'decoder.head.0.weight'} < set(report.ignored)


def test_everything_that_does_not_fit_is_listed(variables):
  state = _published_state()
  del state['decoder.head.0.weight'], state['encoder.bn1.running_var']
  state['encoder.layer1.1.conv1.weight'] = np.ones((8, 8, 3, 3))
  state['encoder.conv1.weight'] = np.ones((8, 3, 3, 3))
  with pytest.raises(ValueError) as caught:
    convert(state, variables)
  _, missing, extra, misshapen = str(caught.value).split('\n')
  assert 'encoder.bn1.running_var' in missing and 'decoder.head.0.weight' in missing
  assert extra == 'extra: encoder.layer1.1.conv1.weight'
  assert misshapen == 'misshapen: encoder.conv1.weight'
  with pytest.raises(ValueError, match='model.weights_scope=.*all, backbone'):
    convert(state, variables, scope='head')


def test_other_classes_need_a_word(variables):
  state = _published_state()
  state['decoder.classifier.8.weight'] = np.ones((21, 32, 1, 1))
  state['decoder.classifier.8.bias'] = np.ones(21)
  with pytest.raises(ValueError, match=r'misshapen: .*classifier\.8'):
    convert(state, variables)
  new, report = convert(state, variables, allow_other_classes=True)
  assert set(report.kept) == {'decoder.classifier.8.weight', 'decoder.classifier.8.bias'}
  np.testing.assert_array_equal(new['params']['classifier']['8']['kernel'],
                                variables['params']['classifier']['8']['kernel'])
  state['encoder.conv1.weight'] = np.ones((8, 3, 3, 3))
  with pytest.raises(ValueError, match=r'misshapen: encoder\.conv1\.weight$'):
    convert(state, variables, allow_other_classes=True)


def test_heads_that_have_no_published_name_stay_as_drawn(variables):
  variables = {**variables, 'params': {**variables['params'], 'own_head': {'kernel': np.ones(3)}}}
  new, report = convert(_published_state(), variables)
  assert report.drawn == ('own_head',) and new['params']['own_head']['kernel'].tolist() == [1, 1, 1]
  assert convert(_torch_state(_backbone_layers()), variables, scope='backbone')[1].drawn == ()


def test_tensors_beside_a_state_dict_are_no_weights(tmp_path):
  torch = pytest.importorskip('torch')
  state, path = {'conv1.weight': torch.ones(2)}, tmp_path / 'checkpoint.pth'
  torch.save({'epoch': 1, 'arch': 'x', 'state_dict': state, 'best_acc1': torch.tensor(70.)}, path)
  assert list(load_state_dict(path, item='state_dict')) == ['conv1.weight']
  with pytest.raises(ValueError, match="holds state_dict, but model.weights_item is ''"):
    load_state_dict(path)
  torch.save({'model': {'weight': torch.ones(2), 'version': 1}}, path)
  for item in (None, 'model'):
    with pytest.raises(ValueError, match='holds no state dict'):
      load_state_dict(path, item=item)


def test_safetensors_are_read_as_float32(tmp_path):
  path = tmp_path / 'weights.safetensors'
  safetensors.numpy.save_file({'a.weight': np.arange(3, dtype=np.float16)}, path)
  state = load_state_dict(path)
  assert state['a.weight'].dtype == np.float32 and state['a.weight'].tolist() == [0, 1, 2]
  with pytest.raises(ValueError, match="one state dict, but model.weights_item .* set it to ''"):
    load_state_dict(path, item='teacher_state')
  with pytest.raises(ValueError, match='safetensors'):
    load_state_dict(tmp_path / 'weights.npz')


def test_torch_checkpoints_are_read_by_item(tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'ckpt.pth'
  torch.save({'epoch': 3, 'best_miou': np.float64(0.5), 'optimizer_state': {'state': {}},
              'model_state': {'a': torch.zeros(2)}, 'teacher_state': {'a': torch.ones(2)}}, path)
  assert load_state_dict(path, item='teacher_state')['a'].tolist() == [1, 1]
  with pytest.raises(ValueError, match="_state, but model.weights_item is ''; set it to one"):
    load_state_dict(path)
  torch.save({'a': torch.ones(2, dtype=torch.bfloat16)}, path)
  assert load_state_dict(path)['a'].tolist() == [1, 1]
  torch.save({0: torch.ones(2), 'x': {1: torch.ones(2)}, 'y': {'a': torch.ones(2)}}, path)
  assert list(load_state_dict(path, item='y')) == ['a']


def test_torch_files_need_no_torch(tmp_path, monkeypatch):
  torch = pytest.importorskip('torch')
  for zipped in (True, False):
    torch.save({'a': torch.ones(2)}, tmp_path / 'a.pt', _use_new_zipfile_serialization=zipped)
    with monkeypatch.context() as patch:
      patch.setitem(sys.modules, 'torch', None)
      assert load_state_dict(tmp_path / 'a.pt')['a'].tolist() == [1, 1]


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_weights_that_are_not_finite_are_refused(tmp_path, dtype):
  path = tmp_path / 'weights.safetensors'
  safetensors.numpy.save_file({'a': np.zeros(3, dtype), 'b': np.array([1, np.nan], dtype)}, path)
  with pytest.raises(ValueError, match='infinite or undefined numbers in b; get the file again'):
    load_state_dict(path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
  torch = pytest.importorskip('torch')

  class Evil:
    def __reduce__(self):
      return (tmp_path / 'ran').touch, ()

  torch.save({'a': torch.ones(2), 'b': Evil()}, tmp_path / 'evil.pth')
  with pytest.raises(ValueError, match=r'evil\.pth cannot be read'):
    load_state_dict(tmp_path / 'evil.pth')
  assert not (tmp_path / 'ran').exists()
  torch.save([torch.ones(2)], tmp_path / 'list.pt')
  with pytest.raises(ValueError, match='holds a list, not a dict of tensors'):
    load_state_dict(tmp_path / 'list.pt')
