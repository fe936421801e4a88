"""DMT: weights by the four cases, steps against the oracle, and who labels for whom."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.evaluation.windows import Prediction
from gta_jax.methods import labelling
from gta_jax.methods.contract import Host
from gta_jax.methods.dmt import NETWORKS, dynamic_weights
from gta_jax.methods.registry import make_method
from tests import tiny
from tests.arrays import random_dataset
from tests.methods.test_self_training import variables_of
from tests.oracles import dmt as oracle
from tests.oracles import linear_model as lm

RATE = 0.05


def make(*, batch=2, steps=3, **options):
  """Method, tools, stages by name of so many steps in each round, and the first state."""
  method = make_method('dmt', **{'rounds': 1, 'supervised_share': 0.01, **options})
  tools = tiny.make_tools(
    tiny.linear_network(), rate=RATE, total_steps=2 * method.rounds * steps + 2, batch=batch,
    weight_decay=0.01, multiplier=1.0)
  return method, tools, {stage.name: stage for stage in method.stages(tools)}


def problem(seed=0, steps=3):
  """The oracle's networks and batches; confidences in 255ths as training crops carry them."""
  networks, labelled, unlabelled = lm.make_problem(seed, names=NETWORKS, steps=steps)
  pseudo = []
  for batch in unlabelled:
    label, confidence = oracle.label_images(networks['student'], batch['image'], share=0.6, every=2)
    pseudo.append({**batch, 'label': label.astype(np.uint8),
                   'confidence': np.round(255 * confidence).astype(np.uint8)})
  return networks, labelled, pseudo


def first_state(method, tools, networks):
  drawn = iter(variables_of(networks[name]) for name in NETWORKS)
  return method.init(jax.random.key(1), lambda key=None: next(drawn), tools)


def assert_close(variables, params):
  jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6),
               variables['params'], params)


def test_hand_computed_weights():
  """Invariant 2: agrees; surer than the label; less sure; no label."""
  p = jnp.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.5, 0.2], [1.0, 0.0, 0.0]])
  weights = dynamic_weights(
    p, jnp.array([0, 0, 0, 255]), jnp.array([0.9, 0.6, 0.6, 0.9]), agreeing=5, disagreeing=5)
  np.testing.assert_allclose(weights, [0.32768, 0, 0.00243, 0], rtol=1e-5)


def test_weights_are_the_oracles_and_rise_with_the_labels_confidence():
  rng = np.random.default_rng(0)
  p = rng.dirichlet(np.ones(4), 200)
  y, q = rng.integers(0, 4, 200), rng.random(200)
  y[:20] = 255
  options = {'agreeing': 2.0, 'disagreeing': 3.0}
  found = dynamic_weights(jnp.float32(p), jnp.array(y), jnp.float32(q), **options)
  np.testing.assert_allclose(found, oracle.dynamic_weights(p, y, q, 2.0, 3.0), rtol=1e-5)
  more = dynamic_weights(jnp.float32(p), jnp.array(y), jnp.float32(q + 0.1), **options)
  assert (more >= found).all() and (more > found).any()


@pytest.mark.parametrize('gammas', [(5.0, 5.0), (1.0, 3.0), (0.0, 0.0)])
def test_steps_agree_with_the_oracle(gammas):
  networks, labelled, pseudo = problem()
  options = {'gamma1': gammas[0], 'gamma2': gammas[1]}
  method, tools, stages = make(**options)
  stage = stages['round1_assistant']
  state = first_state(method, tools, networks)
  state = stage.enter(state.replace(step=jnp.int32(40)))  # The schedule is the stage's own.
  theirs = lm.initial_state(networks, NETWORKS)
  hyper = lm.tiny_hyper(rate=lm.poly(RATE, stage.steps), decoder_multiplier=1.0, **options)
  step = jax.jit(stage.step)
  for known, guessed in zip(labelled, pseudo, strict=True):
    state, metrics = step(state, {'labelled': known, 'pseudo_labelled': guessed})
    as_float = {**guessed, 'confidence': guessed['confidence'] / 255}
    theirs, losses = oracle.step(theirs, known, as_float, name='assistant', hyper=hyper)
    assert_close(state.networks['assistant'], theirs['networks']['assistant'])
    total = metrics['assistant_labelled_loss'] + metrics['assistant_pseudo_loss']
    np.testing.assert_allclose(total, losses['total'], rtol=1e-5)
  assert int(state.step) == 43
  assert_close(state.networks['student'], networks['student'])  # It waits.


def test_gamma_zero_is_plain_cross_entropy_in_the_code_and_with_certain_labels():
  """Invariant 1."""
  networks, labelled, pseudo = problem()
  certain = {**pseudo[0], 'confidence': np.full_like(pseudo[0]['confidence'], 255)}
  found = []
  for rule, batch in (('plain', pseudo[0]), ('formula', certain), ('formula', pseudo[0])):
    method, tools, stages = make(gamma1=0.0, gamma2=0.0, zero_gamma=rule)
    state = first_state(method, tools, networks)
    state, _ = jax.jit(stages['round1_assistant'].step)(
      state, {'labelled': labelled[0], 'pseudo_labelled': batch})
    found.append(np.asarray(state.networks['assistant']['params']['backbone']['kernel']))
  np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
  assert np.abs(found[0] - found[2]).max() > 1e-5


def test_round_0_has_a_rate_of_its_own_and_each_stage_a_new_optimiser():
  method, tools, stages = make(supervised_rate=2.0)
  once = dataclasses.replace(method, supervised_rate=1.0)
  state, (labelled, _) = tiny.first_state(method, tools), tiny.make_batches(0, 2)
  moved = []
  for of in (method, once):
    stage = of.stages(tools)[0]
    after, metrics = jax.jit(stage.step)(state, {'labelled': labelled})
    moved.append(jax.tree.map(
      lambda a, b: np.asarray(a - b), after.networks['student'], state.networks['student']))
    np.testing.assert_allclose(metrics['student_rate'], of.supervised_rate * RATE, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-4, atol=1e-7), *moved)
  assert any(leaf.any() for leaf in jax.tree.leaves(after.optimizers['student']))
  begun = jax.jit(stages['round1_student'].enter)(after)
  assert not any(leaf.any() for leaf in jax.tree.leaves(begun.optimizers['student']))
  jax.tree.map(np.testing.assert_array_equal, begun.networks, after.networks)
  assert begun.memory['stage_start'] == after.step == 1


@pytest.mark.parametrize('total, rounds, expected', [
  (100, 5, ((15, 15), 7)), (12, 5, ((1, 1), 1)), (13, 5, ((1, 2), 1)), (6, 1, ((1, 1), 2))])
def test_rounds_have_one_length_and_share_a_program(total, rounds, expected):
  method = make_method('dmt', rounds=rounds)
  tools = tiny.make_tools(tiny.linear_network(), total_steps=total)
  assert method.divide(tools) == expected
  stages = method.stages(tools)
  assert sum(stage.steps for stage in stages) == total
  assert len({stage.step for stage in stages}) == 4 and len(stages) == 2 + 2 * rounds
  with pytest.raises(ValueError, match=r'makes 3 steps, fewer than the 12 stages of .*rounds=5'):
    make_method('dmt').stages(tools._replace(total_steps=3))


def test_both_label_for_each_other_with_the_networks_of_the_round_before(tmp_path):
  """The share grows with the rounds; the assistant does not learn from the student's new self."""
  method, tools, stages = make(rounds=2)
  data = random_dataset([(16, 20)] * 3)
  data = dataclasses.replace(data, unlabelled=data.validation)
  said = {}  # what each network predicts now

  def predict(networks, ids, protocol, *, done=()):
    (name, variables), = networks.items()
    for id in ids:
      yield id, {name: said[variables['name']]}

  host = Host(tmp_path, data, predict, lambda text: None)

  def speak(label):
    confidence = np.float32(1) - (np.arange(320).reshape(16, 20) + 1) / np.float32(1024)
    return Prediction(np.full((16, 20), label, np.uint8), confidence)

  def state(number):
    said.update({f'{name}{number}': speak(i + number) for i, name in enumerate(NETWORKS)})
    return types.SimpleNamespace(networks={
      name: {'name': f'{name}{number}'} for name in NETWORKS})

  def shown(stage):
    reader = stages[stage].dataset(host).reader
    labels = reader.mask('1')
    kept, = set(np.unique(labels).tolist()) - {255}
    expected = np.round(255 * said_of_round.confidence)
    np.testing.assert_allclose(reader.confidence('1'), expected, atol=1)
    return kept, (labels != 255).mean()

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(labelling, 'digest', repr)
    stages['round1_student'].prepare(host, state(0))
    said_of_round = said['assistant0']
    assert shown('round1_student') == (1, pytest.approx(0.5, abs=0.05))
    stages['round1_assistant'].prepare(host, state(1))
    said_of_round = said['student0']
    assert shown('round1_assistant') == (0, pytest.approx(0.5, abs=0.05))
    stages['round2_student'].prepare(host, state(1))
    said_of_round = said['assistant1']
    assert shown('round2_student') == (2, pytest.approx(0.95, abs=0.01))  # the least sampled one
    for stage in list(stages.values())[2:5]:
      stage.prepare(host._replace(predict=None), None)
