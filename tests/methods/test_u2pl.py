"""U2PL against its oracle, its invariants, and its queues through a resume."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cityscapes, voc
from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.mean_teacher import MeanTeacher
from gta_jax.methods.registry import make_method
from gta_jax.ops.contrastive import draw_below
from gta_jax.ops.joining import join
from gta_jax.ops.mixing import box_masks
from gta_jax.training.checkpoint import Checkpoints
from tests import tiny
from tests.methods import kit
from tests.methods.embedding_network import conv_network
from tests.oracles import linear_model as lm
from tests.oracles import u2pl as oracle
from tests.oracles.mean_teacher_consistency import ramped
from tests.oracles.test_u2pl import problem

CHANNELS, ANCHORS, NEGATIVES = 6, 3, 4
SMALL = {'channels': CHANNELS, 'anchors': ANCHORS, 'negatives': NEGATIVES, 'low_rank': 1,
         'high_rank': 3, 'queue_size': 8, 'first_queue_size': 12, 'keys_per_step': 64,
         'warmup_epochs': 0.0}


def make(**options):
  return make_method('u2pl', **{**SMALL, **options})


def step_of(method, tools, stage='main'):
  stages = {stage.name: stage.step for stage in method.stages(tools)}
  return jax.jit(stages[stage])


def plain(state):
  return jax.tree.leaves(state.replace(key=None))


@functools.cache
def drawing(size):
  """(key, step) -> masks of boxes [B,H,W], and the keys of anchors and of negatives."""
  @jax.jit
  def draw(key, step):
    key = jax.random.split(jax.random.fold_in(key, step), 3)[0]
    key_mix, key_draws, _ = jax.random.split(key, 3)
    masks = box_masks(jax.random.split(key_mix)[0], size[0], size[1:])
    return masks, jax.random.split(key_draws, 3)

  return draw


@functools.cache
def below(shape):
  """(key, n) -> numbers below n for each class, [3,*shape]."""
  return kit.at_once(lambda key, n: draw_below(key, jnp.full(3, n), shape))


def draws_of(key, step, size, mixed=True):
  """What a step draws, as the oracle takes it."""
  inside, (_, key_anchors, key_keys) = drawing(size)(key, step)

  def draw(key, shape):
    return lambda c, n: below(shape)(key, n)[c]

  return {'inside': np.asarray(inside) & mixed, 'draw_anchors': draw(key_anchors, (ANCHORS,)),
          'draw_keys': draw(key_keys, (ANCHORS, NEGATIVES))}


@pytest.mark.parametrize('rule, handover', [
  ('paper', 0), pytest.param('code', 0, marks=pytest.mark.slow),
  pytest.param('paper', 3, marks=pytest.mark.slow)])
def test_agrees_with_the_oracle(rule, handover):
  expected, labelled, unlabelled, _ = problem(3)
  expected['networks']['teacher'] = expected['networks']['student']
  hyper = lm.tiny_hyper(
    alpha=20, confidence=0.3, low_rank=1, high_rank=3, temperature=0.5, queue_sizes=[12, 8, 8],
    contrast_weight=0.7, ema_decay=ramped(0.6), progress=lambda step: step / 10, negatives=rule,
    handover_steps=handover)
  labels, pixels = labelled[0]['label'], np.arange(2 * labelled[0]['label'].size)
  hyper['order'] = np.asarray(join(*pixels.reshape(2, *labels.shape))).reshape(-1)
  method = make(
    contrast_weight=0.7, mixing_probability=1.0, teacher_decay=0.6, warmup='all',
    handover_epochs=float(handover), negative_rule={'paper': 'paper', 'code': 'released'}[rule])
  tools = tiny.make_tools(
    tiny.linear_network(heads={'representation': CHANNELS}), rate=0.05, total_steps=10,
    weight_decay=0.01, multiplier=3.0)
  params = jax.tree.map(jnp.float32, expected['networks']['student'])
  variables = {'params': params, 'batch_stats': {key: {} for key in params}}
  state = tiny.first_state(method, tools, variables)
  step = step_of(method, tools, 'handover' if handover else 'main')
  contrasts = []
  for k in range(3):
    draws = draws_of(state.key, k, unlabelled[k]['valid'].shape)
    expected, losses = oracle.step(expected, labelled[k], unlabelled[k], **draws, hyper=hyper)
    state, metrics = step(state, kit.batches(labelled[k], unlabelled[k]))
    for name, params in expected['networks'].items():
      jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
                   state.networks[name]['params'], params)
    np.testing.assert_allclose(metrics['student_labelled_loss'], losses['labelled'], rtol=1e-5)
    np.testing.assert_allclose(metrics['student_pseudo_loss'], losses['unlabelled'], rtol=1e-5)
    np.testing.assert_allclose(
      metrics['student_contrast_loss'], 0.7 * losses['contrast'], rtol=1e-5)
    assert float(metrics['kept_share']) * 40 == pytest.approx(losses['kept'])
    assert state.memory.held.tolist() == [len(queue) for queue in expected['queues']]
    contrasts.append(losses['contrast'])
  assert rule == 'code' or min(contrasts) > 0


@functools.cache
def convolutional(stage='main', **options):
  """(compiled step, first state) with batch statistics, dropout and resizing."""
  method = make(**{'warmup_epochs': float(stage == 'warmup'), 'handover_epochs': 0.0,
                   'warmup': 'all', 'keys_per_step': 3, **options})
  tools = tiny.make_tools(conv_network(CHANNELS))
  state = tiny.first_state(method, tools)
  return step_of(method, tools, stage), state


def assert_equal(one, other):
  for a, b in zip(plain(one), plain(other), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('stage', ['warmup', 'main'])
def test_the_state_keeps_its_tree_shapes_and_dtypes(stage):
  step, state = convolutional(stage)
  after, metrics = step(state, kit.batches(*tiny.make_batches(9)))
  assert jax.tree.structure(after) == jax.tree.structure(state)
  for new, old in zip(plain(after), plain(state), strict=True):
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
  assert all(np.isfinite(value).all() for value in metrics.values())
  assert int(after.step) == 1
  assert bool(after.memory.held.any()) == (stage == 'main')
  pointers = [leaf.unsafe_buffer_pointer() for leaf in plain(state)]
  assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize('kind', ['unlabelled', 'labelled', 'both'])
def test_batches_without_a_valid_pixel_leave_everything_finite(kind):
  step, state = convolutional()
  labelled, unlabelled = tiny.make_batches(9)
  if kind != 'unlabelled':
    labelled = {**labelled, 'label': np.full_like(labelled['label'], 255)}
  if kind != 'labelled':
    unlabelled = {**unlabelled, 'valid': np.zeros_like(unlabelled['valid'])}
  after, metrics = step(state, kit.batches(labelled, unlabelled))
  assert all(np.isfinite(leaf).all() for leaf in plain(after) + list(metrics.values()))
  if kind == 'both':
    assert not after.memory.held.any() and metrics['student_contrast_loss'] == 0
    assert metrics['student_pseudo_loss'] == 0 == metrics['kept_share']


def test_one_class_alone_is_contrasted_with_nothing():
  step, state = convolutional()
  labelled, unlabelled = tiny.make_batches(9)
  labelled = {**labelled, 'label': np.zeros_like(labelled['label'])}
  unlabelled = {**unlabelled, 'valid': np.zeros_like(unlabelled['valid'])}
  after, metrics = step(state, kit.batches(labelled, unlabelled))
  assert metrics['student_contrast_loss'] == 0 == metrics['contrasted_classes']
  assert all(np.isfinite(leaf).all() for leaf in plain(after))


def test_a_run_that_was_stopped_goes_on_with_its_queues(tmp_path):
  step, state = convolutional()
  alone = state
  for k in range(4):
    alone, _ = step(alone, kit.batches(*tiny.make_batches(k)))
    if k == 1:
      with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, alone)
  with Checkpoints(tmp_path) as checkpoints:
    resumed = checkpoints.restore(2, jax.tree.map(jnp.zeros_like, state))
  assert resumed.memory.held.any()
  for k in (2, 3):
    resumed, _ = step(resumed, kit.batches(*tiny.make_batches(k)))
  assert_equal(alone, resumed)
  # Queues that were lost would show.
  lost, _ = step(alone.replace(memory=state.memory), kit.batches(*tiny.make_batches(4)))
  kept, _ = step(alone, kit.batches(*tiny.make_batches(4)))
  with pytest.raises(AssertionError):
    assert_equal(lost.replace(memory=()), kept.replace(memory=()))


def test_without_contrast_and_drops_it_is_the_mean_teacher():
  """But for the pixel that `>=` always drops, here the most uncertain, there the least confident
  (both where the network is zero everywhere, and all that are tied with it)."""
  labelled, unlabelled = tiny.make_batches(9)
  ours, state = convolutional(
    contrast_weight=0.0, drop_percent=0.0, mixing='none', ema_ramp=False)
  after, metrics = ours(state, kit.batches(labelled, unlabelled))
  kept = round(float(metrics['kept_share']) * 256)
  assert 200 < kept < 224
  theirs = MeanTeacher(
    mixing='none', drop_fraction=0.0, threshold_rule='percentile', confidence_pass='mixed',
    teacher_batch_norm='own', batch_norm='joint', warmup_epochs=0.0,
    unlabelled_weight=224 / kept)
  tools = tiny.make_tools(conv_network(CHANNELS))
  variables = state.networks['student']
  expected, of_theirs = step_of(theirs, tools)(
    tiny.first_state(theirs, tools, variables), kit.batches(labelled, unlabelled))
  assert metrics['kept_share'] == of_theirs['kept_share']
  for a, b in zip(jax.tree.leaves(after.networks), jax.tree.leaves(expected.networks), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def linear_tools(**options):
  return tiny.make_tools(tiny.linear_network(heads={'representation': CHANNELS}), **options)


@pytest.mark.slow
def test_contrast_moves_features_and_head_but_no_classifier_and_no_teacher():
  after = {}
  for weight in (0.1, 5.0):
    method, tools = make(contrast_weight=weight, handover_epochs=0.0, teacher_decay=1.0,
                         ema_ramp=False, warmup='all'), linear_tools()
    state = tiny.first_state(method, tools)
    after[weight], metrics = step_of(method, tools)(state, kit.batches(*tiny.make_batches(9)))
    assert metrics['student_contrast_loss'] > 0
    for new, old in zip(*(jax.tree.leaves(s.networks['teacher']) for s in (after[weight], state)),
                        strict=True):
      np.testing.assert_array_equal(new, old)
  one, other = (after[weight].networks['student']['params'] for weight in (0.1, 5.0))
  np.testing.assert_array_equal(one['classifier']['kernel'], other['classifier']['kernel'])
  for key in ('backbone', 'decoder', 'representation'):
    assert np.abs(one[key]['kernel'] - other[key]['kernel']).max() > 1e-5


@pytest.mark.slow
def test_cut_batches_give_the_step_of_the_whole_batch():
  found = []
  for accumulation in (Accumulation(), Accumulation(per_device=2)):
    method, tools = make(contrast_weight=3.0, handover_epochs=0.0), linear_tools(
      accumulation=accumulation)
    state, metrics = step_of(method, tools)(
      tiny.first_state(method, tools), kit.batches(*tiny.make_batches(9)))
    found.append([*plain(state), metrics['student_contrast_loss']])
  assert found[0][-1] > 0
  for whole, parts in zip(*found, strict=True):
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_the_dropped_share_falls_by_epochs():
  step, state = convolutional()
  dropped = {}
  for number in (0, 1, 19):
    _, metrics = step(state.replace(step=jnp.int32(number)), kit.batches(*tiny.make_batches(9)))
    dropped[number] = 1 - float(metrics['kept_share']) * 8 / 7
  for number, share in dropped.items():  # 20 epochs of one step
    assert share == pytest.approx(0.2 * (1 - number / 20), abs=0.06)
  tools = tiny.make_tools(conv_network(CHANNELS), epoch_steps=4)
  progress = [float(make().progress(tools, jnp.int32(k))) for k in (0, 3, 4, 19)]
  assert progress == pytest.approx([0, 0, 0.2, 0.8])


@pytest.mark.parametrize('options, tools, message', [
  ({'low_rank': 3, 'high_rank': 20}, {}, r'method.low_rank=3 leaves .* 3 classes.*such as 1'),
  ({}, {'batch': 4}, r'cuts 4 labelled and 6 unlabelled images into 2 and 3 parts'),
])
def test_what_does_not_fit_is_refused(options, tools, message):
  tools = linear_tools(**tools, accumulation=Accumulation(per_device=2))._replace(
    unlabelled_batch=6)
  with pytest.raises(ValueError, match=f'(?s){message}'):
    make(**options).check(tools)


def test_queues_follow_the_crop_and_their_size_is_said():
  tools = tiny.make_tools(tiny.linear_network())._replace(num_classes=21)
  method = make_method('u2pl')
  assert method.queue_sizes(tools._replace(crop=513)) == (50_000, *[30_000] * 20)
  assert method.queue_sizes(tools._replace(crop=321)) == (19_577, *[11_746] * 20)
  assert method.queue_sizes(tools) == (1024,) * 21
  assert make_method('u2pl', queue_size=7, first_queue_size=9).queue_sizes(tools)[:2] == (9, 7)
  assert 'take 666 MB' in method.check(tools._replace(crop=513))[-1]
  for config, split in ((voc, '183'), (cityscapes, '186')):
    c = config.get_config(f'{split},method=u2pl')
    assert (c.method.queue_size, c.method.first_queue_size) == (30_000, 50_000)


def test_bad_options_are_refused():
  with pytest.raises(ValueError, match='low_rank=5 is not below high_rank=5'):
    make(low_rank=5, high_rank=5)
  with pytest.raises(ValueError, match='batch_norm=.*use one of: joint'):
    make(batch_norm='own')
