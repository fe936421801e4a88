"""CPS against its oracle, its invariants, and what every method keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.methods.cps import Cps, CpsCutMix
from gta_jax.methods.objectives import unlabelled_images
from gta_jax.methods.registry import make_method
from gta_jax.ops.losses import cross_entropy
from gta_jax.ops.mixing import paste, xor_boxes
from gta_jax.ops.optim import poly_schedule
from gta_jax.ops.resizing import resize_bilinear
from tests import tiny
from tests.methods import kit
from tests.oracles import cps as oracle
from tests.oracles import cps_cutmix as oracle_cutmix
from tests.oracles import linear_model as lm

NAMES = {'first': 'student', 'second': 'assistant'}  # ours: the oracle's


def hyper(**options):
  return {'rate': lm.poly(0.05, 20), 'momentum': 0.9, 'weight_decay': 1e-4, **options}


def setup(method, seed=0, **tools):
  networks, labelled, unlabelled = lm.make_problem(seed, names=tuple(NAMES.values()))
  tools = tiny.make_tools(tiny.linear_network(), batch=2, size=(4, 5), **tools)
  state = kit.state_of(method, tools, {ours: networks[name] for ours, name in NAMES.items()})
  return networks, labelled, unlabelled, tools, state


def draw_masks(state, batch, size):
  """The boxes of the step that is about to be taken."""
  return np.asarray(xor_boxes(jax.random.split(state.step_key(), 3)[0], batch, size))


@pytest.mark.parametrize('name, options', [
  ('cps', {}), ('cps', {'labelled_void': 'learn'}), ('cps_cutmix', {}),
  ('cps_cutmix_released', {})])
def test_three_steps_agree_with_the_oracle(name, options):
  method = make_method(name, **options)
  networks, labelled, unlabelled, tools, state = setup(method)
  expected = lm.initial_state(networks, tuple(networks))
  of_oracle = hyper(cross_weight=method.cross_weight, cross_on=method.cross_on,
                    labelled_void=method.labelled_void)
  step = jax.jit(method.step(tools))
  for k in range(kit.STEPS):
    if method.mixing == 'none':
      expected, losses = oracle.step(expected, labelled[k], unlabelled[k], hyper=of_oracle)
    else:
      expected, losses = oracle_cutmix.step(
        expected, labelled[k], unlabelled[k], inside=draw_masks(state, 2, (4, 5)),
        hyper=of_oracle)
    state, metrics = step(state, kit.batches(labelled[k], unlabelled[k]))
    for ours, theirs in NAMES.items():
      kit.assert_close(state.networks[ours]['params'], expected['networks'][theirs])
      found = metrics[f'{ours}_cross_loss'] + metrics[f'{ours}_cross_labelled_loss']
      np.testing.assert_allclose(
        found, method.cross_weight * losses[theirs]['cross'], rtol=1e-5)
      np.testing.assert_allclose(
        metrics[f'{ours}_labelled_loss'], losses[theirs]['labelled'], rtol=1e-5)


def test_without_weight_each_network_takes_a_supervised_step():
  """Invariant 1."""
  method = Cps(cross_weight=0.0)
  networks, labelled, unlabelled, tools, state = setup(method)
  after, _ = jax.jit(method.step(tools))(state, kit.batches(labelled[0], unlabelled[0]))
  for ours, theirs in NAMES.items():
    start = lm.initial_state({'one': networks[theirs]}, ('one',))
    _, gradient = lm.supervised(networks[theirs], labelled[0])
    expected = lm.learn(start, {'one': gradient}, hyper())
    kit.assert_close(after.networks[ours]['params'], expected['networks']['one'])


def test_exchange_of_the_networks_exchanges_the_result():
  """Invariant 3; a network without dropout."""
  method, network = Cps(), tiny.conv_network(dropout=False)
  tools = tiny.make_tools(network)
  step = jax.jit(method.step(tools))
  state = tiny.first_state(method, tools)
  streams = kit.batches(*tiny.make_batches(2))

  def swapped(by_name):
    return {'first': by_name['second'], 'second': by_name['first']}

  one, metrics = step(state, streams)
  two, of_swapped = step(state.replace(networks=swapped(state.networks)), streams)
  kit.assert_close(one.networks, swapped(two.networks), rtol=1e-6)
  for loss in ('labelled', 'cross', 'cross_labelled'):
    for name, other in (('first', 'second'), ('second', 'first')):
      np.testing.assert_allclose(
        metrics[f'{name}_{loss}_loss'], of_swapped[f'{other}_{loss}_loss'], rtol=1e-6)


def test_equal_networks_stay_equal_and_drawn_ones_differ():
  """Invariant 4."""
  method, tools = Cps(), tiny.make_tools(tiny.conv_network(dropout=False))
  state = tiny.first_state(method, tools)
  assert kit.differs(*(state.networks[name]['params']['classifier'] for name in NAMES))
  equal = state.with_networks(second=state.networks['first'])
  after, metrics = jax.jit(method.step(tools))(equal, kit.batches(*tiny.make_batches(2)))
  kit.assert_close(after.networks['first'], after.networks['second'], rtol=1e-6)
  assert float(metrics['agreement']) == 1
  # It is that of the unlabelled images: of one colour here, on which linear networks are of one
  # opinion or of two, while on labelled ones it depends on the pixel.
  tools = tiny.make_tools(tiny.linear_network())
  labelled, unlabelled = tiny.make_batches(2)
  unlabelled = {**unlabelled, 'image': np.full_like(unlabelled['image'], 90),
                'valid': np.ones_like(unlabelled['valid'])}
  _, metrics = jax.jit(method.step(tools))(
    tiny.first_state(method, tools), kit.batches(labelled, unlabelled))
  assert float(metrics['agreement']) in (0, 1)


@pytest.mark.parametrize('whole', [False, True])
def test_an_image_outside_of_the_mask_has_no_influence(whole, monkeypatch):
  """Invariant 5: with the mask empty an image is its own, with a full one the next image."""
  monkeypatch.setattr('gta_jax.methods.cps.xor_boxes',
                      lambda key, batch, size: jnp.full((batch, *size), whole))
  plain = Cps(cross_weight=1.0, cross_on='unlabelled')
  mixed = CpsCutMix(cross_on='unlabelled')
  _, labelled, unlabelled, tools, state = setup(mixed)
  moved = {key: np.roll(x, -1, 0) for key, x in unlabelled[0].items()} if whole else unlabelled[0]
  one, _ = jax.jit(mixed.step(tools))(state, kit.batches(labelled[0], unlabelled[0]))
  two, _ = jax.jit(plain.step(tools))(state, kit.batches(labelled[0], moved))
  kit.assert_close(one.networks, two.networks, rtol=1e-6)


def test_labels_are_those_of_clean_images(monkeypatch):
  """In a network that sees neighbours the labels of a mixed image are others."""
  mask = jnp.broadcast_to(jnp.arange(8) % 2 == 0, (4, 8, 8))
  monkeypatch.setattr('gta_jax.methods.cps.xor_boxes', lambda key, batch, size: mask)
  tools = tiny.make_tools(tiny.conv_network(dropout=False))
  method = CpsCutMix(cross_on='unlabelled')
  state, (labelled, unlabelled) = tiny.first_state(method, tools), tiny.make_batches(2)
  _, metrics = jax.jit(method.step(tools))(state, kit.batches(labelled, unlabelled))

  def mixed(x):
    return paste(x, jnp.roll(x, -1, 0), mask)

  @jax.jit
  def expected(networks):
    images, valid = unlabelled_images(tools, unlabelled), jnp.asarray(unlabelled['valid'])
    of_second, of_first = (
      resize_bilinear(tools.network.apply(networks[name], x, train=True)[0].main, (8, 8))
      for name, x in (('second', images), ('first', mixed(images))))
    labels = jnp.where(mixed(valid), mixed(jnp.argmax(of_second, -1)), 255)
    return cross_entropy(of_first, labels)

  np.testing.assert_allclose(
    metrics['first_cross_loss'], expected(state.networks), rtol=1e-5)


def test_void_pixels_have_no_influence_unless_they_learn():
  for void, moves in (('ignore', False), ('learn', True)):
    method = Cps(labelled_void=void)
    _, labelled, unlabelled, tools, state = setup(method)
    image = np.where((labelled[0]['label'] == 255)[..., None], 7, labelled[0]['image'])
    step = jax.jit(method.step(tools))
    found = [step(state, kit.batches({**labelled[0], 'image': x}, unlabelled[0]))[0].networks
             for x in (labelled[0]['image'], image.astype(np.uint8))]
    assert kit.differs(*found) == moves


@pytest.mark.slow
def test_mixing_moves_the_running_statistics_once_more():
  after = {}
  for method in (Cps(), CpsCutMix()):
    tools = tiny.make_tools(tiny.conv_network(), rate=0.0)
    state = tiny.first_state(method, tools)
    same = np.full((4, 8, 8, 3), 200, np.uint8)  # every pass sees the same mean
    streams = kit.batches({'image': same, 'label': np.zeros((4, 8, 8), np.uint8)},
                          {'image': same, 'valid': np.ones((4, 8, 8), bool)})
    state, _ = jax.jit(method.step(tools))(state, streams)
    after[method.mixing] = np.abs(state.networks['first']['batch_stats']['backbone']['mean'])
  np.testing.assert_allclose(
    after['xor_boxes'] / after['none'], (1 - 0.9 ** 3) / (1 - 0.9 ** 2), rtol=1e-4)


def test_a_single_image_cannot_be_mixed():
  tools = tiny.make_tools(tiny.linear_network(), batch=1)
  with pytest.raises(ValueError, match='train.unlabelled_batch=1 leaves no other image'):
    CpsCutMix().check(tools)
  assert Cps().check(tools) == ()


def test_rates_are_poly():
  method, tools = Cps(), tiny.make_tools(tiny.linear_network())
  state = tiny.first_state(method, tools).replace(step=jnp.int32(7))
  _, metrics = jax.jit(method.step(tools))(state, kit.batches(*tiny.make_batches(2)))
  for name in NAMES:
    assert float(metrics[f'{name}_rate']) == pytest.approx(
      float(poly_schedule(0.05, total_steps=20)(7)))
