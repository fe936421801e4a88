"""Layers against NumPy, ResNets and DeepLabV3+ against the published networks' numbers."""

import contextlib
import functools
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.test_util import check_grads

from gta_jax.methods.registry import make_method
from gta_jax.models.layers import BatchNorm
from gta_jax.models.pretrained import convert, load_state_dict
from gta_jax.models.resnet import ResNet, scaled, stage_plan
from gta_jax.models.segmenter import make_segmenter
from gta_jax.ops.resizing import resize_bilinear
from tests import tiny

REFERENCE = Path(__file__).parents[3] / 'shared' / 'reference'
TINY = {'num_classes': 3, 'depth': 10, 'width': 0.125, 'output_stride': 16}
CASES = {
  'r101_os8_voc': {'num_classes': 21, 'depth': 101, 'output_stride': 8},
  'r50_os16_city_aux': {'num_classes': 19, 'depth': 50, 'output_stride': 16,
                        'aspp_rates': (6, 12, 18), 'auxiliary': True},
}


def _array_from_name(name, shape):
  """The weights that the reference numbers were computed with."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  if name.endswith('running_var'):
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)
  if len(shape) == 1 and name.endswith('.weight'):
    return rng.uniform(0.5, 1.0, shape).astype(np.float32)
  deviation = 0.1 if len(shape) == 1 else np.sqrt(1 / np.prod(shape[1:]))
  return (rng.standard_normal(shape) * deviation).astype(np.float32)


def _difference(result, expected):
  return np.linalg.norm(np.asarray(result) - expected) / np.linalg.norm(expected)


def _through_files(state, folder):
  """The state dict read back from .safetensors; from the release's .pth too, if torch is there."""
  safetensors.numpy.save_file(state, folder / 'weights.safetensors')
  read = load_state_dict(folder / 'weights.safetensors')
  with contextlib.suppress(ImportError):
    import torch  # noqa: PLC0415
    tensors = {f'module.{name}': torch.from_numpy(value) for name, value in state.items()}
    torch.save({'epoch': 80, 'model_state': tensors, 'optimizer_state': {'state': {}},
                'teacher_state': tensors, 'best_miou': np.float64(0.7)}, folder / 'ckpt_best.pth')
    published = load_state_dict(folder / 'ckpt_best.pth', item='teacher_state')
    for name, value in read.items():
      np.testing.assert_array_equal(published.pop(f'module.{name}'), value)
    assert not published
  return read


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_network_agrees_with_the_published_one(case, tmp_path):
  if not REFERENCE.exists():
    pytest.skip('the reference numbers are not part of the repository')
  shapes = json.loads((REFERENCE / 'reference_state_dict_shapes.json').read_text())[case]
  with np.load(REFERENCE / 'reference_networks.npz') as file:
    expected = {name.removeprefix(f'{case}/'): file[name] for name in file if case in name}
  images = expected['input_nhwc']
  options = CASES[case] | {'multi_grid': (2, 2, 4)}
  network = make_segmenter(**options)
  state = {name: _array_from_name(name, shape) for name, shape in shapes.items()
           if not name.endswith('num_batches_tracked')}
  variables = jax.eval_shape(lambda: network.init(jax.random.key(0), images.shape[1:3]))
  variables, report = convert(_through_files(state, tmp_path), variables)
  assert all('representation' in name for name in report.ignored)

  # A network this deep compiles longer than it runs once: ask for no optimisation.
  @functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
  def run(variables, images):
    backbone = ResNet(options['depth'], 'deep', options['output_stride'], (2, 2, 4), 1.0)
    stages = backbone.apply(
      {kind: tree['backbone'] for kind, tree in variables.items()}, images, train=False)
    logits, _ = network.apply(variables, images)
    trained, statistics = network.apply(variables, images, train=True)
    full = resize_bilinear(logits.main, images.shape[1:3])
    return [x.mean((0, 1, 2)) for x in stages[1:]], logits, full.argmax(-1), trained, statistics

  means, logits, labels, trained, statistics = run(variables, images)
  for stage, mean in enumerate(means, start=1):
    assert _difference(mean, expected[f'eval_stage{stage}_mean_per_channel']) < 1e-5
  assert _difference(logits.main, expected['eval_logits_nhwc']) < 1e-5
  if options.get('auxiliary'):
    assert _difference(logits.auxiliary, expected['eval_aux_logits_nhwc']) < 1e-5
  np.testing.assert_array_equal(labels, expected['eval_logits_fullres_argmax'])
  # Batch statistics of few values amplify rounding from layer to layer: torch's own float32 run is
  # 7e-4 from its float64 one, and rounding the input alone to float32 moves that by 4e-5.
  assert _difference(trained.main, expected['train_logits_nhwc']) < 2e-3
  compared = 0
  for torch_name, value in expected.items():
    if torch_name.startswith('after_train/'):
      assert _difference(_statistic(statistics, torch_name), value) < 1e-4
      compared += 1
  assert compared == 5 if case.startswith('r50') else compared > 0


def _statistic(statistics, torch_name):
  part, *inner, kind = torch_name.removeprefix('after_train/').split('.')
  if inner[0] == 'classifier':
    part, *inner = inner
  elif inner[0].startswith('layer'):
    inner = ['_'.join(inner[:2]), *inner[2:]]
  node = statistics[{'encoder': 'backbone'}.get(part, part)]
  for name in inner:
    node = node[name]
  return node[kind.removeprefix('running_')]


def test_batch_norm_normalises_and_keeps_statistics_as_torch():
  rng = np.random.default_rng(0)
  x = (rng.standard_normal((2, 3, 2, 4)) + 100).astype(np.float32)
  scale, bias, mean, var = rng.uniform(0.5, 1.5, (4, 4)).astype(np.float32)
  variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': {'mean': mean, 'var': var}}
  y, state = BatchNorm().apply(variables, x, train=True, mutable=['batch_stats'])
  rows = x.reshape(-1, 4).astype(np.float64)
  batch = (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
  np.testing.assert_allclose(y, batch * scale + bias, atol=1e-4)
  statistics = state['batch_stats']
  np.testing.assert_allclose(statistics['mean'], 0.9 * mean + 0.1 * rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(statistics['var'], 0.9 * var + 0.1 * rows.var(0, ddof=1), rtol=1e-4)
  running = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
  np.testing.assert_allclose(BatchNorm().apply(variables, x, train=False), running, rtol=1e-4)


def test_batch_norm_gradient_knows_that_the_statistics_depend_on_the_batch():
  x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))
  weights = jax.random.normal(jax.random.key(1), x.shape)
  module = BatchNorm()
  variables = module.init(jax.random.key(0), x, train=False)

  def loss(x):
    return (module.apply(variables, x, train=True, mutable=['batch_stats'])[0] * weights).sum()

  check_grads(jax.jit(loss), (x,), order=1, modes=['rev'], rtol=0.02)


@pytest.mark.parametrize('output_stride,strides,dilations', [
  (32, [1, 2, 2, 2], [[1, 1], [1, 1], [1, 1], [2, 4]]),
  (16, [1, 2, 2, 1], [[1, 1], [1, 1], [1, 1], [2, 8]]),
  (8, [1, 2, 1, 1], [[1, 1], [1, 1], [1, 2], [4, 16]]),
])
def test_dilated_stages_start_with_the_dilation_before(output_stride, strides, dilations):
  plan = stage_plan((2, 2, 2, 2), output_stride, (2, 4))
  assert [stage[0][0] for stage in plan] == strides
  assert [[dilation for _, dilation in stage] for stage in plan] == dilations


@pytest.mark.parametrize('stem,first', [('deep', 17), ('torchvision', 16)])
@pytest.mark.parametrize('output_stride,reductions', [(8, (1, 2, 2, 2)), (16, (1, 2, 4, 4)),
                                                      (32, (1, 2, 4, 8))])
def test_stages_have_the_size_of_their_stride(stem, first, output_stride, reductions):
  module = ResNet(18, stem, output_stride, None, 1.0)
  stages, _ = jax.eval_shape(
    lambda: module.init_with_output(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
  assert [x.shape[1] for x in stages] == [
    32, *(-(-first // reduction) for reduction in reductions)]
  assert [x.shape[3] for x in stages[1:]] == [64, 128, 256, 512]


def test_width_scales_every_channel_in_eights():
  assert [scaled(c, 0.25) for c in (16, 64, 256, 48)] == [8, 16, 64, 16]
  network = make_segmenter(**TINY, auxiliary=True)
  params = jax.eval_shape(lambda: network.init(jax.random.key(0), (32, 32)))['params']
  assert set(params) == {'backbone', 'decoder', 'classifier', 'auxiliary'}
  assert params['backbone']['conv1_6']['kernel'].shape == (3, 3, 8, 16)
  assert params['backbone']['layer4_0']['conv2']['kernel'].shape == (3, 3, 64, 64)
  assert params['decoder']['head_0']['kernel'].shape == (3, 3, 5 * 32, 32)
  assert params['classifier']['8']['kernel'].shape == (1, 1, 32, 3)


def test_initialisation_is_drawn_from_the_key():
  network = make_segmenter(**TINY)
  first, again, other = (network.init(jax.random.key(seed), (32, 32)) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  params = first['params']
  kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
  pointers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(first)}
  assert len(pointers) == len(jax.tree.leaves(first))
  assert not np.array_equal(kernels[0], other['params']['backbone']['conv1_0']['kernel'])
  kaiming, default = params['backbone']['layer4_0']['conv2'], params['decoder']['head_0']
  np.testing.assert_allclose(kaiming['kernel'].std(), (2 / 9 / 64) ** 0.5, rtol=0.05)
  np.testing.assert_allclose(default['kernel'].std(), (1 / 3 / 9 / 160) ** 0.5, rtol=0.05)
  assert (params['backbone']['layer4_0']['bn2']['scale'] == 1).all()


@pytest.mark.slow
def test_bfloat16_computes_low_and_keeps_float32():
  wide, low = make_segmenter(**TINY), make_segmenter(**TINY, dtype='bfloat16')
  variables = wide.init(jax.random.key(0), (33, 33))
  images = jax.random.normal(jax.random.key(1), (2, 33, 33, 3))
  exact, _ = jax.jit(wide.apply)(variables, images)
  result = jax.jit(low.apply)(variables, images)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(result))
  assert 1e-5 < _difference(result[0].main, exact.main) < 0.05


@pytest.mark.slow
def test_train_mode_drops_with_a_key_and_moves_statistics():
  network = make_segmenter(**TINY, dropout=0.5)
  variables = network.init(jax.random.key(0), (32, 32))
  images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  apply = jax.jit(network.apply, static_argnames='train')
  (first, moved), (again, _), (other, _) = (
    apply(variables, images, train=True, dropout_key=jax.random.key(seed)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first.main, again.main)
  assert not np.array_equal(first.main, other.main)
  assert first.main.shape == (2, 9, 9, 3) and first.auxiliary is None
  assert all(jax.tree.leaves(jax.tree.map(
    lambda a, b: (a != b).any(), moved, variables['batch_stats'])))


def test_evaluation_returns_the_statistics_it_got():
  network = make_segmenter(**TINY)
  variables = jax.eval_shape(lambda: network.init(jax.random.key(0), (32, 32)))
  images = jnp.zeros((1, 32, 32, 3))

  def evaluate(variables):
    _, statistics = network.apply(variables, images)
    assert statistics is variables['batch_stats']

  jax.eval_shape(evaluate, variables)
  with pytest.raises(TypeError, match='normalize'):
    network.apply(variables, images.astype(jnp.uint8))


@pytest.mark.parametrize('option,message', [
  ({'depth': 20}, 'depth=20 is unknown; use one of 10, 18, 34, 50, 101, 152'),
  ({'stem': 'shallow'}, 'deep, torchvision'),
  ({'output_stride': 4}, '8, 16, 32'),
  ({'dtype': 'float16'}, 'float32, bfloat16'),
  ({'multi_grid': (2, 2, 4), 'depth': 18}, '3 factors, but ResNet-18 has 2 blocks'),
  ({'dropout': 1.0}, 'dropout=1.0'),
  ({'width': 0}, 'width=0'),
])
def test_unknown_choices_are_refused(option, message):
  with pytest.raises(ValueError, match=message):
    make_segmenter(num_classes=3, **option)


@pytest.mark.slow
def test_rematerialised_step_is_the_plain_one_in_less_memory():
  """One step of GTA-Seg: the same state, losses and tree."""
  method = make_method('gta')
  # XLA for CPUs drops the barriers that keep what is computed again apart from what was kept.
  options = {'xla_backend_optimization_level': 0, 'xla_disable_hlo_passes': 'cse_barrier_expander'}
  batches, key = tiny.make_batches(batch=2, size=(65, 65)), jax.random.key(0)
  variables, found = make_segmenter(**TINY).init(key, (65, 65)), {}
  for remat in (False, True):
    network = make_segmenter(**TINY, remat=remat)
    tools = tiny.make_tools(network, batch=2, size=(65, 65))
    state = tiny.first_state(method, tools, variables)
    step = tiny.make_steps(method, tools)['main']
    compiled = step.lower(state, *batches).compile(compiler_options=options)
    state, metrics = compiled(state, *batches)
    found[remat] = state.replace(key=None), metrics, compiled.memory_analysis().temp_size_in_bytes
  *plain, most = found[False]
  *again, less = found[True]
  assert jax.tree.structure(plain) == jax.tree.structure(again)
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(plain), strict=True):
    # Rounding reaches 1.6e-4 in the gradients of the first layers; a wrong one is off by its size.
    assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b) + 1e-6
  assert less < 0.95 * most, (less, most)
