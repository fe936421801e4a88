"""CCT: the step against its oracle, torch's losses, and its invariants."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import shapes, voc
from gta_jax.methods import cct, cct_perturbations
from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.registry import make_method
from gta_jax.models.auxiliary_decoders import LinearDecoders, ShufflingDecoders, pixel_shuffle
from gta_jax.ops import feature_perturbations as perturbations
from gta_jax.ops.losses import SupervisedLoss, bootstrapped_cross_entropy
from gta_jax.ops.network import Logits
from gta_jax.training import config_rules, setup
from tests import tiny
from tests.methods import kit
from tests.oracles import cct as oracle
from tests.oracles import linear_model as lm

ONE_EACH = {'dropout': 1, 'guided_cutout': 1, 'context_masking': 1, 'object_masking': 1,
            'feature_drop': 1, 'feature_noise': 1}


def with_decoders(network, count, *, width=4):
  """The network with linear auxiliary decoders, stacked as those of the models."""
  def init(key, image_size):
    variables = network.init(key, image_size)
    kernel = jax.random.normal(key, (count, width, tiny.CLASSES))
    layer = {'kernel': kernel, 'bias': jnp.zeros((count, tiny.CLASSES))}
    return {'params': {**variables['params'], cct.HEAD: layer},
            'batch_stats': {**variables['batch_stats'], cct.HEAD: {}}}

  def head(variables, name, inputs, *, train=False, dropout_key=None):
    del train, dropout_key
    number, features = inputs
    layer = variables['params'][name]
    return features @ layer['kernel'][number] + layer['bias'][number], variables['batch_stats']

  return dataclasses.replace(network, init=init, head=head)


def draws(params, unlabelled, step, feature):
  """The oracle's constants of a step, drawn with the step's keys."""
  size, batch = unlabelled['valid'].shape[1:], len(unlabelled['valid'])
  width = params[oracle.LAYER_ON_FEATURE[feature]]['kernel'].shape[0]
  logits = lm.forward(params, lm.pixels(unlabelled))['logits']
  foreground = (logits.argmax(1) != 0).reshape(batch, *size) & unlabelled['valid']
  kinds = cct.KINDS if feature == 'encoded' else cct.KINDS[1:]
  found, boxes = drawing(kinds, size, width, cct_perturbations.CONTOUR)(foreground, np.int32(step))
  assert boxes[:, 0, 2:].min() > 0
  return {kind: (kind, found.get(kind)) for kind in kinds}


@functools.cache
def drawing(kinds, size, width, contour):
  """(foreground [B,H,W], step) -> what each kind of perturbation draws, by kind, and boxes."""
  shape, uniform = (*size, width), jax.random.uniform

  def value(kind, own, boxes):
    keys = jax.vmap(functools.partial(jax.random.fold_in, own))(jnp.arange(len(boxes)))
    if kind == 'vat':
      return jax.vmap(lambda key: uniform(key, shape, minval=-0.5, maxval=0.5))(keys)
    if kind == 'dropout':
      return perturbations.channel_dropout(keys, width)
    if kind == 'guided_cutout':
      return perturbations.cut_out(keys, boxes, size)
    if kind == 'feature_drop':
      return uniform(own, minval=0.7, maxval=0.9)
    return uniform(own, shape, minval=-0.3, maxval=0.3) if kind == 'feature_noise' else None

  @kit.at_once
  def draw(foreground, step):
    boxes = perturbations.component_boxes(
      foreground, count=cct_perturbations.COMPONENTS, least=contour)
    key = jax.random.split(jax.random.fold_in(jax.random.key(1), step))[1]
    return {kind: value(kind, jax.random.fold_in(key, number), boxes)
            for number, kind in enumerate(kinds)}, boxes

  return draw


@pytest.mark.parametrize('feature, supervised', [
  ('encoded', 'bootstrapped'), pytest.param('fused', 'plain', marks=pytest.mark.slow)])
def test_three_steps_agree_with_the_oracle(feature, supervised, monkeypatch):
  monkeypatch.setattr(cct_perturbations, 'CONTOUR', 1)
  networks, labelled, unlabelled = lm.make_problem(0, size=(6, 6))
  kinds = cct.KINDS if feature == 'encoded' else cct.KINDS[1:]
  width = 4 if feature == 'encoded' else 5
  rng = np.random.default_rng(7)
  networks['student'][cct.HEAD] = {kind: lm.random_layer(rng, width, 3) for kind in kinds}
  # Most pixels' labels have a probability below 0.5: at 0.9 the threshold would not matter.
  hyper = lm.tiny_hyper(consistency_weight=30.0, ramp_steps=4, bootstrap_steps=5, feature=feature,
                        supervised=supervised, bootstrap_top=0.5)
  expected = lm.initial_state(networks, ('student',))
  method = make_method(
    'cct', feature=feature, supervised=supervised, ramp_share=0.4, bootstrap_share=0.5,
    bootstrap_top=0.5, vat=int(feature == 'encoded'), **ONE_EACH)
  network = with_decoders(tiny.linear_network(4), len(kinds), width=width)
  tools = tiny.make_tools(network, rate=0.05, total_steps=10, batch=2, size=(6, 6),
                          weight_decay=0.01, multiplier=3.0)

  def stacked(params):
    heads = params[cct.HEAD]
    return {**params, cct.HEAD: {
      leaf: np.stack([heads[kind][leaf] for kind in kinds]) for leaf in ('kernel', 'bias')}}

  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), stacked(networks['student']))
  state = tiny.first_state(method, tools, {'params': params, 'batch_stats': {}})
  step = jax.jit(method.stages(tools)[0].step)
  for k in range(3):
    drawn = draws(expected['networks']['student'], unlabelled[k], k, feature)
    expected, losses = oracle.step(
      expected, labelled[k], unlabelled[k], perturbations=drawn, hyper=hyper)
    state, metrics = step(state, kit.batches(labelled[k], unlabelled[k]))
    weight = 30 * oracle.ramp(k, 4)
    assert float(metrics['student_labelled_loss']) == pytest.approx(losses['labelled'], rel=1e-5)
    assert float(metrics['student_consistency_loss']) == pytest.approx(
      weight * losses['consistency'], rel=1e-5)
    kit.assert_networks(state, {'student': stacked(expected['networks']['student'])})


def torch_bootstrapped(logits, labels, threshold, images):
  """The published loss, restated."""
  known = labels != 255
  losses = torch.nn.functional.cross_entropy(logits[known], labels[known].long(), reduction='none')
  probability = logits[known].softmax(1).gather(1, labels[known].long()[:, None])[:, 0].detach()
  border = probability.sort().values[min(images, len(probability) - 1)]
  hard = probability < max(border.item(), threshold)
  return losses[hard].mean() if hard.any() else losses.sum() * 0


@pytest.mark.parametrize('threshold', [0.0, 0.4, 1.0])
def test_bootstrapped_cross_entropy_agrees_with_torch(threshold):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
  labels = rng.integers(0, 3, (2, 4, 5)).astype(np.int32)
  labels[0, :2] = 255
  given = torch.from_numpy(logits).requires_grad_()
  expected = torch_bootstrapped(given, torch.from_numpy(labels), threshold, 2)
  expected.backward()
  ours = jax.jit(jax.value_and_grad(lambda x, labels, threshold: bootstrapped_cross_entropy(
    x, labels, threshold=threshold, rank=2)))
  loss, gradient = ours(logits, labels, np.float32(threshold))
  assert float(loss) == pytest.approx(expected.item(), rel=1e-5) and float(loss) > 0
  np.testing.assert_allclose(gradient, given.grad, rtol=1e-5, atol=1e-7)
  none, _ = ours(logits, np.full_like(labels, 255), np.float32(1))
  assert float(none) == 0


def test_as_many_pixels_as_images_are_hard_however_sure_the_network_is():
  logits = np.zeros((2, 4, 4, tiny.CLASSES), np.float32)
  logits[..., 0] = np.linspace(3, 6, 32).reshape(2, 4, 4)
  label = np.zeros((2, 4, 4), np.uint8)
  method, tools = make_method('cct', vat=0, **ONE_EACH), tiny.make_tools(tiny.linear_network())
  term = method.labelled(
    tools, {'image': np.zeros((2, 4, 4, 3), np.uint8), 'label': label}, jnp.int32(0))
  expected = np.log(1 + 2 * np.exp(-np.linspace(3, 6, 32)[:2])).mean()
  assert float(term.loss(Logits(logits), label)) == pytest.approx(expected, rel=1e-5)


@functools.cache
def prepared(*, accumulation=None, **options):
  """The compiled step with one decoder of each kind, without weight decay, and a first state."""
  options = {**ONE_EACH, 'vat': 1, 'ramp_share': 0.0, **options}
  method = make_method('cct', **options)
  network = with_decoders(tiny.linear_network(), method.count)
  tools = tiny.make_tools(network, weight_decay=0.0, accumulation=accumulation or Accumulation())
  return types.SimpleNamespace(method=method, tools=tools, state=tiny.first_state(method, tools),
                               step=jax.jit(method.stages(tools)[0].step))


def batches():
  return kit.batches(*tiny.make_batches(9))


@pytest.mark.slow
@pytest.mark.parametrize('feature', ['encoded', 'fused'])
def test_the_main_decoder_learns_from_ground_truth_alone(feature):
  s, given = prepared(feature=feature, supervised='plain'), batches()
  given['labelled']['label'][:] = 255
  before = s.state.networks['student']['params']
  after = s.step(s.state, given)[0].networks['student']['params']
  assert {key for key in before if kit.differs(before[key], after[key])} == (
    {'backbone', cct.HEAD} | ({'decoder'} if feature == 'fused' else set()))
  # A decoder that sees nothing, as where all is background, still learns its bias.
  moved = after[cct.HEAD]['bias'] != before[cct.HEAD]['bias']
  assert moved.any(1).all()


@pytest.mark.slow
def test_without_consistency_the_step_is_the_supervised_one():
  s = prepared(consistency_weight=0.0, supervised='plain')
  supervised = make_method('sup_only', warmup_epochs=0.0)
  state = tiny.first_state(supervised, s.tools, s.state.networks['student'])
  alone, _ = jax.jit(supervised.stages(s.tools)[0].step)(state, batches())
  after, _ = s.step(s.state, batches())
  kit.assert_close(after.networks['student'], alone.networks['student'])
  kit.assert_equal(after.networks['student']['params'][cct.HEAD],
               s.state.networks['student']['params'][cct.HEAD])


def test_decoders_equal_to_the_main_one_agree_where_nothing_is_perturbed():
  """Context masking, where everything is foreground."""
  off = dict.fromkeys(cct.KINDS, 0) | {'context_masking': 2}
  s = prepared(feature='fused', supervised='plain', **off)
  params = s.state.networks['student']['params']
  main = {'kernel': params['classifier']['kernel'], 'bias': jnp.array([-1e3, 0.0, 0.0])}
  params = {**params, 'classifier': main, cct.HEAD: jax.tree.map(lambda x: jnp.stack([x, x]), main)}
  given = batches()
  given['labelled']['label'][:] = 255
  state = s.state.with_networks(student={**s.state.networks['student'], 'params': params})
  after, metrics = s.step(state, given)
  assert float(metrics['student_consistency_loss']) < 1e-12
  kit.assert_close(after.networks['student']['params'], params, rtol=0, atol=1e-8)


def test_context_and_object_masking_part_the_features():
  rng = np.random.default_rng(0)
  features, logits = (rng.normal(size=(2, 4, 4, n)).astype(np.float32) for n in (5, 3))
  valid = np.ones((2, 4, 4), bool)
  seen = cct_perturbations.see(
    jnp.asarray(features), jnp.asarray(logits), jnp.asarray(valid), jnp.arange(2))
  apply = functools.partial(
    cct_perturbations.perturbation, key=jax.random.key(0), seen=seen, decode=None, radius=2.0)
  (context, _), (objects, _) = (apply(kind) for kind in ('context_masking', 'object_masking'))
  np.testing.assert_array_equal(features * context + features * objects, features)
  np.testing.assert_array_equal(context[..., 0] > 0, logits.argmax(-1) != 0)
  padded = cct_perturbations.see(
    seen.features, jnp.asarray(logits), jnp.asarray(valid).at[:, 0].set(False), seen.numbers)
  assert seen.foreground[:, 0].any() and not padded.foreground[:, 0].any()
  noise, _ = apply('feature_noise')
  assert (np.abs(features * noise - features) <= 0.3001 * np.abs(features)).all()


@pytest.mark.slow
def test_cut_batches_give_the_step_of_the_whole_batch():
  (one, _), (other, _) = (
    s.step(s.state, batches()) for s in (
      prepared(supervised='plain'),
      prepared(supervised='plain', accumulation=Accumulation(per_device=2))))
  kit.assert_close(one.networks, other.networks)


def test_what_does_not_fit_is_refused():
  method, tools = prepared().method, prepared().tools
  assert method.check(tools._replace(classes=('Background', 'a', 'b'))) == ()
  with pytest.raises(ValueError, match="first class is 'road', but method.guided_cutout, .* to 0"):
    method.check(tools._replace(classes=('road', 'a', 'b')))
  without = make_method('cct', guided_cutout=0, context_masking=0, object_masking=0)
  assert without.check(tools._replace(classes=('road', 'a', 'b'))) == ()
  with pytest.raises(ValueError, match='per_device_batch=2 .*supervised=bootstrapped are those of'):
    method.check(tools._replace(accumulation=Accumulation(2)))
  method.check(tools._replace(accumulation=Accumulation(tools.labelled_batch)))  # cuts nothing
  with pytest.raises(ValueError, match='loss.ohem_threshold=0.7 .*supervised=plain'):
    method.check(tools._replace(loss=SupervisedLoss(ohem_threshold=0.7)))
  with pytest.raises(ValueError, match='no auxiliary decoder'):
    make_method('cct', **dict.fromkeys(cct.KINDS, 0))


def test_configs_carry_what_was_published_and_runs_their_classes():
  run = setup.make_run(shapes.get_config('4,method=cct'))
  assert run.tools.classes[0] == 'background' and len(run.tools.classes) == 7
  for name, rate, decay, grid in (
      ('cct', 0.001, 'all', (1, 2, 4)), ('cct_torchsemiseg', 0.0025, 'kernels', (1, 2, 4)),
      ('gct', 0.001, 'all', (2, 2, 4)), ('gct_torchsemiseg', 0.0025, 'kernels', (1, 2, 4)),
      ('st', 0.001, 'all', ()), ('st_plus_plus', 0.001, 'all', ())):
    config = voc.get_config(f'1464,method={name}')
    config_rules.check(config)
    assert (config.optim.rate, config.optim.decay) == (rate, decay)
    assert config.model.multi_grid == grid


def test_decoders_start_as_nearest_neighbours_and_differ():
  features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 6)), jnp.bfloat16)
  decoders = ShufflingDecoders(num_classes=4, features=8, count=3)
  variables = decoders.init(jax.random.key(0), (features,), train=False)
  one, two = (decoders.apply(variables, (i, features), train=True) for i in (0, 1))
  assert one.shape == (2, 24, 40, 4) and one.dtype == jnp.float32
  assert float(one.min()) >= 0 and kit.differs(one, two)
  np.testing.assert_array_equal(one, one[:, ::8, ::8].repeat(8, 1).repeat(8, 2))
  linear = LinearDecoders(num_classes=4, features=8, count=3)
  variables = linear.init(jax.random.key(0), features, train=False)
  assert variables['params']['bias'].shape == (12,)  # one axis: no weight decay as a kernel
  assert linear.apply(variables, (jnp.int32(2), features), train=True).shape == (2, 3, 5, 4)


def test_shuffled_pixels_lie_as_torch_lays_them():
  x = np.arange(2 * 3 * 2 * 8, dtype=np.float32).reshape(2, 3, 2, 8)
  expected = torch.nn.functional.pixel_shuffle(torch.from_numpy(x.transpose(0, 3, 1, 2)), 2)
  np.testing.assert_array_equal(pixel_shuffle(x), expected.numpy().transpose(0, 2, 3, 1))


def test_the_bootstrapped_threshold_rises_until_its_share_of_the_run(monkeypatch):
  monkeypatch.setattr(cct, 'bootstrapped_cross_entropy', lambda *_, threshold, rank: threshold)
  tools = tiny.make_tools(tiny.linear_network(4), total_steps=100)
  labelled, _ = tiny.make_batches(2)
  method = make_method('cct')
  logits = Logits(jnp.zeros((2, 8, 8, 3)), None)

  def threshold(step):
    return float(method.labelled(tools, labelled, jnp.int32(step)).loss(
      logits, jnp.zeros((2, 8, 8), jnp.int32)))

  lowest = 1 / tools.num_classes
  end = lowest + (0.9 - lowest) * (1 - np.exp(-5))
  np.testing.assert_allclose([threshold(0), threshold(40), threshold(100)], [lowest, end, end],
                             rtol=1e-6)
