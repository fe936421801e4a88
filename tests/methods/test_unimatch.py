"""FixMatch and UniMatch against their oracles, their invariants, and what every method keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.methods import fixmatch, gradient_step, unimatch
from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.fixmatch import FixMatch, Said
from gta_jax.methods.gradient_step import slope
from gta_jax.methods.objectives import labelled_term
from gta_jax.methods.unimatch import UniMatch, drop_channels
from gta_jax.ops.channel_dropout import channel_masks
from gta_jax.ops.joining import separate
from gta_jax.ops.mixing import unimatch_boxes
from gta_jax.ops.photometric import strong_view
from tests import tiny
from tests.methods import kit
from tests.oracles import fixmatch as oracle_fixmatch
from tests.oracles import unimatch as oracle_unimatch

SIZE = (4, 5)
PLAIN = {'jitter': 0.0, 'hue': 0.0, 'greyscale': 0.0, 'blur': 0.0, 'box_probability': 0.0}


def make_randomness(method, network, features):
  """(state, unlabelled) -> what the step draws, as the oracle takes it."""
  def view(key, images):
    """The strong view before mixing, and masks of its boxes."""
    key_view, key_box = jax.random.split(key)
    view = strong_view(key_view, images, network, jitter=method.jitter, hue=method.hue,
                       greyscale=method.greyscale, blur=method.blur)
    return view, unimatch_boxes(key_box, len(images), SIZE, probability=method.box_probability)

  @kit.at_once
  def draw(key, unlabelled):
    key, key_strong = jax.random.split(key)
    images = fixmatch.unlabelled_images(tiny.make_tools(network), unlabelled)
    if not isinstance(method, UniMatch):
      return (*view(key_strong, images), None)
    views, boxes = zip(*(view(k, images) for k in jax.random.split(key_strong)), strict=True)
    count = len(images)
    factors, = channel_masks(jax.random.split(key)[0], 2 * count, (features,))
    return jnp.stack(views), jnp.stack(boxes), separate(factors, count, count)[1]

  def randomness(state, unlabelled):
    strong, boxes, factors = draw(state.step_key(), unlabelled)
    corners = np.array([kit.corners(mask) for mask in boxes.reshape(-1, *SIZE)])
    drawn = {'strong': np.float64(strong), 'boxes': corners.reshape(*boxes.shape[:-2], 4)}
    return drawn if factors is None else {**drawn, 'feature_masks': factors}

  return randomness


@pytest.mark.parametrize('kind, oracle', [
  (FixMatch, oracle_fixmatch), (UniMatch, oracle_unimatch)])
def test_three_steps_agree_with_the_oracle(kind, oracle):
  method = kind(threshold=0.6, box_probability=1.0)
  network = tiny.linear_network()
  expected, labelled, unlabelled, _ = oracle.make_problem(0)
  tools = tiny.make_tools(network, batch=2, size=SIZE)
  state = kit.state_of(method, tools, expected['networks'])
  step, kept = jax.jit(method.step(tools)), []
  randomness = make_randomness(method, network, 4)
  for k in range(kit.STEPS):
    expected, losses = oracle.step(
      expected, labelled[k], unlabelled[k], **randomness(state, unlabelled[k]),
      hyper={'threshold': 0.6, 'rate': 0.05, 'total_steps': 20})
    state, metrics = step(state, kit.batches(labelled[k], unlabelled[k]))
    kit.assert_networks(state, expected['networks'])
    total = sum(value for key, value in metrics.items() if key.endswith('_loss'))
    np.testing.assert_allclose(total, losses['total'], rtol=1e-5)
    np.testing.assert_allclose(2 * metrics['model_labelled_loss'], losses['labelled'], rtol=1e-5)
    kept.append(float(metrics['kept_share']))
  assert max(kept) > 0 and min(kept) < 1


@pytest.mark.slow
@pytest.mark.parametrize('kind', [FixMatch, UniMatch])
def test_without_confident_pixels_half_the_labelled_loss_is_left(kind):
  """Invariant (a): the step is that of half the supervised loss."""
  tools, found = tiny.make_tools(tiny.linear_network()), []
  labelled, unlabelled = tiny.make_batches(3)
  nothing = {**unlabelled, 'valid': np.zeros_like(unlabelled['valid'])}
  method = kind(threshold=1.0)
  step, state = jax.jit(method.step(tools)), tiny.first_state(method, tools)
  for batch in (unlabelled, nothing):
    after, metrics = step(state, kit.batches(labelled, batch))
    assert {key for key, value in metrics.items() if key.endswith('_loss') and value > 0} == {
      'model_labelled_loss'}
    found.append(after.networks)
  kit.assert_equal(*found)


def test_without_perturbation_all_unlabelled_losses_are_one(monkeypatch):
  """Invariant (d): no strong view, no boxes, no dropped channel."""
  monkeypatch.setattr(unimatch, 'drop_channels', lambda key, stages: stages)
  method = UniMatch(threshold=0.4, **PLAIN)
  tools = tiny.make_tools(tiny.linear_network())
  _, metrics = jax.jit(method.step(tools))(
    tiny.first_state(method, tools), kit.batches(*tiny.make_batches(3)))
  strong = 8 * float(metrics['model_strong_1_loss'])
  assert strong > 0
  assert 8 * float(metrics['model_strong_2_loss']) == pytest.approx(strong)
  assert 4 * float(metrics['model_features_loss']) == pytest.approx(strong)


def test_the_divisor_counts_all_valid_pixels():
  """Invariant (c), and by hand: p(label) 0.2 at the kept one of two valid pixels."""
  said = Said(jnp.array([[[0, 1, 0]]]), jnp.array([[[0.95, 0.5, 0.99]]]),
              jnp.array([[[True, True, False]]]))
  tools = tiny.make_tools(tiny.linear_network())

  @kit.at_once
  def run(said, p):
    term = FixMatch(**PLAIN).strong(
      tools, jnp.zeros((1, 1, 3, 3)), said, said, jax.random.key(0), weight=0.5)
    return term.targets, term.loss(fixmatch.Logits(jnp.log(p)), term.targets)

  targets, loss = run(said, np.float32([[[[0.2, 0.8], [0.5, 0.5], [0.5, 0.5]]]]))
  assert targets.tolist() == [[[0, 255, 255]]]
  assert float(loss) == pytest.approx(-0.5 * np.log(0.2) / 2)


def test_image_label_confidence_and_padding_agree_inside_of_boxes():
  """Invariant (e): from images that hold their labels."""
  rng = np.random.default_rng(0)
  labels = jnp.asarray(rng.integers(0, 3, (4, 16, 16)))
  valid = jnp.asarray(rng.random((4, 16, 16)) > 0.2)
  own = Said(labels, jnp.ones((4, 16, 16)), valid)
  # What the next image's evaluation says is its own labels plus ten: it shows where boxes are.
  following = Said(jnp.roll(labels, -1, 0) + 10, own.confidence, jnp.roll(valid, -1, 0))
  images = jnp.repeat(labels[..., None], 3, -1).astype(jnp.float32) + 1
  method = FixMatch(**PLAIN | {'box_probability': 1.0})

  @kit.at_once
  def run(images, own, following):
    term = method.strong(tiny.make_tools(tiny.linear_network()), images, own, following,
                         jax.random.key(3), weight=1.0)
    return term.images[..., 0], term.targets

  shown, target = run(images, own, following)
  known = target != 255
  assert np.any(target[known] >= 10) and np.any(target[known] < 10)
  np.testing.assert_array_equal(shown[known], target[known] % 10 + 1)
  assert np.all(shown[~known] == 0) and 0.1 < (~known).mean() < 0.3


def test_dropped_channels():
  """Invariant (f): constant over space, 0 or 2; of four stages the first and last alone."""
  stages = tuple(jnp.ones((3, 4 // s, 4 // s, 40)) for s in (1, 1, 2, 2))
  dropped = [np.asarray(x) for x in drop_channels(jax.random.key(0), stages)]
  for i in (1, 2):
    np.testing.assert_array_equal(dropped[i], stages[i])
  for i in (0, 3):
    assert set(np.unique(dropped[i])) == {0.0, 2.0} and 0.35 < dropped[i].mean() / 2 < 0.65
    assert np.all(dropped[i] == dropped[i][:, :1, :1])
  assert np.any(dropped[0][:, 0, 0] != dropped[3][:, 0, 0])
  assert np.any(dropped[0][0] != dropped[0][1])
  two = drop_channels(jax.random.key(0), stages[:2])
  assert all(set(np.unique(x)) == {0.0, 2.0} for x in two)
  half = drop_channels(jax.random.key(0), (stages[0].astype(jnp.bfloat16),))
  assert half[0].dtype == jnp.bfloat16


@pytest.mark.parametrize('per_device', [0, 2])
def test_weak_labels_are_those_of_the_pass_that_is_learnt_from(per_device):
  """In train mode, together with labelled images, of its own part of a cut batch."""
  tools = tiny.make_tools(tiny.conv_network(dropout=False),
                          accumulation=Accumulation(per_device))
  variables = tools.network.init(jax.random.key(0), tiny.SIZE)
  labelled, unlabelled = tiny.make_batches(3)
  term = labelled_term(tools, labelled)
  images = fixmatch.unlabelled_images(tools, unlabelled)
  objective = FixMatch().weak(tools, term, images, jnp.asarray(unlabelled['valid']),
                              jax.random.key(1))
  own = jax.jit(lambda v: slope(tools, v, objective))(variables).rows
  size = per_device or 4
  for start in range(0, 4, size):
    rows = slice(start, start + size)
    both = jnp.concatenate([term.images[rows], images[rows]])
    logits, _ = tools.network.apply(variables, both, train=True)
    expected = fixmatch.label(fixmatch.Logits(logits.main[size:]), own.valid[rows])
    np.testing.assert_array_equal(own.labels[rows], expected.labels)
    np.testing.assert_allclose(own.confidence[rows], expected.confidence, rtol=1e-5)


def test_labels_within_boxes_are_those_of_evaluation(monkeypatch):
  """Running statistics reach the labels within boxes alone."""
  asked = []

  def forward(tools, variables, images, *, key, train=False):
    asked.append(train)
    return gradient_step.forward(tools, variables, images, key=key, train=train)

  monkeypatch.setattr(fixmatch, 'forward', forward)
  method, tools = FixMatch(threshold=0.0), tiny.make_tools(tiny.conv_network(dropout=False))
  jax.eval_shape(
    method.step(tools), tiny.first_state(method, tools), kit.batches(*tiny.make_batches(3)))
  assert asked == [False]


def test_running_statistics_move_with_both_passes():
  method = FixMatch(**PLAIN)
  tools = tiny.make_tools(tiny.conv_network(), rate=0.0)
  same = np.full((4, 8, 8, 3), 200, np.uint8)  # both passes see the same mean
  streams = kit.batches({'image': same, 'label': np.zeros((4, 8, 8), np.uint8)},
                        {'image': same, 'valid': np.ones((4, 8, 8), bool)})
  state = tiny.first_state(method, tools)
  after, _ = jax.jit(method.step(tools))(state, streams)
  images = tools.network.normalize(same)
  _, once = tools.network.apply(state.networks['model'], images, train=True)
  np.testing.assert_allclose(
    after.networks['model']['batch_stats']['backbone']['mean'],
    once['backbone']['mean'] * (1 - 0.9 ** 2) / (1 - 0.9), rtol=1e-4)


def test_batches_of_unequal_parts_are_refused():
  tools = tiny.make_tools(tiny.linear_network(), accumulation=Accumulation(per_device=2))
  with pytest.raises(ValueError, match='use batches of one size'):
    UniMatch().check(tools._replace(labelled_batch=8))
  assert 'no other image' in FixMatch().check(tools._replace(
    accumulation=Accumulation(), unlabelled_batch=1))[0]
