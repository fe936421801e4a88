"""U2PL's contrast: who plays which part, and the loss, by hand and against the published code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.ops import class_contrast
from gta_jax.ops.class_contrast import Contrast, Roles, find_roles
from gta_jax.ops.queues import init_queues, push

SIZES = (6, 4, 4)
contrast_loss = jax.jit(class_contrast.contrast_loss, static_argnames='temperature')
_find_contrast = jax.jit(class_contrast.find_contrast, static_argnames=(
  'sizes', 'anchors', 'negatives', 'keys_per_step', 'queue_rule'))


def find(roles, teacher, queues=None, **options):
  """Three anchors of each class with four keys each; the queues are empty before."""
  options = {'anchors': 3, 'negatives': 4, 'keys_per_step': 16} | options
  return _find_contrast(
    jax.random.key(0), init_queues(SIZES, 5) if queues is None else queues, sizes=SIZES,
    roles=roles, embedding=teacher, **options)


def test_roles_by_hand():
  probabilities = jnp.array([[0.5, 0.3, 0.2]] * 5)
  labels = jnp.array([1, 0, 255, 2, 1])
  supervised = jnp.array([True, True, False, False, False])
  sure, unsure = jnp.array([1, 1, 1, 0, 0], bool), jnp.array([1, 0, 1, 1, 1], bool)
  given = (probabilities, labels, supervised, sure, unsure & ~supervised)
  limits = {'confidence': 0.3, 'low_rank': 1, 'high_rank': 2}
  roles = find_roles(*given, **limits)
  assert np.asarray(roles.members).tolist() == [
    [False, True, False, False, False], [True] + [False] * 4, [False] * 5]
  assert np.asarray(roles.anchors).tolist() == [
    [False, True, False, False, False], [False] * 5, [False] * 5]  # 0.3 is not above 0.3
  # The first is no 0 though 0 is likeliest, the second is; class 1 has rank 1 at the unsure ones.
  assert np.asarray(roles.negatives).tolist() == [
    [True] + [False] * 4, [False, False, False, True, True], [False] * 5]
  released = find_roles(*given, **limits, rule='released')
  assert np.argwhere(released.negatives).tolist() == [[1, 4]]


def random_case(seed=0, shape=(2, 3, 4), classes=3, channels=5):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, np.prod(shape))
  members = (labels == np.arange(classes)[:, None]) & (rng.random((classes, labels.size)) < 0.8)
  roles = Roles(members, members & (rng.random(members.shape) < 0.7),
                rng.random(members.shape) < 0.3)
  return roles, rng.normal(size=(2, *shape, channels)).astype(np.float32)


def test_values_and_gradients_are_the_published_codes():
  """Its loop over classes, for the anchors and keys that have been drawn."""
  torch = pytest.importorskip('torch')
  roles, (teacher, student) = random_case()
  contrast, _ = find(roles, teacher)
  ours, gradient = jax.jit(jax.value_and_grad(
    lambda x: contrast_loss(contrast, x, jnp.arange(2), temperature=0.5)))(student)

  tensor = torch.tensor(student, requires_grad=True)
  total = torch.zeros(())
  for c in range(3):
    members = torch.tensor(roles.members[c]).reshape(2, 3, 4)
    prototype = torch.tensor(teacher)[members].mean(0)
    image, pixel = (torch.tensor(np.array(x[c])).long() for x in (contrast.image, contrast.pixel))
    assert np.asarray(roles.anchors)[c].reshape(2, 12)[image, pixel].all()
    anchors = tensor.reshape(2, 12, 5)[image, pixel]
    keys = torch.tensor(np.array(contrast.negatives[c]))
    others = torch.cat([prototype.expand(3, 1, 5), keys], 1)
    cosines = torch.cosine_similarity(anchors[:, None], others, dim=2)
    total = total + torch.nn.functional.cross_entropy(
      cosines / 0.5, torch.zeros(3, dtype=torch.long))
  total = total / 3
  total.backward()
  np.testing.assert_allclose(ours, total.item(), rtol=1e-5)
  np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-4, atol=1e-6)
  off = np.ones((2, 12), bool)
  off[np.asarray(contrast.image), np.asarray(contrast.pixel)] = False
  assert (np.asarray(gradient).reshape(2, 12, 5)[off] == 0).all()


def test_parts_of_a_batch_add_up():
  roles, (teacher, student) = random_case()
  contrast, _ = find(roles, teacher)
  whole = contrast_loss(contrast, student, jnp.arange(2), temperature=0.5)
  parts = [contrast_loss(contrast, student[i:i + 1], jnp.array([i]), temperature=0.5)
           for i in (0, 1)]
  assert float(whole) > 0
  np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)


@pytest.mark.parametrize('negatives, low, high', [(50, 0.650, 7.913), (256, 1.738, 9.545)])
def test_bounds(negatives, low, high):
  """Opposed negatives give log(1 + M e^-4), and the other way round log(1 + M e^4)."""
  for sign, expected in ((1, low), (-1, high)):
    # One class of weight one with a single anchor.
    contrast = Contrast(
      jnp.zeros((1, 1), int), jnp.zeros((1, 1), int), jnp.full((1, 2), sign * 1.0),
      jnp.full((1, 1, negatives, 2), -sign * 3.0), jnp.ones(1))
    loss = contrast_loss(contrast, jnp.ones((1, 1, 1, 2)), jnp.arange(1), temperature=0.5)
    assert float(loss) == pytest.approx(expected, abs=2e-3)
    assert float(loss) == pytest.approx(np.log(1 + negatives * np.exp(-4 * sign)), rel=1e-4)


def case_with_absent_class_0():
  roles, (teacher, _) = random_case()
  members, anchors = roles.members.copy(), roles.anchors.copy()
  members[0] = anchors[0] = False
  keys = jnp.broadcast_to(jnp.arange(1.0, 4)[:, None, None], (3, 4, 5))  # class c holds c + 1
  queues = push(init_queues(SIZES, 5), SIZES, keys, jnp.full(3, 4))
  return Roles(members, anchors, np.zeros_like(members)), teacher, queues


def test_an_absent_class_does_not_count_in_the_divisor():
  roles, teacher, queues = case_with_absent_class_0()
  contrast, _ = find(roles, teacher, queues)
  np.testing.assert_allclose(contrast.weight, [0, 1 / 6, 1 / 6], rtol=1e-6)
  assert np.unique(contrast.negatives[1]).tolist() == [2]
  roles.anchors[1] = False  # No anchors: no loss, but it counts.
  contrast, _ = find(roles, teacher, queues)
  np.testing.assert_allclose(contrast.weight, [0, 0, 1 / 6], rtol=1e-6)
  roles.members[2] = False  # A single class is contrasted with nothing.
  contrast, _ = find(roles, teacher, queues)
  assert not contrast.weight.any()


def test_the_published_index_bug_takes_the_queue_of_another_class():
  """Present are 1 and 2: id 0 would read queue 1, id 1 reads queue 2, id 2 is left out."""
  roles, teacher, queues = case_with_absent_class_0()
  contrast, _ = find(roles, teacher, queues, queue_rule='position')
  np.testing.assert_allclose(contrast.weight, [0, 1 / 6, 0], rtol=1e-6)
  assert np.unique(contrast.negatives[1]).tolist() == [3]


def test_no_more_keys_than_allowed_are_appended():
  roles, (teacher, _) = random_case()
  _, queues = find(roles, teacher, keys_per_step=2)
  assert queues.held.tolist() == [2, 2, 2]
  candidates = teacher.reshape(-1, 5)[roles.negatives[1]]
  for key in np.asarray(queues.keys[6:8]):
    assert (candidates == key).all(1).any()
