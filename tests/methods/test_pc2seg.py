"""The PC2Seg reconstruction against its oracle, and its invariants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.registry import make_method, table
from gta_jax.ops.network import Logits
from gta_jax.ops.photometric import strong_view
from tests import tiny
from tests.methods import kit
from tests.methods.embedding_network import conv_network
from tests.oracles import pc2seg as oracle

CHANNELS = 3
SMALL = {'channels': CHANNELS, 'anchors': 6, 'candidates': 64, 'negatives': 4}


def make(**options):
  return make_method('pc2seg', **{**SMALL, **options})


def plain(state):
  return jax.tree.leaves(state.replace(key=None))


def make_draws(method, tools):
  """(state, unlabelled) -> what the step draws, as the oracle takes it."""
  @kit.at_once
  def draw(key, variables, image, valid):
    key_view, key_draws, _ = jax.random.split(key, 3)
    weak = jnp.where(valid[..., None], tools.network.normalize(image), 0.0)
    logits, _ = tools.network.apply(variables, weak)
    probabilities = jax.nn.softmax(logits.main).reshape(valid.size, -1)
    return (strong_view(key_view, weak, tools.network),
            method.draw(key_draws, probabilities, valid.reshape(-1), len(valid)))

  def draws(state, unlabelled):
    strong, (anchors, candidates, chosen, drawn) = draw(
      state.step_key(), state.networks['model'], unlabelled['image'], unlabelled['valid'])
    assert drawn.all()
    return {'strong': strong, 'anchors': anchors, 'negatives': candidates[chosen]}

  return draws


@pytest.mark.parametrize('options', [
  {}, pytest.param({
    'normalised': True, 'key_gradient': False, 'batch_norm': 'joint',
    'negative_rule': 'other_classes+other_images'}, marks=pytest.mark.slow)])
def test_agrees_with_the_oracle(options):
  expected, labelled, unlabelled, _ = oracle.make_problem(3, width=CHANNELS)
  hyper = {'rate': 0.05, 'total_steps': 10, 'weight_decay': 0.01, 'decoder_multiplier': 3.0,
           'contrast_weight': 0.7, 'temperature': 0.4,
           **{name: options[name] for name in ('normalised', 'key_gradient') if name in options}}
  method = make(contrast_weight=0.7, temperature=0.4, **options)
  tools = tiny.make_tools(
    tiny.linear_network(heads={'representation': CHANNELS}), rate=0.05, total_steps=10,
    weight_decay=0.01, multiplier=3.0)
  params = jax.tree.map(jnp.float32, expected['networks']['model'])
  variables = {'params': params, 'batch_stats': {key: {} for key in params}}
  state = tiny.first_state(method, tools, variables)
  step, draws = jax.jit(method.step(tools)), make_draws(method, tools)
  for k in range(3):
    expected, losses = oracle.step(
      expected, labelled[k], unlabelled[k], **draws(state, unlabelled[k]), hyper=hyper)
    state, metrics = step(state, kit.batches(labelled[k], unlabelled[k]))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6),
                 state.networks['model']['params'], expected['networks']['model'])
    np.testing.assert_allclose(metrics['model_labelled_loss'], losses['labelled'], rtol=1e-5)
    np.testing.assert_allclose(metrics['model_consistency_loss'], losses['consistency'], rtol=1e-4)
    np.testing.assert_allclose(metrics['model_contrast_loss'], 0.7 * losses['contrast'], rtol=1e-5)
    assert losses['contrast'] > 0 and losses['consistency'] > 0


@pytest.mark.parametrize('rule', [
  'uniform', 'other_images', 'other_classes', 'other_classes+other_images'])
def test_negatives_are_drawn_as_the_rule_says(rule):
  """10^4 draws of a first negative, by chi-square with 7 degrees of freedom at most, p = 0.001."""
  rng = np.random.default_rng(0)
  probabilities = rng.dirichlet([0.5] * 3, 8).astype(np.float32)
  probabilities[:2] = np.eye(3)[0]  # two pixels that are surely of one class
  valid, images = np.arange(8) != 5, np.arange(8) // 4
  method = make(anchors=2000, candidates=8, negatives=8, negative_rule=rule)
  draw = jax.jit(method.draw, static_argnums=3)
  found = np.zeros((8, 8))
  for seed in range(5):
    anchors, candidates, chosen, drawn = (
      np.asarray(x) for x in draw(jax.random.key(seed), probabilities, valid, 2))
    np.add.at(found, (anchors, candidates[chosen[:, 0]]), 1)
    weights = np.exp(oracle.log_weights(probabilities, anchors, images, valid, rule))
    # Drawn is what has a weight, all of it, once.
    assert (drawn.sum(1) == (weights > 1e-7).sum(1)).all()
    assert (weights[np.arange(2000)[:, None], candidates[chosen]][drawn] > 0).all()
  assert found[5].sum() == 0  # not valid
  for anchor in np.flatnonzero(valid):
    weights = np.exp(oracle.log_weights(probabilities, np.array([anchor]), images, valid, rule))[0]
    expected = found[anchor].sum() * weights / weights.sum()
    there = expected > 0
    assert (found[anchor][~there] == 0).all()
    assert (((found[anchor] - expected)[there]) ** 2 / expected[there]).sum() < 24.3


def seen(embedding, logits=None):
  """A view of 2 images of 2x2 pixels."""
  logits = jnp.zeros((2, 2, 2, 3)) if logits is None else logits
  return Logits(logits), embedding


@pytest.mark.slow
def test_equal_embeddings_cost_log_n_plus_one_at_any_scale():
  valid, method = jnp.ones((2, 2, 2), bool), make()
  ones = jnp.ones((2, 2, 2, 4))
  for scale in (1.0, 50.0):
    loss = method.contrast(jax.random.key(0), seen(scale * ones), seen(ones), valid)
    assert float(loss) == pytest.approx(np.log(5), rel=1e-5)
  assert method.consistency(seen(ones), seen(ones), valid) == 0


def test_embeddings_of_zero_have_a_finite_gradient():
  valid, zeros = jnp.ones((2, 2, 2), bool), jnp.zeros((2, 2, 2, 4))
  gradient = jax.jit(jax.grad(
    lambda x: make().contrast(jax.random.key(0), seen(x), seen(x), valid)))(zeros)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize('normalised', [False, True])
def test_the_weak_view_gets_no_gradient_of_the_consistency(normalised):
  logits = jax.random.normal(jax.random.key(0), (2, 2, 2, 2, 3))
  valid = jnp.ones((2, 4, 4), bool)

  def loss(logits):
    return make(normalised=normalised).consistency(
      *(seen(jnp.zeros((2, 2, 2, 4)), x) for x in logits), valid)

  weak, strong = jax.jit(jax.grad(loss))(logits)
  assert not weak.any() and strong.any()


def test_the_weak_view_learns_from_the_contrast_only_where_asked():
  embeddings = jax.random.normal(jax.random.key(0), (2, 2, 2, 2, 4))
  valid = jnp.ones((2, 2, 2), bool)
  for key_gradient in (True, False):
    method = make(key_gradient=key_gradient)
    weak, strong = jax.jit(jax.grad(
      lambda x, method=method: method.contrast(jax.random.key(0), seen(x[0]), seen(x[1]), valid)
    ))(embeddings)
    assert bool(weak.any()) == key_gradient and strong.any()


@functools.cache
def convolutional():
  method, tools = make(), tiny.make_tools(conv_network(CHANNELS))
  return jax.jit(method.step(tools)), tiny.first_state(method, tools)


def test_batches_without_a_valid_pixel_leave_everything_finite():
  step, state = convolutional()
  labelled, unlabelled = tiny.make_batches(9)
  after, metrics = step(state, kit.batches(
    {**labelled, 'label': np.full_like(labelled['label'], 255)},
    {**unlabelled, 'valid': np.zeros_like(unlabelled['valid'])}))
  assert all(np.isfinite(leaf).all() for leaf in plain(after))
  for name in ('labelled', 'consistency', 'contrast'):
    assert metrics[f'model_{name}_loss'] == 0


def test_what_does_not_fit_is_refused_and_what_it_is_is_said():
  tools = tiny.make_tools(conv_network(CHANNELS))
  assert 'no official code exists' in make().check(tools)[0]
  assert 'no official code exists' in table()
  with pytest.raises(ValueError, match='per_device_batch=2 cuts the batch.*model.remat'):
    make().check(tools._replace(accumulation=Accumulation(per_device=2)))
  with pytest.raises(ValueError, match='finds no other image in a batch of 1; use'):
    make(negative_rule='other_images').check(tools._replace(unlabelled_batch=1))
  with pytest.raises(ValueError, match='negatives=65 are drawn from candidates=64'):
    make(negatives=65)
