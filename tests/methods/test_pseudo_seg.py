"""PseudoSeg: its step against the oracle in NumPy, its labels, its invariants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import voc
from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.gradient_step import slope
from gta_jax.methods.pseudo_seg import image_dropout
from gta_jax.methods.registry import make_method
from gta_jax.models.cam_attention import AttentionInputs, CamAttention
from gta_jax.models.segmenter import make_segmenter
from gta_jax.ops.grad_cam import calibrated_fusion, grad_cam
from gta_jax.ops.mixing import squares
from gta_jax.ops.network import Decoded, Logits, Network
from gta_jax.training import config_rules
from tests import tiny
from tests.methods import kit
from tests.oracles import linear_model_b as lm
from tests.oracles import pseudo_seg as oracle
from tests.oracles.tape_b import Node, map_tree

K, F, D, WIDTH = tiny.CLASSES, 4, 5, 4
HYPER = {'rate': 0.05, 'total_steps': 10}


def linear_network(method):
  """The oracle's: backbone, decoder and classifier of single pixels, and the method's own heads."""
  modules = {name: make(num_classes=K, features=D) for name, make in method.heads.items()}
  modules['attention'] = modules['attention'].clone(width=WIDTH)

  def linear(variables, name, x):
    return x @ variables['params'][name]['kernel'] + variables['params'][name]['bias']

  def encode(variables, images, *, train=False, dropout_key=None):
    del train, dropout_key
    last = linear(variables, 'backbone', images)
    return (linear(variables, 'decoder', last), last), variables['batch_stats']

  def decode(variables, stages, *, train=False, dropout_key=None):
    del train, dropout_key
    fused = linear(variables, 'decoder', stages[-1])
    return Decoded(Logits(linear(variables, 'classifier', fused)), fused), variables['batch_stats']

  def head(variables, name, inputs, *, train=False, dropout_key=None):
    del dropout_key
    found = modules[name].apply({'params': variables['params'][name]}, inputs, train=train)
    return found, variables['batch_stats']

  def init(key, image_size):
    del key, image_size
    return variables_of(oracle.make_problem(0)[0]['networks']['model'])

  return Network(init, encode, decode, head, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def variables_of(params):
  """The oracle's parameters; its columns have the backbone's output first, here it is last."""
  params = {key: dict(layer) for key, layer in params.items()}
  query, key = (np.roll(params.pop(f'attention_{name}')['kernel'], -F, axis=0)
                for name in ('query', 'key'))
  params['attention'] = {'query': query, 'key': key, **params.pop('attention_output')}
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  return {'params': params, 'batch_stats': {key: {} for key in params}}


@functools.cache
def compiled(*, deeplab='', batch=2, accumulation=0, **options):
  """A method, its tools, its jitted step and its first state."""
  method = make_method('pseudo_seg', **options)
  network = linear_network(method) if not deeplab else make_segmenter(
    num_classes=K, depth=10, output_stride=16, width=0.125, aspp_rates=(1, 2, 3), dtype=deeplab,
    heads=method.heads)
  tools = tiny.make_tools(
    network, rate=0.05, total_steps=10, batch=batch, size=(32, 32) if deeplab else tiny.SIZE,
    accumulation=Accumulation(accumulation), multiplier=1.0, decay='kernels')
  assert method.check(tools)
  stage, = method.stages(tools)
  return method, tools, jax.jit(stage.step), tiny.first_state(method, tools)


def step_on(setup, batches, state=None):
  state = setup[3] if state is None else state
  return setup[2](state, dict(zip(('labelled', 'unlabelled'), batches, strict=True)))


@pytest.mark.parametrize('options, hyper', [
  ({}, {}), ({'calibration': 'sum', 'version': 'v1', 'temperature': 0.8},
             {'calibration': 'sum', 'residual': False, 'norm': False, 'temperature': 0.8})])
def test_three_steps_agree_with_the_oracle(options, hyper):
  expected, labelled, unlabelled, _ = oracle.make_problem(1, features=F, hidden=D, width=WIDTH)
  setup = compiled(cutout=0.5, **options)
  method, tools, _, _ = setup
  state = tiny.first_state(method, tools, variables_of(expected['networks']['model']))

  @kit.at_once
  def draw(key, image, valid):
    keys, (batch, *size) = jax.random.split(key, 4), valid.shape
    images = jnp.where(valid[..., None], tools.network.normalize(image), 0)
    strong, _ = method.strong_view(tools, images, jnp.ones_like(valid), keys[1])
    box = squares(jax.random.split(keys[1])[1], batch, size, side=round(0.5 * size[0]))
    return strong, box, image_dropout(keys[3], (batch, F), 0.5)

  for step in range(3):
    strong, box, dropout = draw(
      jax.random.fold_in(state.key, step), unlabelled[step]['image'], unlabelled[step]['valid'])
    draws = {'strong': np.float64(strong), 'cutout': np.array([kit.corners(b) for b in box]),
             'dropout': np.float64(dropout)}
    assert (strong[box] == 0).all()
    state, metrics = step_on(setup, (labelled[step], unlabelled[step]), state)
    expected, losses = oracle.step(
      expected, labelled[step], unlabelled[step], **draws, hyper={**HYPER, **hyper})
    kit.assert_close(state.networks['model']['params'],
                 variables_of(expected['networks']['model'])['params'])
    names = {'unlabelled': 'pseudo'}
    for loss in losses.keys() - {'total'}:
      np.testing.assert_allclose(
        metrics[f'model_{names.get(loss, loss)}_loss'], losses[loss], rtol=1e-5)


@pytest.mark.slow
def test_sharpening_keeps_the_class_and_one_factor_on_both_logits_changes_nothing():
  """Invariants (a) and (b)."""
  z = jax.random.normal(jax.random.key(0), (2, 1, 3, 4, K)) * 3
  counted = jnp.ones((1, 3, 4), bool)
  soft, sharp = (calibrated_fusion(*z, counted, temperature=t) for t in (1.0, 0.5))
  np.testing.assert_allclose(jnp.sum(sharp, -1), 1, rtol=1e-6)
  np.testing.assert_array_equal(jnp.argmax(sharp, -1), jnp.argmax(soft, -1))
  assert (jnp.max(sharp, -1) > jnp.max(soft, -1)).all()
  np.testing.assert_allclose(
    calibrated_fusion(*(7 * z), counted, temperature=0.5), sharp, atol=1e-6)
  assert abs(calibrated_fusion(7 * z[0], z[1], counted, temperature=0.5) - sharp).max() > 0.01
  assert np.isfinite(calibrated_fusion(*(0 * z), ~counted, temperature=0.01)).all()


@pytest.mark.parametrize('version, calibration', [('v2', 'mean'), ('v1', 'sum')])
def test_attention_and_fusion_are_the_oracles(version, calibration):
  params = oracle.make_problem(2, features=F, hidden=D, width=WIDTH)[0]['networks']['model']
  rng, both = np.random.default_rng(0), version == 'v2'
  options = lm.settings(oracle.PAPER, {
    'residual': both, 'norm': both, 'calibration': calibration, 'temperature': 0.7})
  columns, cam = rng.normal(size=(2, 6, F + D)), rng.random((2, 6, K - 1))
  valid = rng.random((2, 6)) > 0.3
  expected = oracle.attention_logits(
    map_tree(Node, params), columns, cam, valid, valid, options).value
  module = CamAttention(K, D, residual=both, norm=both, width=WIDTH)
  inputs = AttentionInputs(
    jnp.float32(np.roll(columns, -F, -1)).reshape(2, 2, 3, -1),
    jnp.float32(cam).reshape(2, 2, 3, -1), valid.reshape(2, 2, 3))
  found = module.apply(
    {'params': variables_of(params)['params']['attention']}, inputs, train=True)
  np.testing.assert_allclose(found.reshape(2, 6, K)[valid], expected[valid], rtol=1e-4, atol=1e-5)
  other = rng.normal(size=expected.shape)
  soft = calibrated_fusion(
    *(jnp.float32(x).reshape(2, 2, 3, K) for x in (other, expected)), inputs.valid,
    temperature=0.7, calibration=calibration)
  np.testing.assert_allclose(
    soft.reshape(2, 6, K), oracle.fuse(other, expected, valid, options), rtol=1e-4, atol=1e-6)


def attend(cam, valid, **options):
  module = CamAttention(K, D, width=2, **options)
  columns = jax.random.normal(jax.random.key(1), (*cam.shape[:3], 3))
  inputs = AttentionInputs(columns, cam, valid)
  variables = module.init(jax.random.key(0), inputs, train=False)
  assert variables.keys() == {'params'}
  return module.apply(variables, inputs, train=True)


def test_padding_is_not_attended_to():
  """Invariant (c): neither through attention nor through the norm."""
  cam = jax.random.uniform(jax.random.key(2), (1, 2, 3, K - 1))
  valid = jnp.ones((1, 2, 3), bool).at[:, :, 2].set(False)
  other = jnp.where(valid[..., None], cam, 1 - cam)
  np.testing.assert_array_equal(attend(cam, valid)[:, :, :2], attend(other, valid)[:, :, :2])
  assert np.isfinite(attend(cam, valid & False)).all()


@pytest.mark.slow
def test_losses_reach_only_their_own_layers():
  """Invariant (d)."""
  method, tools, _, state = compiled()
  labelled, unlabelled, randomness = (x[0] for x in oracle.make_problem(0)[1:])
  del randomness
  variables, key = state.networks['model'], jax.random.key(3)
  images, valid = tools.network.normalize(unlabelled['image']), jnp.array(unlabelled['valid'])
  soft, _ = method.label(tools, variables, images, valid, key)

  def reached(objective, loss):
    def one(variables, batch, key):
      found = objective.loss(variables, batch, key)
      return found._replace(losses={loss: found.losses[loss]})

    alone = objective._replace(loss=one)
    gradient = jax.jit(lambda variables: slope(tools, variables, alone).gradient)(variables)
    return {key for key, part in gradient.items()
            if any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(part))}

  objective = method.labelled_objective(tools, labelled, key)
  assert reached(objective, 'attention') == {'attention'}
  assert reached(objective, 'classification') == {'backbone', 'image_classifier'}
  assert reached(method.pseudo_objective(tools, images, valid, soft, key), 'pseudo') == {
    'backbone', 'decoder', 'classifier'}


def test_without_image_labels_attention_says_background_everywhere():
  """Invariant (e)."""
  features = jax.random.normal(jax.random.key(0), (1, 2, 3, F))
  everywhere = jnp.ones((1, 2, 3), bool)
  cam = grad_cam(features, jnp.ones((F, K - 1)), jnp.zeros((1, K - 1), bool), everywhere)
  assert not cam.any()
  found = attend(cam, everywhere, norm=False).reshape(-1, K)
  np.testing.assert_allclose(found, found[:1].repeat(6, 0), rtol=1e-6)


@pytest.mark.slow
def test_padding_has_no_influence_in_a_whole_network():
  setup = compiled(deeplab='bfloat16', batch=4)
  labelled, unlabelled = tiny.make_batches(0, size=(32, 32))
  noise = np.random.default_rng(0).integers(0, 256, unlabelled['image'].shape, dtype=np.uint8)
  other = {**unlabelled, 'image': np.where(unlabelled['valid'][..., None],
                                           unlabelled['image'], noise)}
  runs = [step_on(setup, (labelled, x))[0] for x in (unlabelled, other)]
  jax.tree.map(np.testing.assert_array_equal, *map(kit.plain, runs))


@pytest.mark.slow
def test_the_tree_is_kept_and_finite_where_nothing_is_left():
  setup = compiled(deeplab='bfloat16', batch=4)
  labelled, unlabelled = tiny.make_batches(0, size=(32, 32))
  nothing = ({**labelled, 'label': np.full_like(labelled['label'], 255)},
             {**unlabelled, 'valid': np.zeros_like(unlabelled['valid'])})
  for both in ((labelled, unlabelled), nothing):
    state, metrics = step_on(setup, both)
    assert jax.tree.structure(state) == jax.tree.structure(setup[3])
    for new, old in zip(*map(jax.tree.leaves, (state, setup[3])), strict=True):
      assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kit.plain(state)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))


@pytest.mark.slow
def test_cut_batches_are_the_whole_batch_but_for_norms():
  """v1 has no norm; dropout draws anew for each part."""
  problem = oracle.make_problem(0, batch=4)
  options = {'version': 'v1', 'image_dropout': 0.0, 'batch': 4}
  (whole, _), (cut, _) = (
    step_on(compiled(accumulation=n, **options), (problem[1][0], problem[2][0])) for n in (0, 2))
  kit.assert_close(kit.plain(whole), kit.plain(cut))


def test_published_fields_are_known_to_the_config():
  fields = config_rules.complete(voc.get_config('method=pseudo_seg'))
  assert fields.optim.decay == 'kernels' and fields.model.output_stride == 16


def test_one_class_is_refused():
  method, tools, _, _ = compiled()
  with pytest.raises(ValueError, match='use 2 or more classes'):
    method.check(tools._replace(num_classes=1))
