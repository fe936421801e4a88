"""UniMatch V2's step: its oracle, its invariants, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import cityscapes, voc
from gta_jax.evaluation.protocols import make_protocols
from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.registry import METHODS, make_method
from gta_jax.models import weights
from gta_jax.ops.channel_dropout import complementary_masks
from gta_jax.ops.mixing import unimatch_boxes
from gta_jax.ops.optim import make_adam, poly_schedule
from gta_jax.ops.photometric import strong_view
from gta_jax.training import setup
from tests import tiny
from tests.methods import kit
from tests.models.tiny_dinov2 import make_dinov2
from tests.oracles import unimatch_v2 as oracle

STEPS, RATE = 3, 0.01
QUIET = {'jitter': 0.0, 'greyscale': 0.0, 'blur': 0.0}


def make_tools(network, *, adamw=True, batch=4, size=tiny.SIZE, **options):
  tools = tiny.make_tools(
    network, rate=RATE, total_steps=10, batch=batch, size=size, **options)
  if not adamw:
    return tools
  return tools._replace(make_optimizer=lambda **_: make_adam(
    poly_schedule(RATE, total_steps=10), multiplier=40.0, weight_decay=0.01))


@functools.cache
def compiled(name='unimatch_v2', **options):
  """(first state, jitted step) of a method on a tiny network; without colours unless asked."""
  tools = make_tools(tiny.linear_network())
  method = make_method(name, **{'threshold': 0.5, **QUIET, **options})
  assert not method.check(tools)
  stage, = method.stages(tools)
  return tiny.first_state(method, tools), jax.jit(stage.step)


def take(state, step, seed=0, **changes):
  labelled, unlabelled = tiny.make_batches(seed)
  return step(state, {'labelled': labelled, 'unlabelled': {**unlabelled, **changes}})


def make_randomness(network, width):
  """(state, unlabelled) -> what the step draws, for the oracle; float64 would change no draw."""
  @kit.at_once
  def draw(key, image, valid):
    keys = jax.random.split(key, 4)
    images = jnp.where(valid[..., None], image / np.float32(255), 0)
    key_colours, key_box = jax.random.split(keys[0])
    return (strong_view(key_colours, jnp.repeat(images, 2, axis=0), network),
            unimatch_boxes(key_box, 2 * len(valid), valid.shape[1:]),
            complementary_masks(keys[1], len(valid), (width,))[0])

  def randomness(state, unlabelled):
    image, valid = unlabelled['image'], unlabelled['valid']
    strong, boxes, masks = draw(state.step_key(), image, valid)
    corners = np.array([kit.corners(mask) for mask in boxes])
    return {'strong': strong.reshape(-1, 2, *image.shape[1:]).swapaxes(0, 1),
            'boxes': corners.reshape(-1, 2, 4).swapaxes(0, 1),
            'bernoulli': (masks[:, 0] > 0).astype(int), 'undropped': (masks[:, 0] == 1).all(1)}

  return randomness


def to_jax(params):
  tree = jax.tree.map(jnp.asarray, params)
  return {'params': tree, 'batch_stats': {key: {} for key in tree}}


@pytest.mark.parametrize('optimizer', [pytest.param('adamw', marks=pytest.mark.slow), 'sgd'])
def test_three_steps_agree_with_numpy(optimizer):
  with jax.enable_x64(True):  # In float32 1 - 0.999^t has four digits.
    _three_steps(optimizer)


def _three_steps(optimizer):
  expected, labelled, unlabelled, _ = oracle.make_problem(
    3, optimizer=optimizer, batch=5, size=(9, 8), hidden=4)
  hyper = {'threshold': 0.6, 'rate': RATE, 'optimizer': optimizer, 'total_steps': 10}
  hyper |= {} if optimizer == 'adamw' else {'weight_decay': 1e-4, 'decoder_multiplier': 10.0}
  network = tiny.linear_network()
  tools = make_tools(network, adamw=optimizer == 'adamw', batch=5)
  method = make_method('unimatch_v2', threshold=0.6)
  state = tiny.first_state(method, tools, to_jax(expected['networks']['student']))
  step, randomness = jax.jit(method.stages(tools)[0].step), make_randomness(network, 4)
  pasted = 0
  for batch_l, batch_u in zip(labelled, unlabelled, strict=True):
    drawn = randomness(state, batch_u)
    pasted += drawn['boxes'].any(-1).sum()
    expected, losses = oracle.step(expected, batch_l, batch_u, **drawn, hyper=hyper)
    state, metrics = step(state, {'labelled': batch_l, 'unlabelled': batch_u})
    kit.assert_networks(state, expected['networks'])
    for name, weight in {'labelled': 2, 'strong_1': 4, 'strong_2': 4}.items():
      np.testing.assert_allclose(weight * metrics[f'student_{name}_loss'], losses[name], rtol=1e-5)
  assert pasted


def test_masks_are_complementary_and_half_of_the_pairs_are_whole():
  """Invariant (a); one mask for stages of one width, others for other widths."""
  for batch in (4, 5):
    one, same, other = complementary_masks(jax.random.key(0), batch, (64, 64, 32))
    np.testing.assert_array_equal(one, same)
    assert one.shape == (batch, 2, 64) and other.shape == (batch, 2, 32)
    np.testing.assert_array_equal(one.sum(1), np.full((batch, 64), 2.0))
    for mask in (one, other):
      whole = (mask == 1).all((1, 2))
      assert whole.sum() == batch // 2
      assert set(np.unique(mask[~whole])) == {0, 2}
    assert not np.array_equal(one[..., :32], other)


def test_teacher_equals_student_after_the_first_step_and_averages_then():
  """Invariant (d): d is 0, 1/2, 2/3: the plain mean of the students."""
  state, step = compiled()
  students = []
  for seed in range(3):
    state, metrics = take(state, step, seed)
    students.append(state.networks['student']['params'])
    mean = jax.tree.map(lambda *x: sum(x) / len(x), *students)
    kit.assert_close(state.networks['teacher']['params'], mean)
  assert metrics['teacher_decay'] == pytest.approx(2 / 3)


def test_equal_views_without_boxes_and_dropout_are_fixmatch():
  """Invariant (e)."""
  plain = {'box_probability': 0.0, 'feature_dropout': 'none'}
  state, step = compiled(**plain)
  two, of_two = take(state, step)
  one, of_one = take(state, compiled('fixmatch_ema', **plain)[1])
  assert of_two['student_strong_1_loss'] == of_two['student_strong_2_loss'] > 0
  np.testing.assert_allclose(
    2 * of_two['student_strong_1_loss'], of_one['student_strong_1_loss'], rtol=1e-6)
  kit.assert_close(two.networks, one.networks)


def test_nothing_kept_leaves_half_of_the_supervised_gradient():
  """Invariant (f): with SGD from rest the update is half of that of labels alone."""
  tools = make_tools(tiny.linear_network(), adamw=False, weight_decay=0.0)
  moved = {}
  for name, options in {'unimatch_v2': {'threshold': 1.1, **QUIET},
                        'sup_only': {'warmup_epochs': 0.0}}.items():
    method = make_method(name, **options)
    state = tiny.first_state(method, tools)
    labelled, unlabelled = tiny.make_batches(0)
    after, metrics = jax.jit(method.stages(tools)[0].step)(
      state, {'labelled': labelled, 'unlabelled': unlabelled})
    moved[name] = jax.tree.map(lambda a, b: a - b, *(
      s.networks['student']['params'] for s in (after, state)))
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(metrics))
  kit.assert_close(moved['unimatch_v2'], jax.tree.map(lambda x: x / 2, moved['sup_only']))


@pytest.mark.slow
def test_divisor_counts_pixels_that_are_not_kept():
  """The teacher's confidence is the threshold's exact border: half of the pixels, half the loss."""
  state, step = compiled(threshold=0.0, box_probability=0.0, feature_dropout='none')
  _, whole = take(state, step)
  _, unlabelled = tiny.make_batches(0)
  logits = tiny.low_logits(tiny.linear_network(), state.networks['teacher'], unlabelled['image'])
  confidence = np.asarray(jax.nn.softmax(logits)).max(-1)
  losses = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, logits.argmax(-1)))
  valid = unlabelled['valid']
  border = np.median(confidence[valid])
  _, half = take(state, compiled(
    threshold=float(border), box_probability=0.0, feature_dropout='none')[1])
  np.testing.assert_allclose(
    4 * half['student_strong_1_loss'],
    losses[valid & (confidence >= border)].sum() / valid.sum(), rtol=1e-4)
  np.testing.assert_allclose(
    4 * whole['student_strong_1_loss'], losses[valid].mean(), rtol=1e-5)
  assert half['kept_share'] < whole['kept_share']


@pytest.mark.parametrize('name, moves', [('unimatch_v2', 2), ('fixmatch_ema', 1)])
def test_running_statistics_move_by_labelled_images_and_by_all_views_together(name, moves):
  """One after the other, or in one pass."""
  method = make_method(name, threshold=0.35, **QUIET)
  tools = tiny.make_tools(tiny.conv_network(dropout=False), rate=0.0)
  same = np.full((4, *tiny.SIZE, 3), 200, np.uint8)  # all passes see the same mean
  streams = {'labelled': {'image': same, 'label': np.zeros(same.shape[:3], np.uint8)},
             'unlabelled': {'image': same, 'valid': np.ones(same.shape[:3], bool)}}
  state = tiny.first_state(method, tools)
  stage, = method.stages(tools)
  after, _ = jax.jit(stage.step)(state, streams)
  _, once = tools.network.apply(
    state.networks['student'], tools.network.normalize(same), train=True)
  mean = after.networks['student']['batch_stats']['backbone']['mean']
  np.testing.assert_allclose(
    mean, once['backbone']['mean'] * (1 - 0.9 ** moves) / (1 - 0.9), rtol=1e-4)
  np.testing.assert_array_equal(
    mean, after.networks['teacher']['batch_stats']['backbone']['mean'])  # d = 0


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match='views=1 has no second view'):
    make_method('unimatch_v2', views=1)
  tools = make_tools(tiny.linear_network(), accumulation=Accumulation(2))._replace(
    unlabelled_batch=8)
  make_method('unimatch_v2').check(tools)
  with pytest.raises(ValueError, match='into 2 and 4 parts'):
    make_method('fixmatch_ema').check(tools)


@pytest.mark.slow
def test_a_step_on_dinov2_with_its_head():
  """AdamW on both groups; the teacher is the student after the first step (invariant d)."""
  network = make_dinov2()
  tools = make_tools(network, size=(28, 42))
  method = make_method('unimatch_v2', threshold=0.0, **QUIET)
  assert not method.check(tools)
  stage, = method.stages(tools)
  state = tiny.first_state(method, tools, network.init(jax.random.key(0), (28, 42)))
  assert not jax.tree.leaves(state.networks['teacher']['batch_stats'])
  labelled, unlabelled = tiny.make_batches(0, size=(28, 42))
  moved, metrics = jax.jit(stage.step)(state, {'labelled': labelled, 'unlabelled': unlabelled})
  assert all(np.isfinite(value).all() for value in metrics.values())
  assert jax.tree.structure(moved) == jax.tree.structure(state)
  before, after = state.networks['student']['params'], moved.networks['student']['params']
  for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
    assert not np.array_equal(one, other)
  kit.assert_close(after, moved.networks['teacher']['params'], atol=1e-7)


def test_cost_is_the_sheets():
  assert make_method('unimatch_v2').cost == 10
  assert make_method('fixmatch_ema').cost == 7


def test_resnets_take_unimatchs_rates_and_dinov2_its_own():
  c = voc.get_config('183,method=unimatch_v2')
  assert (c.optim.name, c.optim.rate, c.data.crop, c.train.unlabelled_batch) == (
    'sgd', 0.001, 321, 8)
  c = cityscapes.get_config('186,method=fixmatch_ema')
  assert (c.optim.rate, c.data.crop, c.method.threshold) == (0.005, 801, 0.95)
  for method in ('unimatch_v2', 'fixmatch_ema', 'sup_only', 'gta'):
    c = voc.get_config(f'183,method={method},model=dinov2_s')
    assert (c.optim.name, c.optim.rate, c.optim.decoder_multiplier, c.optim.weight_decay) == (
      'adamw', 5e-6, 40, 0.01)
    assert (c.data.crop, c.train.unlabelled_batch, c.train.epochs) == (518, 16, 60)
    c = cityscapes.get_config(f'186,method={method},model=dinov2_l')
    assert (c.optim.decoder_multiplier, c.data.crop, c.model.auxiliary) == (40, 798, False)
    assert (c.train.labelled_batch, c.train.epochs, c.loss.ohem_min_kept) == (8, 180, 800_000)


@pytest.mark.parametrize('config', [voc, cityscapes])
@pytest.mark.parametrize('method', sorted(METHODS))
def test_dinov2_leaves_a_method_its_own_options(config, method):
  ours, theirs = (config.get_config(f'183,method={method}{model}')
                  for model in ('', ',model=dinov2_b'))
  assert ours.method == theirs.method
  if ours.loss.ohem_threshold is None:  # by config.py itself, or because the method has none
    assert config is voc or theirs.loss.ohem_threshold is None


def test_published_code_has_the_options_of_its_data_set():
  assert cityscapes.get_config('186,method=u2pl_released').method.contrast_weight == 0.125
  assert voc.get_config('183,method=u2pl_released').method.contrast_weight == 0.25
  for module in (voc, cityscapes):  # U2PL's code draws its list once; the paper says nothing.
    assert [module.get_config(f'method={name}').data.label_sampling
            for name in ('u2pl', 'u2pl_released')] == ['reshuffled', 'once']
  for config, threshold in ((voc, 0.7), (cityscapes, 0.0)):
    method = config.get_config('183,method=ael_released').method
    assert (method.threshold, method.not_pasted) == (threshold, (0, 1, 2, 8, 10))


@pytest.mark.parametrize('model', ['', ',model=dinov2_b'])
def test_methods_are_scored_on_crops_of_one_side(model):
  configs = [voc.get_config(f'183,method={method}{model}') for method in METHODS]
  assert len({protocol.crop for c in configs for protocol in make_protocols(
    c.evaluate.protocols, crop=c.data.crop) if protocol.crop}) == 1


def test_the_rows_of_torchsemiseg_have_one_network():
  models = {str(voc.get_config(f'183,method={method}').model) for method in (
    'cps', 'mean_teacher_consistency', 'cct_torchsemiseg', 'gct_torchsemiseg')}
  assert len(models) == 1


@pytest.mark.parametrize('config', [voc, cityscapes])
def test_dinov2_configs_are_whole(config):
  """Network, weights, rates and crops fit each other; the data are not read."""
  for size in 'sbl':
    c = config.get_config(f'183,method=unimatch_v2,model=dinov2_{size}')
    weights.check(c.model.weights, c.model)
    tools = setup.make_tools(c, num_classes=21, epoch_steps=10)
    assert tools.network.patch == 14 and tools.crop % 14 == 0
    assert not setup.make_method_of(c).check(tools)
  with pytest.raises(ValueError, match='model=resnet18 is unknown; use one of: .*dinov2_b'):
    config.get_config('183,model=resnet18')
