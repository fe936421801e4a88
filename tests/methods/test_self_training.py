"""ST's stages: agreement with the NumPy oracle, what strong views may change, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import folder
from gta_jax.methods import labelling
from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.registry import make_method
from gta_jax.ops.losses import SupervisedLoss
from tests import tiny
from tests.oracles import linear_model as lm
from tests.oracles import self_training as oracle

PLAIN = {'jitter': 0.0, 'hue': 0.0, 'greyscale': 0.0, 'blur': 0.0, 'cutout': 0.0}
STEPS = {'supervised': 3, 'all': 4}
RATE, DECAY = 0.05, 0.01


def make(network=None, *, options=PLAIN, batch=2, **tools):
  """Method, tools, stages by name of seven steps, and the first state."""
  method = make_method('st', supervised_share=0.4, **options)
  tools = tiny.make_tools(
    network or tiny.linear_network(), **{
      'rate': RATE, 'total_steps': 7, 'batch': batch, 'weight_decay': DECAY, 'multiplier': 3.0,
      **tools})
  return method, tools, {stage.name: stage for stage in method.stages(tools)}


def pseudo_batch(seed=0, batch=4):
  labelled, unlabelled = tiny.make_batches(seed, batch)
  return {**unlabelled, 'label': np.where(unlabelled['valid'], np.roll(labelled['label'], 1), 255)
          .astype(np.uint8)}


def assert_close(state, params):
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6),
    state.networks['student']['params'], params)


def variables_of(params):
  return {'params': jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params),
          'batch_stats': {key: {} for key in params}}


def test_both_stages_agree_with_the_oracle():
  networks, labelled, unlabelled = lm.make_problem(0, steps=7)
  params = networks['student']
  other = lm.make_problem(1, steps=7)[1]
  pseudo = [{**u, 'label': np.where(u['valid'], o['label'], 255).astype(np.uint8)}
            for u, o in zip(unlabelled, other, strict=True)]
  method, tools, stages = make()
  assert {name: stage.steps for name, stage in stages.items()} == STEPS
  state = tiny.first_state(method, tools, variables_of(params))
  first = 0
  for name, steps in STEPS.items():
    hyper = lm.tiny_hyper(rate=lm.poly(RATE, steps))
    theirs = lm.initial_state({'student': params}, ('student',))  # fresh in each stage
    state, step = stages[name].enter(state), jax.jit(stages[name].step)
    for k in range(first, first + steps):
      given = {'labelled': labelled[k]} | (
        {'pseudo_labelled': pseudo[k]} if name == 'all' else {})
      state, metrics = step(state, given)
      theirs, losses = oracle.step(theirs, *given.values(), hyper=hyper)
      assert_close(state, theirs['networks']['student'])
      total = sum(v for k, v in metrics.items() if k.endswith('_loss'))
      np.testing.assert_allclose(total, losses['total'], rtol=1e-5)
    first += steps
  assert int(state.step) == 7


def test_supervised_stage_is_the_supervised_method_to_the_bit():
  """Invariant 1: the student of sup_only's warm-up, dropout and batch statistics included."""
  st, tools, stages = make(tiny.conv_network(), options={}, total_steps=10)
  sup = make_method('sup_only', warmup_epochs=100.0)
  # The schedule of the stage's own steps, so that both have one.
  other = tools._replace(total_steps=4, make_optimizer=lambda **_: tools.make_optimizer(steps=4))
  ours, theirs = tiny.first_state(st, tools), tiny.first_state(sup, other)
  mine = jax.jit(stages['supervised'].step)
  yours = jax.jit(sup.stages(other)[0].step)
  for seed in range(3):
    labelled, _ = tiny.make_batches(seed)
    ours, theirs = (step(state, {'labelled': labelled})[0]
                    for step, state in ((mine, ours), (yours, theirs)))
  for a, b in zip(*(jax.tree.leaves(s.networks['student']) for s in (ours, theirs)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_every_stage_starts_with_the_first_variables_and_a_new_optimiser():
  method, tools, stages = make(tiny.conv_network())
  first = tiny.first_state(method, tools)
  state = first
  for seed in range(2):
    state, _ = jax.jit(stages['supervised'].step)(
      state, {'labelled': tiny.make_batches(seed)[0]})
  again = jax.jit(stages['all'].enter)(state)
  assert int(again.step) == 2
  for a, b in zip(*(jax.tree.leaves((s.networks, s.optimizers)) for s in (first, again)),
                  strict=True):
    np.testing.assert_array_equal(a, b)
  shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (first, again)]
  assert shapes[0] == shapes[1]


def test_pixels_without_a_label_have_no_influence():
  """Padding, void, and a batch without any pseudo-label: one mean over what is labelled."""
  method, tools, stages = make(batch=4)
  step, state = jax.jit(stages['all'].step), tiny.first_state(method, tools)
  labelled, pseudo = tiny.make_batches(0)[0], pseudo_batch(1)
  expected, _ = step(state, {'labelled': labelled, 'pseudo_labelled': pseudo})
  hidden = pseudo['image'].copy()
  hidden[~pseudo['valid']] = 77
  wrong = np.where(pseudo['valid'], pseudo['label'], 1).astype(np.uint8)
  found, _ = step(state, {
    'labelled': labelled, 'pseudo_labelled': {**pseudo, 'image': hidden, 'label': wrong}})
  jax.tree.map(np.testing.assert_array_equal, found.networks, expected.networks)
  nothing = {**pseudo, 'label': np.full_like(pseudo['label'], 255)}
  alone, metrics = step(state, {'labelled': labelled, 'pseudo_labelled': nothing})
  assert metrics['student_pseudo_loss'] == 0 == metrics['kept_share']
  supervised, _ = jax.jit(stages['supervised'].step)(state, {'labelled': labelled})
  # The stage's rate differs from the supervised one's; the momentum is the gradient.
  for a, b in zip(*(jax.tree.leaves(s.optimizers) for s in (alone, supervised)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  neither = {**labelled, 'label': np.full_like(labelled['label'], 255)}
  last, _ = step(state, {'labelled': neither, 'pseudo_labelled': nothing})
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last.networks))


@pytest.mark.slow
def test_strong_views_change_labels_to_255_alone_and_inside_their_boxes_alone():
  """Invariant 4; a labelled image is never one of them."""
  noise = {**PLAIN, 'cutout': 1.0}
  method, tools, stages = make(options=noise, batch=16)
  pseudo = pseudo_batch(batch=16)
  images, labels = method.strong_view(tools, pseudo, jax.random.key(0))
  clean = np.where(pseudo['valid'][..., None], pseudo['image'] / np.float32(255), 0)
  changed = (np.abs(images - clean) > 1e-6).any(-1)
  assert 0.02 < changed.mean() < 0.5
  assert (changed.sum(0) > 0).mean() > 0.7  # in other places for other images
  for image, label, box, before, mask in zip(
      images, labels, changed, clean, pseudo['label'], strict=True):
    rows, columns = np.nonzero(box.any(1))[0], np.nonzero(box.any(0))[0]
    if len(rows):
      place = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
      assert box.sum() == (place[2] - place[0]) * (place[3] - place[1])
      assert image.min() >= 0 and image[box].max() <= 1 and image[box].std() > 0.1
      expected = oracle.cutout(before, mask.astype(int), place, np.asarray(image))
      np.testing.assert_allclose(image, expected[0], atol=1e-6)
      np.testing.assert_array_equal(label, expected[1])
  always = dataclasses.replace(method, jitter=1.0, greyscale=1.0, blur=1.0)
  colours, same = always.strong_view(tools, pseudo, jax.random.key(0))
  np.testing.assert_array_equal(same, labels)
  assert not np.allclose(colours[~changed], images[~changed], atol=1e-2)
  assert not colours[~changed & ~pseudo['valid']].any()  # Padding stays blank.
  # The labelled batch's loss is that of the clean images.
  labelled, _ = tiny.make_batches(3, batch=16)
  state = tiny.first_state(method, tools)
  of = [jax.jit(make(options=options, batch=16)[2]['all'].step)(
    state, {'labelled': labelled, 'pseudo_labelled': pseudo})[1] for options in (noise, PLAIN)]
  kept = [metrics['kept_share'] * labels.size for metrics in of]
  known = (labelled['label'] != 255).sum()
  sums = [m['student_labelled_loss'] * (known + n) for m, n in zip(of, kept, strict=True)]
  np.testing.assert_allclose(*sums, rtol=1e-5)
  assert of[0]['kept_share'] < of[1]['kept_share']


def test_steps_are_divided_by_shares_and_every_stage_has_one():
  def divide(total, **shares):
    return list(labelling.divide(tiny.make_tools(None, total_steps=total), shares).values())

  assert divide(100, a=0.066, b=1) == [7, 93]
  assert divide(1000, a=0.2, b=0.3, c=1) == [200, 300, 500]
  assert divide(3, a=0.9, b=0.05, c=1) == [1, 1, 1] == divide(3, a=0.01, b=0.01, c=1)
  with pytest.raises(ValueError, match='makes 2 steps, fewer than the 3 stages a, b, c; raise'):
    divide(2, a=0.2, b=0.3, c=1)


@pytest.mark.parametrize('name', ['st', 'st_plus_plus', 'dmt'])
def test_what_does_not_fit_is_refused(name):
  method = make_method(name)
  tools = tiny.make_tools(tiny.linear_network())
  assert method.check(tools) == ()
  with pytest.raises(ValueError, match=r'ohem_threshold=0.7 keeps .*; set it to None'):
    method.check(tools._replace(loss=SupervisedLoss(ohem_threshold=0.7)))
  with pytest.raises(ValueError, match='into 1 and 3 parts, which .* use batches of one size'):
    method.check(tools._replace(
      accumulation=Accumulation(per_device=2), labelled_batch=2, unlabelled_batch=6))
  with pytest.raises(ValueError, match='per_device_batch=6 .* does not divide a batch of 8'):
    method.check(tools._replace(
      accumulation=Accumulation(per_device=6), labelled_batch=2, unlabelled_batch=6))
  with pytest.raises(ValueError, match='supervised_share=1.5 is out of range'):
    make_method(name, supervised_share=1.5)


@pytest.mark.parametrize('name', ['st', 'st_plus_plus', 'dmt'])
@pytest.mark.parametrize('data_set', ['voc', 'cityscapes'])
def test_configs_carry_the_published_numbers(name, data_set):
  module = pytest.importorskip(f'configs.{data_set}')
  config = module.get_config(f'186,method={name}' if data_set == 'cityscapes' else
                             f'183,method={name}')
  batch = config.train.labelled_batch + config.train.unlabelled_batch
  assert batch == {'dmt': 8}.get(name, 16) and config.loss.ohem_threshold is None
  rates = {('dmt', 'voc'): 0.001, ('st', 'voc'): 0.001, ('st_plus_plus', 'voc'): 0.001}
  assert config.optim.rate == rates.get((name, data_set), 0.004)


def test_a_run_from_random_weights_gives_the_labeller_more_steps():
  assert folder.get_config('46,method=st').method.supervised_share == 0.3
