"""ST++: which images are reliable, whose labels are whose, and all stages against the oracle."""

import types

import jax
import numpy as np
import pytest

from gta_jax.data.sources import Dataset
from gta_jax.evaluation.windows import Prediction
from gta_jax.methods import labelling, st_plus_plus
from gta_jax.methods.contract import Host
from gta_jax.methods.registry import make_method
from tests import tiny
from tests.arrays import ArrayReader
from tests.methods.test_self_training import PLAIN, RATE, assert_close, variables_of
from tests.oracles import linear_model as lm
from tests.oracles import self_training as oracle

STEPS = (6, 4, 5)  # supervised, in thirds; reliable; all


def test_hand_computed_agreement():
  first, last = np.array([[0, 0, 1], [0, 1, 1]]), np.array([[0, 0, 0], [0, 1, 1]])
  assert labelling.agreement([first, last], num_classes=3) == pytest.approx(17 / 24)
  assert labelling.agreement([first, last, last], num_classes=2) == pytest.approx(41 / 48)
  assert labelling.agreement([last] * 3, num_classes=2) == 1
  zeros = np.zeros((2, 2), np.uint8)
  assert labelling.agreement([zeros, zeros + 5], num_classes=6) == 0


def test_agreement_is_the_oracles():
  rng = np.random.default_rng(0)
  for _ in range(20):
    maps = rng.integers(0, 4, (3, 5, 6), dtype=np.uint8)
    assert labelling.agreement(maps, num_classes=6) == pytest.approx(oracle.reliability(maps))


def test_the_split_is_exact_and_stable():
  """Invariant 2: also where all scores are equal."""
  ids = tuple('abcde')
  assert labelling.split_by_score(ids, [.5, 1, .5, 1, .2]) == (('b', 'd'), ('a', 'c', 'e'))
  assert labelling.split_by_score(ids, [1.0] * 5) == (('a', 'b'), ('c', 'd', 'e'))
  assert labelling.split_by_score(('a',), [1.0]) == (('a',), ())


def make(folder, images):
  """A host whose networks are linear, of so many unlabelled images."""
  ids = tuple(f'u/{i}' for i in range(len(images)))
  reader = ArrayReader(dict(zip(ids, images, strict=True)), {})
  dataset = Dataset('arrays', tuple('abc'), np.zeros((3, 3), np.uint8), (), ids, (), reader)
  network, seen = tiny.linear_network(hidden_features()), []

  @jax.jit
  def low(variables, image):
    return tiny.low_logits(network, variables, image[None])[0]

  def predict(networks, ids, protocol, *, done=()):
    for id in ids:
      seen.append((id, protocol.name))
      yield id, {name: Prediction(np.asarray(low(v, reader.image(id)).argmax(-1), np.uint8), None)
                 for name, v in networks.items()}

  return Host(folder, dataset, predict, lambda text: None), seen


def hidden_features():
  return 4


def run_stages(folder):
  """All stages of ST++ on what the oracle is given, and what the oracle finds."""
  networks, labelled, unlabelled = lm.make_problem(0, names=('student',), steps=6)
  images = np.concatenate([batch['image'] for batch in unlabelled])[:7]
  draw = lambda stage, k, n: [(stage * k) % n, (k + 1) % n]  # noqa: E731
  expected = oracle.st_plus_plus(
    [networks['student']] * 3, [labelled] * 3, images, steps=STEPS, draw=draw,
    hyper=lambda stage: lm.tiny_hyper(rate=lm.poly(RATE, STEPS[{1: 0, 4: 1, 6: 2}[stage]])),
    checkpoints=(2, 4, 6))
  method = make_method('st_plus_plus', supervised_share=6 / 15, reliable_share=4 / 15, **PLAIN)
  tools = tiny.make_tools(tiny.linear_network(), rate=RATE, total_steps=15, batch=2,
                          weight_decay=0.01, multiplier=3.0)
  host, seen = make(folder, images)
  state, params, datasets, k = tiny.first_state(
    method, tools, variables_of(networks['student'])), {}, {}, 0
  for stage in method.stages(tools):
    if stage.prepare:
      stage.prepare(host, state)
      k = 0
      datasets[stage.name] = stage.dataset(host)
    state, step = stage.enter(state), jax.jit(stage.step)
    for _ in range(stage.steps):
      given = {'labelled': labelled[k]}
      if stage.prepare:
        listed = [id for files in method.masks(host)[:1 + (stage.name == 'all')]
                  for id in files.ids]
        chosen = [listed[i] for i in draw({'reliable': 4, 'all': 6}[stage.name], k, len(listed))]
        reader = datasets[stage.name].reader
        given['pseudo_labelled'] = {
          'image': np.stack([reader.image(id) for id in chosen]),
          'label': np.stack([reader.mask(id) for id in chosen]),
          'valid': np.ones((2, 4, 5), bool)}
      state, _ = step(state, given)
      k += 1
    params[stage.name] = state
  return types.SimpleNamespace(**locals())


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
  return run_stages(tmp_path_factory.mktemp('stages'))


def test_all_stages_agree_with_the_oracle(ran):
  for stage, number in (('supervised_3', 1), ('reliable', 4), ('all', 6)):
    assert_close(ran.params[stage], ran.expected['params'][number])
  assert st_plus_plus.read_scores(ran.host) == pytest.approx(ran.expected['scores'])
  reliable, unreliable = ran.method.masks(ran.host)
  index = ran.host.dataset.unlabelled.index
  assert [index(id) for id in reliable.ids] == ran.expected['reliable']
  assert [index(id) for id in unreliable.ids] == ran.expected['unreliable']
  for id in ran.host.dataset.unlabelled:
    np.testing.assert_array_equal(
      ran.datasets['all'].reader.mask(id), ran.expected['masks'][index(id)])


def test_the_reliable_stage_sees_no_other_image_and_its_masks_stay(ran):
  """Invariant 5: byte for byte, as both stages read one file."""
  reliable, unreliable = (files.ids for files in ran.method.masks(ran.host))
  assert len(reliable) == 3 and len(unreliable) == 4
  assert set(ran.datasets['reliable'].unlabelled) == set(reliable)
  assert ran.datasets['all'].unlabelled == ran.host.dataset.unlabelled
  paths = [ran.datasets[name].reader.masks for name in ('reliable', 'all')]
  assert all(paths[0][id] == paths[1][id] for id in reliable)


def test_each_image_is_scored_once_and_labelled_once_by_all_views(ran):
  counts = {(id, name): ran.seen.count((id, name)) for id, name in ran.seen}
  ids = ran.host.dataset.unlabelled
  assert counts == {(id, name): 1 for id in ids for name in ('whole', 'self_training')}
  assert labelling.MULTISCALE_FLIP.scales == (0.5, 0.75, 1, 1.5, 2)
  assert labelling.MULTISCALE_FLIP.flip


def test_preparing_again_does_nothing_and_the_state_is_not_needed_within_a_stage(ran, monkeypatch):
  monkeypatch.setattr(labelling, 'write_labels', None)
  for stage in ran.method.stages(ran.tools)[3:]:
    stage.prepare(ran.host._replace(predict=None), None)


def test_checkpoints_are_those_of_a_third_and_two_thirds(ran):
  final = ran.params['all']
  for name, stage in (('third', 'supervised_1'), ('two_thirds', 'supervised_2')):
    jax.tree.map(np.testing.assert_array_equal, final.networks[name],
                 ran.params[stage].networks['student'])


def test_shares_that_leave_nothing_are_refused():
  method = make_method('st_plus_plus', supervised_share=0.5, reliable_share=0.5)
  with pytest.raises(ValueError, match='leave no step for the last stage; make their sum less'):
    method.check(tiny.make_tools(None))
