"""CorrMatch's step: its oracle, its invariants, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cityscapes, voc
from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.objectives import labelled_term
from gta_jax.methods.registry import make_method
from gta_jax.models.segmenter import make_segmenter
from gta_jax.ops import correlation
from gta_jax.ops.channel_dropout import channel_masks
from gta_jax.ops.joining import separate
from gta_jax.ops.mixing import unimatch_boxes
from gta_jax.ops.photometric import strong_view
from tests import tiny
from tests.methods import kit
from tests.oracles import corrmatch as oracle

RATE = 0.02
QUIET = {'jitter': 0.0, 'greyscale': 0.0, 'blur': 0.0}
HEADS = ('projection', 'correlation_query', 'correlation_key')


def linear_network():
  """A linear model whose correlation head is the oracle's three layers."""
  plain = tiny.linear_network(heads={HEADS[0]: 4, **dict.fromkeys(HEADS[1:], tiny.CLASSES)})

  def head(variables, name, stages, **options):
    assert name == 'correlation'
    projected, _ = plain.head(variables, HEADS[0], stages[-1], **options)
    query, key = (plain.head(variables, layer, projected)[0] for layer in HEADS[1:])
    return (query, key), variables['batch_stats']

  return dataclasses.replace(plain, head=head)


def deeplab(**options):
  method = make_method('corrmatch')
  return make_segmenter(num_classes=tiny.CLASSES, depth=10, width=0.125, aspp_rates=(1, 2, 3),
                      heads=method.heads, **options)


@functools.cache
def compiled(kind='linear', **options):
  """(first state, jitted step); without colours unless asked."""
  network = linear_network() if kind == 'linear' else deeplab(dtype=kind, output_stride=8)
  method = make_method('corrmatch', **{**QUIET, 'threshold_init': 0.5, 'regions': 8, **options})
  tools = tiny.make_tools(network, rate=RATE, size=(33, 33) if kind != 'linear' else tiny.SIZE)
  assert method.check(tools) == ()
  stage, = method.stages(tools)
  return tiny.first_state(method, tools), jax.jit(stage.step)


def take(state, step, seed=0, size=tiny.SIZE, **changes):
  labelled, unlabelled = tiny.make_batches(seed, size=size)
  return step(state, {'labelled': labelled, 'unlabelled': {**unlabelled, **changes}})


def make_randomness(network, method, counts):
  """(state, unlabelled) -> what the step draws, as the oracle wants it."""
  @kit.at_once
  def draw(key, image, valid):
    key_see, key_loss = jax.random.split(key)
    key_colours, key_box = jax.random.split(key_see)
    _, key_masks, _, key_rows = jax.random.split(key_loss, 4)
    images = jnp.where(valid[..., None], image / np.float32(255), 0)
    masks, = channel_masks(key_masks, sum(counts), (4,))
    return {'strong': strong_view(key_colours, images, network),
            'boxes': unimatch_boxes(
              key_box, len(valid), valid.shape[1:], probability=method.box_probability),
            'feature_masks': separate(masks, *counts)[1],
            'rows': jax.random.randint(key_rows, (method.regions,), 0, valid[0].size - 1)}

  def randomness(state, unlabelled):
    drawn = draw(state.step_key(), unlabelled['image'], unlabelled['valid'])
    return {**drawn, 'boxes': np.array([kit.corners(mask) for mask in drawn['boxes']])}

  return randomness


LOSSES = {'labelled': 2, 'strong': 8, 'kl': 8, 'features': 8, 'strong_correlation': 16,
          'weak_correlation': 16}


# Two problems, as neither shows every rule: the first one spreads labels, the second one moves tau
# differently for each choice of padding.
@pytest.mark.parametrize('name, seed, options, hyper', [
  ('corrmatch', 1, {'threshold_init': 0.4, 'regions': 24, 'box_probability': 1.0}, {}),
  pytest.param(
    'corrmatch_released', 4, {'threshold_init': 0.6, 'regions': 12, 'backbone_learns': False},
    {'unmixed_kl': True, 'mixed_threshold_pads': True, 'padding_counts': True,
     'backbone_learns': False}, marks=pytest.mark.slow)])
def test_three_steps_agree_with_numpy(name, seed, options, hyper):
  with jax.enable_x64(True):
    _three_steps(name, seed, options, {**hyper, 'rate': RATE, 'total_steps': 10})


def _three_steps(name, seed, options, hyper):
  expected, labelled, unlabelled, _ = oracle.make_problem(
    seed, batch=4, size=(9, 8), hidden=4, threshold=options['threshold_init'])
  network = linear_network()
  tools = tiny.make_tools(network, rate=RATE, total_steps=10)
  method = make_method(name, **options)
  params = jax.tree.map(jnp.asarray, expected['networks']['model'])
  variables = {'params': params, 'batch_stats': {key: {} for key in params}}
  state = tiny.first_state(method, tools, variables)
  step = jax.jit(method.stages(tools)[0].step)
  randomness = make_randomness(network, method, (4, 4))
  pasted, spread = 0, 0
  for batch_l, batch_u in zip(labelled, unlabelled, strict=True):
    drawn = randomness(state, batch_u)
    pasted += drawn['boxes'].any(-1).sum()
    expected, losses = oracle.step(expected, batch_l, batch_u, **drawn, hyper=hyper)
    state, metrics = step(state, {'labelled': batch_l, 'unlabelled': batch_u})
    for loss, weight in LOSSES.items():
      np.testing.assert_allclose(weight * metrics[f'model_{loss}_loss'], losses[loss], rtol=1e-5)
    np.testing.assert_allclose(
      state.memory['threshold'], expected['memory']['threshold'], rtol=1e-6)
    kit.assert_close(state.networks['model']['params'], expected['networks']['model'])
    spread += metrics['region_share']
  assert pasted and spread > 0  # the problem shows boxes and regions


def test_rows_sum_to_one_and_padding_neither_gives_nor_gets():
  """Invariant (a)."""
  rng = np.random.default_rng(0)
  query, key, logits = (jnp.array(rng.normal(size=(2, 3, 4, 5)), jnp.float32) for _ in range(3))
  counted = np.ones((2, 3, 4), bool)
  counted[0, :, -1] = False
  counted[1] = False  # an image of padding alone
  maps = correlation.correlation_maps(query, key, counted)
  np.testing.assert_allclose(maps.sum(-1), np.ones((2, 12)), rtol=1e-6)
  assert not maps[0][:, ~counted[0].ravel()].any()
  spread = correlation.correlation_logits(maps, logits, counted)
  changed = jnp.where(counted[..., None], logits, 9.0)
  np.testing.assert_array_equal(spread, correlation.correlation_logits(maps, changed, counted))
  assert not spread[1].any() and spread[0].any()
  np.testing.assert_allclose(  # linear in the logits
    correlation.correlation_logits(maps, 3 * logits, counted), 3 * spread, rtol=1e-6)


def test_no_regions_at_all_are_allowed():
  method = make_method('corrmatch', **{**QUIET, 'regions': 0})
  tools = tiny.make_tools(linear_network(), rate=RATE)
  labelled, unlabelled = tiny.make_batches(0)
  (stage,), state = method.stages(tools), tiny.first_state(method, tools)
  after, metrics = jax.eval_shape(
    stage.step, state, {'labelled': labelled, 'unlabelled': unlabelled})
  assert jax.tree.structure(after) == jax.tree.structure(state)
  labels, confident = np.ones((4, 4), int), np.eye(4, dtype=bool)
  found, kept = spread(labels, confident, np.zeros((0, 4, 4)), confident, 0.5)
  np.testing.assert_array_equal(found, labels)
  np.testing.assert_array_equal(kept, confident)


def gradient_of(options, losses):
  """Gradient by top-level key of the sum of some losses, of w and s."""
  method = make_method('corrmatch', **{**QUIET, 'threshold_init': 0.4, **options})
  tools = tiny.make_tools(linear_network(), rate=RATE)
  state = tiny.first_state(method, tools)
  labelled, unlabelled = tiny.make_batches(0)
  variables = state.networks['model']
  term = labelled_term(tools, labelled)
  seen = method.see(tools, variables, unlabelled, jax.random.key(0))
  loss = method.make_loss(tools, term, jnp.float32(0.4), unlabelled)

  def total(params):
    found = loss({**variables, 'params': params}, ((term.images, term.targets), seen),
                 jax.random.key(1))
    return sum(found.losses[name] for name in losses)

  gradient = jax.jit(jax.grad(total))(variables['params'])
  return {key for key, layer in gradient.items() if np.abs(layer['kernel']).max() > 0}


@pytest.mark.slow
@pytest.mark.parametrize('learns', [True, False])
def test_correlation_losses_reach_no_decoder(learns):
  """Invariant (b)."""
  moved = gradient_of({'backbone_learns': learns}, ['strong_correlation', 'weak_correlation'])
  assert moved == set(HEADS) | ({'backbone'} if learns else set())


def spread(labels, confident, regions, blocked, threshold):
  """spread_labels on one image of [H,W] arrays whose maps are the regions themselves."""
  found, kept = correlation.spread_labels(
    jnp.array(labels)[None], jnp.array(confident)[None], jnp.array(regions, jnp.float32)[None],
    counted=jnp.ones((1, 4, 4), bool), blocked=jnp.array(blocked)[None],
    threshold=jnp.float32(threshold), num_classes=3)
  return found[0], kept[0]


def test_later_regions_see_what_earlier_ones_relabelled():
  """The oracle's hand-made case, on a 4x4 image."""
  labels = np.array([1, 1, 1, 2] + [0] * 12)
  confident, blocked, regions = np.zeros(16, bool), np.arange(16) >= 14, np.zeros((3, 16), bool)
  confident[:6] = True
  regions[0, :4] = True  # votes 3 : 1, all confident: pixel 3 becomes 1
  regions[1, [3, 6, 15]] = True  # 15 is blocked; half are confident, all say 1 by now
  regions[2, [4, 7, 8]] = True  # a third is confident
  square = [x.reshape(*x.shape[:-1], 4, 4) for x in (labels, confident, regions, blocked)]
  found, kept = spread(*square, 0.5)
  assert found.ravel().tolist() == [1, 1, 1, 1, 0, 0, 1] + [0] * 9
  assert kept.ravel().nonzero()[0].tolist() == list(range(7))
  found, kept = spread(*square, 0.75)  # a share of 0.75 is not above 0.75
  np.testing.assert_array_equal(found, square[0])
  np.testing.assert_array_equal(kept, square[1])


@pytest.mark.slow
def test_regions_touch_no_blocked_pixel_and_keep_all_confident_ones():
  """Invariants (c) and (e)."""
  rng = np.random.default_rng(1)
  changed = 0
  for _ in range(20):
    labels = rng.integers(0, 3, (4, 4)) * (rng.random((4, 4)) > 0.7)
    confident, blocked = rng.random((2, 4, 4)) > 0.3
    found, kept = spread(labels, confident, rng.random((6, 4, 4)), ~blocked, 0.5)
    np.testing.assert_array_equal(found[~blocked], labels[~blocked])
    np.testing.assert_array_equal(kept[~blocked], confident[~blocked])
    assert kept[confident].all()
    changed += (found != labels).sum()
  assert changed


def test_a_flat_map_is_no_region():
  counted = np.ones((2, 4, 4), bool)
  counted[1] = False
  assert not correlation.region(jnp.ones((2, 2, 2)), counted).any()
  corner = jnp.zeros((2, 2, 2)).at[:, 0, 0].set(1.0)
  found = np.asarray(correlation.region(corner, counted))
  assert found[0].sum() == 3 and not found[1].any()  # (1, 2/3) x (1, 2/3) above 1/2: not 4/9


@pytest.mark.slow
def test_threshold_follows_the_surest_pixel_of_each_class():
  """Invariant (d): between 1/K and 1, by 0.001 at most."""
  labels = jnp.array([[[0, 0, 1, 1]]])
  confidence, valid = jnp.array([[[0.9, 0.6, 0.7, 1.0]]]), jnp.array([[[True, True, True, False]]])
  move = functools.partial(correlation.moved_threshold, num_classes=3)
  found = move(jnp.float32(0.85), labels, confidence, valid, decay=0.5)
  assert found == pytest.approx(0.825)
  assert move(jnp.float32(0.85), labels, confidence, valid & False, decay=0.5) == np.float32(0.85)
  state, step = compiled()
  for seed in range(2):
    before = float(state.memory['threshold'])
    state, metrics = take(state, step, seed)
    after = float(state.memory['threshold'])
    assert 0 < abs(after - before) <= 0.001 and 1 / 3 <= after <= 1
    assert metrics['threshold'] == after


@pytest.mark.slow
def test_padding_has_no_influence():
  state, step = compiled(jitter=0.8, greyscale=0.2, blur=0.5)
  _, unlabelled = tiny.make_batches(0)
  image = np.where(unlabelled['valid'][..., None], unlabelled['image'], 7)
  assert not np.array_equal(image, unlabelled['image'])
  (one, of_one), (other, of_other) = take(state, step), take(state, step, image=image)
  kit.assert_close((one.networks, of_one), (other.networks, of_other), rtol=0, atol=0)
  assert of_one['kept_share'] > 0


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_whole_network_takes_finite_steps(dtype):
  """DeepLabV3+ with the head; all kept, then nothing but padding; the state keeps its shape."""
  state, step = compiled(dtype, threshold_init=0.3)
  size = (33, 33)
  for valid in (np.ones((4, *size), bool), np.zeros((4, *size), bool)):
    after, metrics = take(state, step, size=size, valid=valid)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert ([(x.shape, x.dtype) for x in jax.tree.leaves(after)]
            == [(x.shape, x.dtype) for x in jax.tree.leaves(state)])
    for leaf in jax.tree.leaves((after.networks, after.optimizers, after.memory, metrics)):
      assert np.isfinite(np.asarray(leaf, np.float32)).all()
    assert (metrics['model_strong_loss'] > 0) == valid.any()
  assert after.memory['threshold'] == state.memory['threshold']
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), *(
    s.networks['model']['batch_stats']['correlation'] for s in (after, state)))
  assert all(x > 0 for x in jax.tree.leaves(moved))


def test_cut_batches_are_refused():
  method = make_method('corrmatch')
  tools = tiny.make_tools(linear_network(), accumulation=Accumulation(2))
  with pytest.raises(ValueError, match='per_device_batch=2 .* use train.per_device_batch=0'):
    method.check(tools)
  method.check(tools._replace(accumulation=Accumulation(4)))
  assert method.cost == 10


def test_configs_carry_the_published_fields():
  c = voc.get_config('183,method=corrmatch')
  assert (c.optim.rate, c.data.crop, c.train.labelled_batch, c.model.multi_grid) == (
    0.001, 321, 8, ())
  assert c.method.threshold_init == 0.85
  c = cityscapes.get_config('186,method=corrmatch')
  assert (c.method.threshold_init, c.method.threshold_decay) == (0, 1)  # stays at 0


def test_a_warm_up_comes_first_and_is_said_where_it_is_all():
  tools = tiny.make_tools(linear_network(), total_steps=20, epoch_steps=5)
  stages = make_method('corrmatch', warmup_epochs=2.0).stages(tools)
  assert [(stage.name, stage.steps) for stage in stages] == [('warmup', 10), ('main', 10)]
  note, = make_method('corrmatch', warmup_epochs=4.0).check(tools)
  assert 'nothing learns from unlabelled images' in note
