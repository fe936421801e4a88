"""DINOv2 against transformers with seeded weights, on its own grid and on others."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.models import dinov2
from gta_jax.models.backbones import BACKBONES, Options
from gta_jax.models.dinov2 import PLAIN, WITH_REGISTERS, Positions, at_grid, attend
from gta_jax.models.pretrained import convert, to_state_dict
from gta_jax.models.segmenter import make_segmenter
from tests.models.tiny_dinov2 import DEPTH, HEADS, WIDTH, make_dinov2

SIZE, ODD = (518, 518), (98, 616)  # 37 x 37 patches, and 7 x 44


@pytest.fixture(scope='module', params=[0, 4], ids=['plain', 'registers'])
def reference(request):
  """A seeded network of transformers, and the number of its registers."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  of_kind = 'Dinov2WithRegisters' if request.param else 'Dinov2'
  options = {'num_register_tokens': request.param} if request.param else {}
  config = getattr(transformers, f'{of_kind}Config')(
    hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=SIZE[0],
    patch_size=14, **options)
  torch.manual_seed(0)
  network = getattr(transformers, f'{of_kind}Model')(config).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in network.parameters():  # Fresh biases are zero, and scales one.
      parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
  return network, request.param


def arrays_of(network):
  return {name: value.detach().numpy() for name, value in network.state_dict().items()}


def loaded(state, registers, positions=None, **options):
  network = make_dinov2(registers=registers, positions=positions, **options)
  variables = network.init(jax.random.key(0), (28, 28))
  variables, report = convert(state, variables, scope='backbone')
  return network, variables, report


def torch_position(learnt, grid, positions):
  """The published rule, in torch: [37 x 37,C] -> [h x w,C]."""
  torch = pytest.importorskip('torch')
  square = torch.tensor(learnt).reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
  factor = tuple((side + positions.offset) / 37 for side in grid)
  size = {'scale_factor': factor} if positions.offset else {'size': grid}
  found = torch.nn.functional.interpolate(
    square, mode='bicubic', antialias=positions.antialias, **size)
  assert found.shape[2:] == grid
  return found[0].permute(1, 2, 0).reshape(grid[0] * grid[1], -1).numpy()


def taps_of(network, images):
  """Outputs of all blocks through the last LayerNorm, [B,h,w,C] each."""
  torch = pytest.importorskip('torch')
  images = torch.tensor(images).permute(0, 3, 1, 2)
  grid = [side // 14 for side in images.shape[2:]]
  with torch.no_grad():
    states = network(images, output_hidden_states=True).hidden_states[1:]
    tokens = [network.layernorm(state)[:, -grid[0] * grid[1]:].numpy() for state in states]
  return [x.reshape(len(images), *grid, -1) for x in tokens]


@pytest.mark.parametrize('size', [SIZE, ODD], ids=['own', 'odd'])
def test_taps_are_those_of_transformers(reference, size):
  """With transformers' positions: without registers these have no offset, unlike as published."""
  torch_network, registers = reference
  positions = WITH_REGISTERS if registers else Positions(0.0, antialias=False)
  network, variables, report = loaded(arrays_of(torch_network), registers, positions)
  assert report.ignored == ('mask_token',)
  images = np.random.default_rng(1).standard_normal((1, *size, 3), np.float32)
  stages, _ = jax.jit(network.encode)(variables, images)
  expected = taps_of(torch_network, images)
  assert len(stages) == len(expected) == 4
  for found, tap in zip(stages, expected, strict=True):
    assert found.shape == tap.shape
    assert np.linalg.norm(found - tap) < 1e-4 * np.linalg.norm(tap)


@pytest.mark.parametrize('positions', [PLAIN, WITH_REGISTERS, Positions(0.0, antialias=False)])
@pytest.mark.parametrize('grid', [(57, 57), (37, 38), (7, 44), (1, 3)])
def test_positions_follow_the_published_rule(grid, positions):
  learnt = np.random.default_rng(0).standard_normal((37 * 37, 5), np.float32)
  found = np.asarray(at_grid(jnp.asarray(learnt), grid, positions))
  np.testing.assert_allclose(found, torch_position(learnt, grid, positions), rtol=0, atol=2e-5)


def test_positions_are_untouched_on_their_own_grid():
  learnt = jax.random.normal(jax.random.key(0), (37 * 37, 5))
  assert np.array_equal(at_grid(learnt, (37, 37), PLAIN), learnt)
  assert not np.allclose(at_grid(learnt, (37, 38), PLAIN)[:37], learnt[:37], atol=1e-3)


def test_every_layout_gives_the_same_network(reference):
  """The published code's names, timm's, and transformers' before and from its version 5."""
  torch_network, registers = reference
  of_transformers = arrays_of(torch_network)
  _, expected, _ = loaded(of_transformers, registers)
  published, _ = to_state_dict({kind: {'backbone': tree['backbone']}
                                for kind, tree in expected.items()})
  bare = {name.removeprefix('backbone.'): value for name, value in published.items()}
  assert bare['blocks.0.attn.qkv.weight'].shape == (3 * WIDTH, WIDTH)
  old = {}
  names = {'o_proj': 'output.dense', 'q_proj': 'attention.query', 'k_proj': 'attention.key',
           'v_proj': 'attention.value'}
  for name, value in of_transformers.items():
    old[re.sub('[qkvo]_proj', lambda found: names[found[0]], f'dinov2.{name}')] = value
  layouts = [published, bare, old]
  if registers:
    timm = {**bare, 'cls_token': bare['cls_token'] + bare['pos_embed'][:, :1],
            'pos_embed': bare['pos_embed'][:, 1:], 'reg_token': bare['register_tokens']}
    del timm['register_tokens']
    layouts.append(timm)
  images = np.random.default_rng(1).standard_normal((1, 28, 42, 3), np.float32)
  network, _, _ = loaded(published, registers)
  encode = jax.jit(network.encode)
  for state in layouts:
    _, variables, report = loaded(state, registers)
    assert all('mask_token' in name for name in report.ignored)
    for one, other in zip(encode(variables, images)[0], encode(expected, images)[0], strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_what_is_missing_is_named(reference):
  torch_network, registers = reference
  state = arrays_of(torch_network)
  state = {name: value for name, value in state.items() if 'layer.2.attention.k' not in name}
  with pytest.raises(ValueError, match=r'missing: .*blocks\.2\.attn\.qkv'):
    loaded(state, registers)


@pytest.mark.parametrize('name, shape, taps', [
  ('s', (384, 12, 6), (2, 5, 8, 11)), ('b', (768, 12, 12), (2, 5, 8, 11)),
  ('l', (1024, 24, 16), (4, 11, 17, 23))])
@pytest.mark.parametrize('end, registers, rule', [('', 0, (0.1, False)), ('_reg', 4, (0.0, True))])
def test_sizes_are_the_published_ones(name, shape, taps, end, registers, rule):
  options = Options(101, 'deep', 16, None, 1.0, 1, remat=True)
  module = BACKBONES[f'dinov2_{name}{end}'].make(options)
  assert (module.width, module.depth, module.heads) == shape and module.taps == taps
  assert (module.registers, tuple(module.positions)) == (registers, rule)
  assert module.remat and module.frozen_stages == 1


@pytest.mark.parametrize('size, encoder, head', [
  ('s', 22_056_576, 2_739_061), ('b', 86_580_480, 10_948_309), ('l', 304_368_640, 31_210_517)])
def test_parameters_are_as_many_as_published(size, encoder, head):
  """For 21 classes; those that are never used, the mask token and a unit of DPT, do not exist."""
  network = make_segmenter(num_classes=21, backbone=f'dinov2_{size}', decoder='dpt')
  params = jax.eval_shape(lambda: network.init(jax.random.key(0), (28, 28)))['params']
  counts = {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in params.items()}
  kind = dinov2.SIZES[size]
  features = kind.head[0]
  assert counts['backbone'] + kind.width == encoder
  assert counts['decoder'] + counts['classifier'] + 2 * (9 * features**2 + features) == head


@pytest.mark.slow
def test_many_tokens_are_compared_in_parts(monkeypatch):
  parts = jax.random.normal(jax.random.key(0), (3, 2, 11, 3, 8))

  def value_and_gradient():
    return jax.value_and_grad(lambda parts: jnp.sum(jnp.square(attend(*parts))))(parts)

  expected = value_and_gradient()
  monkeypatch.setattr(dinov2, '_MOST_TOKENS', 10)
  monkeypatch.setattr(dinov2, '_QUERIES', 4)
  for found, value in zip(value_and_gradient(), expected, strict=True):
    np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)


def test_no_comparison_of_all_tokens_is_kept_for_the_backward_pass():
  tokens = 50
  parts = jax.random.normal(jax.random.key(0), (3, 2, tokens, 2, 4))
  _, backward = jax.vjp(attend, *parts)
  kept = [leaf.shape for leaf in jax.tree.leaves(backward)]
  assert kept and not any(shape.count(tokens) > 1 for shape in kept), kept


def gradient_of(network, variables):
  images = jax.random.normal(jax.random.key(1), (2, 28, 42, 3))

  @jax.jit
  def gradient(params):
    def loss(params):
      stages, _ = network.encode({**variables, 'params': params}, images, train=True)
      return sum(jnp.mean(jnp.square(stage[..., 0] - 1)) for stage in stages)

    return jax.grad(loss)(params)

  return gradient(variables['params'])


@pytest.mark.parametrize('stages, registers', [
  pytest.param(0, 0, marks=pytest.mark.slow), (2, 4), pytest.param(4, 0, marks=pytest.mark.slow)])
def test_frozen_stages_have_no_gradient(stages, registers):
  network = make_dinov2(frozen_stages=stages, registers=registers)
  found = gradient_of(network, network.init(jax.random.key(0), (28, 28)))['backbone']
  assert set(network.frozen) <= set(found)
  for name, part in found.items():
    assert any(np.any(x) for x in jax.tree.leaves(part)) == (name not in network.frozen), name
  assert ('blocks_1' in network.frozen, 'norm' in network.frozen) == (stages > 1, stages > 3)


@pytest.mark.slow
def test_rematerialised_gradients_are_the_plain_ones():
  network, again = make_dinov2(), make_dinov2(remat=True)
  variables = network.init(jax.random.key(0), (28, 28))
  for one, other in zip(*(jax.tree.leaves(gradient_of(n, variables)) for n in (network, again)),
                        strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
  network, half = make_dinov2(), make_dinov2(dtype='bfloat16')
  variables = network.init(jax.random.key(0), (28, 28))
  images = jax.random.normal(jax.random.key(1), (2, 28, 42, 3))
  stages, _ = jax.jit(half.encode)(variables, images)
  assert {stage.dtype for stage in stages} == {jnp.dtype('bfloat16')}
  for one, other in zip(stages, jax.jit(network.encode)(variables, images)[0], strict=True):
    assert np.linalg.norm(one.astype(jnp.float32) - other) < 0.02 * np.linalg.norm(other)


@pytest.mark.parametrize('options, message', [
  ({'decoder': 'unet'}, 'unet joins stages of stride 2, 4, 8 and 16, but those of dinov2_s have'),
  ({'decoder': 'dpt', 'backbone': 'resnet'}, 'dpt reads stages of one stride, but .* use deeplab'),
  ({'multi_grid': (2, 2, 4)}, r'multi_grid=\(2, 2, 4\) is for ResNets'),
])
def test_parts_that_do_not_fit_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    make_segmenter(num_classes=3, **{'backbone': 'dinov2_s', **options})


def test_sides_that_patches_do_not_fill_are_refused():
  network = make_dinov2()
  message = 'side of images=96 is not a multiple of 14, .* 84 or 98'
  with pytest.raises(ValueError, match=message):
    network.init(jax.random.key(0), (28, 96))
  with pytest.raises(ValueError, match=message):
    network.encode({'params': {}, 'batch_stats': {}}, jnp.zeros((1, 28, 96, 3)))
  assert network.multiple == 28
