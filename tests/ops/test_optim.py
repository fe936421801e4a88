"""The optimiser against torch.optim.SGD, and the poly schedule by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gta_jax.ops.optim import make_adam, make_sgd, poly_schedule


def test_poly_schedule_by_hand():
  rate = poly_schedule(0.1, total_steps=10, power=0.9)
  np.testing.assert_allclose(
    [rate(0), rate(5), rate(9)], [0.1, 0.1 * 0.5**0.9, 0.1 * 0.1**0.9], rtol=1e-6)
  assert rate(10) == 0 and rate(11) == 0
  with pytest.raises(ValueError, match='total_steps=0'):
    poly_schedule(0.1, total_steps=0)


def assert_agrees_with_torch(optimizer, torch_optimizer, schedule, *, first_step=0):
  """Ten steps on three parameters, two of them in groups with ten times the rate."""
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  shapes = {'backbone': (3, 2), 'decoder': (3, 2), 'classifier': (2,)}
  start = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
  target = rng.normal(size=(3, 2)).astype(np.float32)

  def loss(p, target):
    return ((p['backbone'] * p['decoder'] + p['classifier'] - target) ** 2).sum()

  params = jax.tree.map(jnp.array, start)
  state = optimizer.init(params)
  theirs = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
  groups = [{'params': [theirs['backbone']], 'm': 1.0}, {'params': [theirs['decoder']], 'm': 10.0},
            {'params': [theirs['classifier']], 'm': 10.0}]
  other = torch_optimizer(groups)
  goal = torch.tensor(target)
  for step in range(first_step, first_step + 10):
    updates, state = optimizer.update(
      jax.grad(loss)(params, target), state, params, step=jnp.int32(step))
    params = optax.apply_updates(params, updates)
    for group in other.param_groups:
      group['lr'] = float(schedule(step)) * group['m']
    other.zero_grad()
    loss(theirs, goal).backward()
    other.step()
    for key, value in params.items():
      np.testing.assert_allclose(value, theirs[key].detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('decay', ['all', 'kernels'])
def test_ten_steps_of_sgd_agree_with_torch(decay):
  """The rate is that of the run's step, also where the optimiser begins late."""
  torch = pytest.importorskip('torch')
  schedule = poly_schedule(0.02, total_steps=20)

  def sgd(groups):
    for group in groups[2:] if decay == 'kernels' else ():
      group['weight_decay'] = 0.0
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9, weight_decay=0.01)

  ours = make_sgd(schedule, multiplier=10.0, weight_decay=0.01, decay=decay)
  assert_agrees_with_torch(ours, sgd, schedule, first_step=5)


def test_ten_steps_of_adamw_agree_with_torch():
  torch = pytest.importorskip('torch')
  schedule = poly_schedule(0.01, total_steps=10)
  assert_agrees_with_torch(
    make_adam(schedule, multiplier=10.0, weight_decay=0.01),
    lambda groups: torch.optim.AdamW(groups, lr=1.0, weight_decay=0.01), schedule)


@pytest.mark.parametrize('make', [make_adam, make_sgd])
def test_a_head_without_a_gradient_begins_later_as_at_the_first_step(make):
  optimizer = make(poly_schedule(0.01, total_steps=1000, power=0.0))
  params = {'backbone': jnp.ones(3), 'head': {'kernel': jnp.ones(2), 'bias': jnp.ones(2)}}
  gradient = {'backbone': jnp.ones(3), 'head': {'kernel': jnp.ones(2), 'bias': jnp.zeros(2)}}
  idle = {**gradient, 'head': jax.tree.map(jnp.zeros_like, params['head'])}
  fresh = state = optimizer.init(params)
  for _ in range(50):
    updates, state = optimizer.update(idle, state, params, step=jnp.int32(0))
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates['head']))
  for _ in range(3):
    (late, state), (early, fresh) = (
      optimizer.update(gradient, of, params, step=jnp.int32(0)) for of in (state, fresh))
    np.testing.assert_allclose(late['head']['kernel'], early['head']['kernel'], rtol=1e-6)


def test_a_schedule_of_a_stage_starts_at_its_first_step():
  rate = poly_schedule(0.1, total_steps=10, first_step=30)
  np.testing.assert_allclose([rate(30), rate(35)], [0.1, 0.1 * 0.5**0.9], rtol=1e-6)
