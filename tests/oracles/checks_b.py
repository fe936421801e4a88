"""Checks that every oracle of sheet b must pass."""

import copy

import numpy as np


def first(problem):
  """(state, labelled, unlabelled, randomness) of the first step."""
  return problem[0], *(entries[0] for entries in problem[1:])


def run(method, problem, hyper=None):
  """(state after the last step, losses of each step); refuses a step that writes into its input."""
  state, losses = problem[0], []
  for labelled, unlabelled, randomness in zip(*problem[1:], strict=True):
    given = (state, labelled, unlabelled, randomness)
    before = copy.deepcopy(given)
    state, found = method.step(state, labelled, unlabelled, **randomness, hyper=hyper)
    np.testing.assert_equal(given, before)
    losses.append(found)
  assert np.isfinite([list(found.values()) for found in losses]).all()
  return state, losses


def padding_has_no_influence(method, hyper=None):
  """What lies under pixels that are not valid changes nothing, in any view."""
  problem = method.make_problem(1)
  changed = copy.deepcopy(problem)
  for unlabelled, randomness in zip(changed[2], changed[3], strict=True):
    unlabelled['image'][~unlabelled['valid']] = 7
    if 'donor' in randomness:
      randomness['donor']['image'][~randomness['donor']['valid']] = 9
    if 'strong' in randomness:
      randomness['strong'][..., ~unlabelled['valid'], :] = 0.3
  np.testing.assert_equal(run(method, problem, hyper), run(method, changed, hyper))


def every_step_moves(method, hyper=None):
  """Each key of each network that learns differs after three steps."""
  problem = method.make_problem(2)
  state, _ = run(method, problem, hyper)
  for network in state['optimizers']:
    for key, layer in state['networks'][network].items():
      for name, value in layer.items():
        assert np.abs(value - problem[0]['networks'][network][key][name]).max() > 0, (key, name)
