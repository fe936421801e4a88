import numpy as np
import pytest

from tests.oracles import linear_model as lm
from tests.oracles import u2pl
from tests.oracles.mean_teacher_consistency import ramped

INSIDE = lm.box_mask(np.array([[[0, 0, 2, 3]], [[1, 1, 4, 4]]]), (4, 5))
ANCHORS, NEGATIVES, SIZE = 3, 4, 6


def hyper(**options):
  return lm.tiny_hyper(**{
    'alpha': 20, 'confidence': 0.3, 'low_rank': 1, 'high_rank': 3, 'temperature': 0.5,
    'queue_sizes': [12, 8, 8], 'contrast_weight': 0.1, 'ema_decay': ramped(0.99),
    'progress': lambda step: step / 10, **options})


def problem(seed=0):
  networks, labelled, unlabelled = lm.make_problem(seed, names=('student', 'teacher'))
  rng = np.random.default_rng(seed + 100)
  for params in networks.values():
    params['representation'] = lm.random_layer(rng, 5, SIZE)
  queues = [np.zeros((0, SIZE))] * 3
  draws = {'draw_anchors': u2pl.from_uniforms(rng.random((3, ANCHORS))),
           'draw_keys': u2pl.from_uniforms(rng.random((3, ANCHORS, NEGATIVES)))}
  return lm.initial_state(networks, ('student',), queues=queues), labelled, unlabelled, draws


def test_gradient_agrees_with_finite_differences():
  state, (labelled, *_), (unlabelled, *_), draws = problem()
  student, teacher = (state['networks'][name] for name in ('student', 'teacher'))
  options = hyper(contrast_weight=2.0)
  mixed = u2pl.pseudo_label(teacher, unlabelled, INSIDE)
  fixed = u2pl.targets(teacher, labelled, mixed, state['queues'], options, 0.0)

  def total(params):
    return u2pl.objective(params, labelled, mixed, fixed, **draws, hyper=options)[0]['total']

  losses, gradient = u2pl.objective(student, labelled, mixed, fixed, **draws, hyper=options)
  assert losses['contrast'] > 0 and losses['unlabelled'] > 0
  lm.assert_trees_close(gradient, lm.finite_differences(total, student))


def test_hand_computed_contrast():
  # Class 0: anchor (2,0), positive (0,1): cosine 0; keys (1,0) and (-3,0): cosines 1 and -1.
  # Class 1 has a positive but no anchors: it counts in the divisor only. Class 2 is absent.
  fixed = {'present': np.array([True, True, False]),
           'positive': {0: np.array([0.0, 1.0]), 1: np.ones(2)},
           'candidates': {0: np.array([1]), 1: np.array([], int), 2: np.array([], int)},
           'queues': [np.array([[1.0, 0.0], [-3.0, 0.0]])] * 3}
  representation = np.array([[5.0, 5.0], [2.0, 0.0]])
  given = (lambda c, n: np.array([0]), lambda c, n: np.array([[0, 1]]), 0.5)
  loss, delta = u2pl.contrast(representation, fixed, *given)
  denominator = 1 + np.exp(2) + np.exp(-2)
  assert loss == pytest.approx(np.log(denominator) / 2)
  # Along (0,1) only the positive's cosine moves: (share_0 - 1) / T / |a| / divisor.
  np.testing.assert_allclose(delta, [[0, 0], [0, (1 / denominator - 1) / 0.5 / 2 / 2]], atol=1e-15)
  fixed['present'] = np.array([True, False, False])
  assert u2pl.contrast(representation, fixed, *given)[0] == 0


def test_drop_and_negatives_on_given_entropies():
  # 10 unlabelled pixels of one image with logits (x, 0, 0): the smaller x, the larger the entropy.
  eye = {'kernel': np.eye(3), 'bias': np.zeros(3)}
  teacher = {**dict.fromkeys(lm.KEYS, eye), 'representation': eye}
  image = np.zeros((1, 1, 10, 3), np.uint8)
  image[0, 0, :, 0] = np.arange(10, 110, 10)
  mixed = {'image': image, 'valid': np.ones((1, 1, 10), bool), 'label': np.zeros(10, int)}
  labelled = {'image': image[:, :, :2], 'label': np.array([[[1, 255]]])}
  memory = [np.full((2, 3), -1.0)] * 3
  options = hyper(queue_sizes=[3, 3, 3])
  fixed = u2pl.targets(teacher, labelled, mixed, memory, options, 0.0)
  assert fixed['kept'].tolist() == [False] * 2 + [True] * 8  # 20% of ten, linear interpolation
  assert fixed['present'].tolist() == [True, True, False]
  np.testing.assert_allclose(fixed['positive'][0], [95 / 255, 0, 0])  # the two of low entropy
  # The labelled pixel has label 1, class 0 is its likeliest: a negative of class 0, no other is.
  np.testing.assert_allclose(fixed['queues'][0], [[-1] * 3, [-1] * 3, [10 / 255, 0, 0]])
  # Classes 1 and 2 are less likely at the two dropped pixels: the oldest key leaves the queue.
  np.testing.assert_allclose(fixed['queues'][2], [[-1] * 3, [10 / 255, 0, 0], [20 / 255, 0, 0]])
  code = u2pl.targets(teacher, labelled, mixed, memory, {**options, 'negatives': 'code'}, 0.0)
  assert [len(queue) for queue in code['queues']] == [2, 2, 2]
  # Anchors: the two sure pixels of class 0 are above .34, the labelled one of class 1 is not.
  assert [len(fixed['candidates'][c]) for c in range(3)] == [2, 1, 0]
  sure = u2pl.targets(teacher, labelled, mixed, memory, {**options, 'confidence': 0.34}, 0.0)
  assert [sure['candidates'][c].tolist() for c in range(3)] == [[10, 11], [], []]
  # Of 11 pixels the 80th percentile is an entropy itself, and that pixel is dropped, too.
  eleven = {'image': np.concatenate([image, image[:, :, :1] + 200], 2),
            'valid': np.ones((1, 1, 11), bool), 'label': np.zeros(11, int)}
  assert u2pl.targets(teacher, labelled, eleven, memory, options, 0.0)['kept'].sum() == 8
  # Half way, ten per cent.
  assert u2pl.targets(teacher, labelled, mixed, memory, options, 0.5)['kept'].sum() == 9


def test_labels_are_of_clean_images_and_mixed_with_them():
  state, _, (unlabelled, *_), _ = problem()
  teacher = state['networks']['teacher']
  clean = lm.forward(teacher, lm.pixels(unlabelled))['logits'].argmax(1).reshape(2, 4, 5)
  mixed = u2pl.pseudo_label(teacher, unlabelled, INSIDE)
  expected = np.where(INSIDE, clean[::-1], clean)
  valid = np.where(INSIDE, unlabelled['valid'][::-1], unlabelled['valid'])
  np.testing.assert_array_equal(mixed['label'].reshape(2, 4, 5), np.where(valid, expected, 255))
  assert (expected != clean)[valid].any()


def test_padding_has_no_influence_over_several_steps():
  state, labelled, unlabelled, draws = problem()
  other = state
  for images, batch in zip(labelled, unlabelled, strict=True):
    state, losses = u2pl.step(state, images, batch, inside=INSIDE, **draws, hyper=hyper())
    image = np.where(batch['valid'][..., None], batch['image'], 200)
    other, _ = u2pl.step(other, images, {**batch, 'image': image}, inside=INSIDE, **draws,
                         hyper=hyper())
    assert losses['contrast'] > 0
    assert all(len(queue) <= n for queue, n in zip(state['queues'], (12, 8, 8), strict=True))
  lm.assert_trees_close(state['networks'], other['networks'], 0)


def test_first_average_is_a_copy_and_loss_has_the_sheets_divisor():
  state, (labelled, *_), (unlabelled, *_), draws = problem()
  teacher = state['networks']['teacher']
  layer = {'kernel': np.zeros((5, 3)), 'bias': np.zeros(3)}
  state['networks']['student'] = {**state['networks']['student'], 'classifier': layer}
  state, losses = u2pl.step(state, labelled, unlabelled, inside=INSIDE, **draws, hyper=hyper())
  lm.assert_trees_close(state['networks']['teacher'], state['networks']['student'], 0)
  n = u2pl.pseudo_label(teacher, unlabelled, INSIDE)['valid'].sum()
  assert losses['unlabelled'] == pytest.approx(n / losses['kept'] * np.log(3))
