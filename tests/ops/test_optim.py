"""The optimiser against torch.optim.SGD, and the poly schedule by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gta_jax.ops.optim import make_optimizer, poly_schedule


def test_poly_schedule_by_hand():
  rate = poly_schedule(0.1, total_steps=10, power=0.9)
  np.testing.assert_allclose(
    [rate(0), rate(5), rate(9)], [0.1, 0.1 * 0.5**0.9, 0.1 * 0.1**0.9], rtol=1e-6)
  assert rate(10) == 0 and rate(11) == 0
  with pytest.raises(ValueError, match='total_steps=0'):
    poly_schedule(0.1, total_steps=0)


def test_ten_steps_agree_with_torch():
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  start = {key: rng.normal(size=(3, 2)).astype(np.float32) for key in ('backbone', 'decoder')}
  target = rng.normal(size=(3, 2)).astype(np.float32)
  total, decay = 10, 0.01
  schedule = poly_schedule(0.05, total_steps=total)

  def loss(p):
    return ((p['backbone'] * p['decoder'] - target) ** 2).sum()

  params = jax.tree.map(jnp.array, start)
  optimizer = make_optimizer(schedule, multipliers={'decoder': 10.0}, weight_decay=decay)
  opt_state = optimizer.init(params)
  theirs = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
  sgd = torch.optim.SGD(
    [{'params': [theirs['backbone']]}, {'params': [theirs['decoder']], 'm': 10.0}], lr=1.0,
    momentum=0.9, weight_decay=decay)
  goal = torch.tensor(target)
  for step in range(total):
    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
    params = optax.apply_updates(params, updates)
    for group in sgd.param_groups:
      group['lr'] = float(schedule(step)) * group.get('m', 1.0)
    sgd.zero_grad()
    ((theirs['backbone'] * theirs['decoder'] - goal) ** 2).sum().backward()
    sgd.step()
    for key, value in params.items():
      np.testing.assert_allclose(value, theirs[key].detach(), rtol=1e-4, atol=1e-6)
