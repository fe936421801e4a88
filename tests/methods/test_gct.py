"""GCT: the step against its oracle, its invariants, and a network of another shape in a run."""

import dataclasses
import functools
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes
from gta_jax.inference import finished
from gta_jax.methods import gct
from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.registry import make_method
from gta_jax.models.flaw_detector import FlawDetector
from gta_jax.ops import optim
from gta_jax.ops.losses import SupervisedLoss
from gta_jax.training import loop, setup
from tests import tiny
from tests.methods import kit
from tests.oracles import gct as oracle
from tests.oracles import linear_model as lm

BOTH = ('gct', 'gct_torchsemiseg')


def linear_detector(*, blocks=4):
  """The oracle's detector: a linear layer on image and probabilities."""
  del blocks

  def init(key, size, num_classes):
    del size
    kernel = jax.random.normal(key, (3 + num_classes, 1))
    return {'params': {'flaw': {'kernel': kernel, 'bias': jnp.zeros(1)}}, 'batch_stats': {}}

  def apply(variables, images, probabilities):
    layer, seen = variables['params']['flaw'], jnp.concatenate([images, probabilities], -1)
    return (seen @ layer['kernel'] + layer['bias'])[..., 0], variables['batch_stats']

  return FlawDetector(init, apply)


@pytest.fixture
def with_linear_detector(monkeypatch):
  monkeypatch.setattr(gct, 'make_flaw_detector', linear_detector)


def oracle_run(name, seed=0):
  networks, labelled, unlabelled = lm.make_problem(seed, names=oracle.NAMES, size=(16, 16))
  rng = np.random.default_rng(seed)
  networks['detector'] = {'flaw': lm.random_layer(rng, 6, 1)}
  state = lm.initial_state(networks, oracle.NAMES, adam=oracle.adam_state(networks['detector']))
  late = name == 'gct_torchsemiseg'
  ramp_steps = 4
  hyper = lm.tiny_hyper(
    flaw_weight=1.0, consistency_weight=100.0, variant='torchsemiseg' if late else 'pixelssl',
    rectified=late, ramp=lambda step: np.exp(-5 * (1 - min(step / ramp_steps, 1)) ** 2),
    detector_rate=(lambda step: 0.01) if late else lm.poly(0.01, 10))
  return state, labelled, unlabelled, hyper, ramp_steps


@pytest.mark.parametrize('name', BOTH)
def test_three_steps_agree_with_the_oracle(name, with_linear_detector):
  state, labelled, unlabelled, hyper, ramp_steps = oracle_run(name)
  expected = lm.iterate(oracle.step, state, labelled, unlabelled, hyper=hyper)
  with jax.enable_x64(True):
    method = make_method(name, ramp_epochs=float(ramp_steps), detector_rate=0.01)
    network = tiny.linear_network(4)
    tools = tiny.make_tools(network, rate=0.05, total_steps=10, batch=2, size=(16, 16),
                            weight_decay=0.01, multiplier=3.0)
    first = tiny.first_state(method, tools)
    first = first.with_networks(**{
      of: {'params': jax.tree.map(jnp.asarray, params), 'batch_stats': {}}
      for of, params in state['networks'].items()})
    first = first.replace(optimizers={
      of: optimizer.init(first.networks[of]['params'])
      for of, optimizer in method.optimizers(tools).items()})
    step, now = jax.jit(method.stages(tools)[0].step), first
    for k, (wanted, losses) in enumerate(expected):
      now, metrics = step(now, kit.batches(labelled[k], unlabelled[k]))
      for of in oracle.NAMES:
        for loss in ('labelled', 'flaw', 'consistency'):
          assert losses[of][loss] > 0
          assert float(metrics[f'{of}_{loss}_loss']) == pytest.approx(losses[of][loss], rel=1e-5)
      assert float(metrics['detector_flaw_loss']) == pytest.approx(losses['detector'], rel=1e-5)
      kit.assert_networks(now, wanted['networks'])


SIDE = 16


@functools.cache
def prepared(name, *, linear=False, **options):
  """The compiled step, and a state in which everything differs; linear: of single pixels."""
  network = tiny.linear_network() if linear else tiny.conv_network()
  tools = tiny.make_tools(network, size=(SIDE, SIDE), epoch_steps=2)
  method = make_method(name, detector_blocks=1, **options)
  state = tiny.first_state(method, tools).replace(step=jnp.int32(3))
  return types.SimpleNamespace(
    method=method, tools=tools, state=state, step=jax.jit(method.stages(tools)[0].step))


def batches():
  return kit.batches(*tiny.make_batches(9, size=(SIDE, SIDE)))


@pytest.mark.slow
def test_without_guidance_both_networks_learn_as_supervised(with_linear_detector):
  options = {'supervised_divisor': 'known', 'linear': True}
  s = prepared('gct', consistency_weight=0.0, flaw_weight=0.0, **options)
  after, _ = s.step(s.state, batches())
  supervised = make_method('sup_only', warmup_epochs=0.0)
  learn = jax.jit(supervised.stages(s.tools)[0].step)
  for name in gct.NETWORKS:
    state = tiny.first_state(supervised, s.tools).replace(step=jnp.int32(3))
    state = state.with_networks(student=s.state.networks[name])
    alone, _ = learn(state, batches())
    kit.assert_close(after.networks[name]['params'], alone.networks['student']['params'])
  guided, metrics = prepared('gct', **options).step(s.state, batches())
  assert float(metrics['student_flaw_loss']) > 0 and float(metrics['student_consistency_loss']) > 0
  # The detector learns from step 0 alone.
  kit.assert_equal(after.networks['detector'], guided.networks['detector'])


def test_exchanged_networks_exchange_results(with_linear_detector):
  s = prepared('gct', linear=True)
  student, assistant = (s.state.networks[name] for name in gct.NETWORKS)
  after, metrics = s.step(s.state, batches())
  other, swapped = s.step(s.state.with_networks(student=assistant, assistant=student), batches())
  kit.assert_close(after.networks['student'], other.networks['assistant'])
  kit.assert_close(after.networks['detector'], other.networks['detector'])
  assert float(metrics['student_consistency_loss']) == pytest.approx(
    float(swapped['assistant_consistency_loss']), rel=1e-4)
  _, metrics = s.step(s.state.with_networks(assistant=student), batches())
  assert float(metrics['student_consistency_loss']) == 0
  assert float(metrics['student_follows_share']) == 0


@pytest.mark.slow
@pytest.mark.parametrize('name', BOTH)
def test_cut_batches_give_the_step_of_the_whole_batch(name, with_linear_detector):
  kit.assert_cut_batches_are_the_whole_step(make_method(name))


@pytest.mark.slow
def test_heads_are_drawn_separately_and_the_detector_has_its_own_adam():
  s = prepared('gct')
  kernels = [s.state.networks[name]['params']['classifier']['kernel'] for name in gct.NETWORKS]
  assert not np.allclose(*kernels)
  _, metrics = s.step(s.state, batches())
  rate = optim.poly_schedule(4e-4, total_steps=20)(3)
  assert float(metrics['detector_rate']) == pytest.approx(float(rate))
  assert float(prepared('gct_torchsemiseg').method.optimizers(s.tools)['detector'].rate(3)) == (
    pytest.approx(4e-4))


def test_what_does_not_fit_is_refused():
  s = prepared('gct')
  with pytest.raises(ValueError, match='data.crop=16 leaves nothing .* fewer blocks'):
    dataclasses.replace(s.method, detector_blocks=4).check(s.tools)
  with pytest.raises(ValueError, match='into 2 and 4 parts'):
    s.method.check(s.tools._replace(accumulation=Accumulation(2), unlabelled_batch=8))
  note, = s.method.check(s.tools._replace(crop=12))
  assert '3 x 3 values' in note
  assert not s.method.check(s.tools)


@pytest.mark.slow
def test_a_run_with_a_detector_goes_on_exactly_and_is_evaluated(tmp_path):
  config = shapes.get_config('4,method=gct')
  assert config.method.detector_blocks == 2  # for crops of 64 pixels
  config.update_from_flattened_dict({
    'data.unlabelled': 4, 'data.validation': 2, 'data.size': 40, 'data.crop': 32,
    'model.width': 0.0625, 'train.labelled_batch': 2, 'train.unlabelled_batch': 2,
    'train.epochs': 2, 'train.evaluate_epochs': 1, 'evaluate.batch': 2, 'evaluate.pictures': 1,
    'method.detector_blocks': 1})
  run = setup.make_run(config)
  whole = loop.train(run, tmp_path / 'whole')
  assert whole['last'].keys() == {'step', *gct.NETWORKS}
  # As if the run had been killed after its first epoch.
  shutil.copytree(tmp_path / 'whole', tmp_path / 'again')
  shutil.rmtree(tmp_path / 'again/checkpoints/4')
  (tmp_path / 'again/checkpoints/4.json').unlink()
  again = loop.train(run, tmp_path / 'again')
  assert again['seconds_from_step'] == 2 and again['last'] == whole['last']
  states = []
  for name in ('whole', 'again'):
    with loop.Checkpoints(tmp_path / name / 'checkpoints') as checkpoints:
      states.append(checkpoints.restore(4, run.abstract_state()))
  kit.assert_equal(*(state.replace(key=None) for state in states))
  _, networks, _ = finished.load_networks(
    tmp_path / 'whole', config, num_classes=7, names=gct.NETWORKS)
  kit.assert_equal(networks, {name: states[0].networks[name] for name in gct.NETWORKS})
  scores = finished.evaluate_run(tmp_path / 'whole', None)['protocols']['whole']
  assert scores['student']['miou'] == whole['last']['student']['miou']


def test_the_ramp_is_as_long_as_its_epochs(monkeypatch):
  asked = []
  monkeypatch.setattr(gct, 'sigmoid_ramp', lambda step, steps: asked.append(steps) or 1.0)
  method = make_method('gct', ramp_epochs=4.0, detector_blocks=1)
  tools = tiny.make_tools(tiny.conv_network(), epoch_steps=3)
  labelled, unlabelled = tiny.make_batches(0)
  jax.eval_shape(method.step(tools), tiny.first_state(method, tools),
                 {'labelled': labelled, 'unlabelled': unlabelled})
  assert asked == [12]


def test_what_ohem_and_a_batch_of_one_leave_without_effect_is_said():
  tools = tiny.make_tools(tiny.linear_network(), loss=SupervisedLoss(ohem_threshold=0.7))
  tools = tools._replace(crop=128)
  assert any('method.supervised_divisor=all has no effect' in note
             for note in make_method('gct').check(tools))
  alone = tools._replace(unlabelled_batch=1, labelled_batch=1, loss=SupervisedLoss())
  for name in ('gta', 'cutmix', 'fixmatch', 'u2pl', 'corrmatch'):
    rank = {'low_rank': 1} if name == 'u2pl' else {}
    assert any('leaves no other image to mix with' in note
               for note in make_method(name, **rank).check(alone)), name
  assert not any('no other image' in note for note in make_method('mean_teacher').check(alone))


@pytest.mark.parametrize('name', BOTH)
def test_the_detector_sees_both_kinds_of_images_as_one_batch(name, monkeypatch):
  """Its statistics are those of all, also where the networks' are of each kind."""
  s, seen, make = prepared(name), [], gct.make_flaw_detector

  def counting(*, blocks):
    made = make(blocks=blocks)

    def apply(variables, images, probabilities):
      seen.append(len(images))
      return made.apply(variables, images, probabilities)

    return made._replace(apply=apply)

  monkeypatch.setattr(gct, 'make_flaw_detector', counting)
  jax.eval_shape(s.method.stages(s.tools)[0].step, s.state, batches())
  assert set(seen) == {8}
