"""What the tests of methods against the oracles share."""

import jax
import jax.numpy as jnp
import numpy as np

from gta_jax.methods.accumulation import Accumulation
from tests import tiny

STEPS = 3


def as_variables(params):
  """An oracle's float64 parameters as a network's variables."""
  return {'params': jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params),
          'batch_stats': {key: {} for key in params}}


def state_of(method, tools, networks, *, seed=5):
  """The method's first state with these networks, name -> an oracle's parameters."""
  state, optimizer = tiny.first_state(method, tools, seed=seed), tools.make_optimizer()
  networks = {name: as_variables(params) for name, params in networks.items()}
  return state.with_networks(**networks).replace(optimizers={
    name: optimizer.init(networks[name]['params']) for name in state.optimizers})


def batches(labelled, unlabelled):
  """The streams of a step."""
  return {'labelled': labelled, 'unlabelled': unlabelled}


def assert_close(ours, theirs, rtol=1e-5, atol=1e-6):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


def assert_networks(state, networks, **tolerance):
  """The parameters of the state are the oracle's."""
  for name, params in networks.items():
    assert_close(state.networks[name]['params'], params, **tolerance)


def at_once(function):
  """The function as one program that gives NumPy's arrays; op by op, each would be compiled."""
  compiled = jax.jit(function)
  return lambda *arrays: jax.tree.map(np.asarray, compiled(*arrays))


def corners(mask):
  """First and last row and column + 1 of the box in a mask [H,W], as oracles take it."""
  rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
  return (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if len(rows) else (0, 0, 0, 0)


def plain(state):
  """The state with its key as numbers, for comparisons."""
  return state.replace(key=jax.random.key_data(state.key))


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def differs(one, other):
  return any(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.any(x != y)), one, other)))


def assert_contract(method, *, network=None, batch=4):
  """What every step keeps: tree, shapes, dtypes, finite numbers, one trace; padding and void.

  Returns: the state after the step, and its metrics.
  """
  network = network or tiny.conv_network()
  tools = tiny.make_tools(network, batch=batch)
  method.check(tools)
  stage, = (s for s in method.stages(tools) if s.name == 'main')
  traces = []

  def counted(*args):
    traces.append(1)
    return stage.step(*args)

  step = jax.jit(counted)
  state = tiny.first_state(method, tools)
  labelled, unlabelled = tiny.make_batches(9, batch=batch)
  after, metrics = step(state, batches(labelled, unlabelled))
  assert jax.tree.structure(after) == jax.tree.structure(state)
  for new, old in zip(*map(jax.tree.leaves, (after, state)), strict=True):
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
  assert all(np.all(np.isfinite(value)) for value in jax.tree.leaves((plain(after), metrics)))
  assert int(after.step) == int(state.step) + 1
  for name in state.optimizers:
    assert differs(after.networks[name]['params'], state.networks[name]['params'])

  hidden = ~unlabelled['valid'][..., None]
  noise = np.random.default_rng(0).integers(0, 256, unlabelled['image'].shape, dtype=np.uint8)
  changed = {**unlabelled, 'image': np.where(hidden, noise, unlabelled['image'])}
  other, _ = step(state, batches(labelled, changed))
  assert_equal(plain(after), plain(other))

  # Nothing has a label and nothing is valid.
  empty = {**labelled, 'label': np.full_like(labelled['label'], 255)}
  nothing, losses = step(state, batches(
    empty, {**unlabelled, 'valid': np.zeros_like(unlabelled['valid'])}))
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((plain(nothing), losses)))
  assert len(traces) == 1
  return after, metrics


def assert_cut_batches_are_the_whole_step(method, *, batch=4):
  """In a network without statistics and dropout, passes over parts change nothing but rounding."""
  found = []
  for accumulation in (Accumulation(), Accumulation(per_device=2)):
    tools = tiny.make_tools(tiny.linear_network(), batch=batch, accumulation=accumulation)
    state = tiny.first_state(method, tools)
    stage, = (s for s in method.stages(tools) if s.name == 'main')
    after, metrics = jax.jit(stage.step)(state, batches(*tiny.make_batches(3, batch=batch)))
    found.append((plain(after), metrics))
  assert_close(*found)
