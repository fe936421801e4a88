import numpy as np
import pytest

from tests.oracles import linear_model as lm
from tests.oracles import self_training

HYPER = lm.tiny_hyper()


def test_hand_computed_reliability():
  first = np.array([[0, 0, 1], [0, 1, 1]])
  last = np.array([[0, 0, 0], [0, 1, 1]])
  assert self_training.mean_iou(first, last) == pytest.approx(17 / 24)
  assert self_training.reliability(np.stack([first, last, last])) == pytest.approx(41 / 48)
  # Classes 0 and 5 never meet: both IoU are 0; others are left out.
  assert self_training.mean_iou(np.zeros((2, 2)), np.full((2, 2), 5)) == 0


def test_split_is_stable_and_the_odd_image_is_unreliable():
  assert self_training.split([0.5, 1.0, 0.5, 1.0, 0.2]) == ([1, 3], [0, 2, 4])


def test_gradient_agrees_with_finite_differences():
  networks, (first, second, _), _ = lm.make_problem(0)
  params, batches = networks['student'], [first, second]
  _, gradient = self_training.objective(params, batches)
  lm.assert_trees_close(
    gradient, lm.finite_differences(lambda p: self_training.objective(p, batches)[0], params))


def test_one_mean_over_both_streams():
  networks, (first, second, _), _ = lm.make_problem(0)
  state = lm.initial_state(networks, ('student',))
  _, both = self_training.step(state, first, second, hyper=HYPER)
  losses = [self_training.step(state, batch, hyper=HYPER)[1]['total'] for batch in (first, second)]
  counts = [(batch['label'] != 255).sum() for batch in (first, second)]
  assert counts[0] != counts[1]
  assert both['total'] == pytest.approx(np.average(losses, weights=counts))


def test_cutout_changes_the_box_alone():
  image, noise = np.zeros((3, 4, 3), np.uint8), np.full((3, 4, 3), 9, np.uint8)
  cut, label = self_training.cutout(image, np.ones((3, 4), int), (1, 0, 3, 2), noise)
  inside = np.zeros((3, 4), bool)
  inside[1:3, :2] = True
  np.testing.assert_array_equal(cut[..., 0] == 9, inside)
  np.testing.assert_array_equal(label, np.where(inside, 255, 1))


def test_all_stages():
  networks, labelled, unlabelled = lm.make_problem(0, names=('one', 'two', 'three'), steps=6)
  images = np.concatenate([batch['image'] for batch in unlabelled])[:5]
  given = {'steps': (6, 4, 4), 'hyper': lambda stage: HYPER, 'checkpoints': (2, 4, 6),
           'draw': lambda stage, k, n: [k % n, (k + 1) % n]}
  result = self_training.st_plus_plus(
    [networks[name] for name in ('one', 'two', 'three')], [labelled] * 3, images, **given)
  assert sorted(result['reliable'] + result['unreliable']) == list(range(5))
  assert len(result['reliable']) == 2
  worst = min(result['scores'][i] for i in result['reliable'])
  assert worst >= max(result['scores'][i] for i in result['unreliable'])
  for indices, stage in ((result['reliable'], 1), (result['unreliable'], 4)):
    for i in indices:
      expected = self_training.predict(result['params'][stage], images[i:i + 1])[0]
      np.testing.assert_array_equal(result['masks'][i], expected)
