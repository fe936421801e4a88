"""States of GTA and of what it is compared with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.methods.registry import METHODS, make_method, option_names
from gta_jax.methods.supervised import Supervised
from gta_jax.ops import trees
from tests import tiny

WARMUP = 1


class Setup:
  """A state in which all three networks and both momenta differ, and the steps to take."""

  def __init__(self, name, recipe='paper', *, network=None, rate=0.05, **options):
    self.network = network or tiny.conv_network()
    self.method = make_method(name, recipe=recipe, **options)
    self.tools = tiny.make_tools(self.network, rate=rate, batch=6)
    self.method.check(self.tools)
    steps = tiny.make_steps(self.method, self.tools)
    self.warmup, self.handover, self.step = map(steps.get, ('warmup', 'handover', 'main'))
    state = tiny.first_state(self.method, self.tools)
    key = state.key
    state = perturbed(state.replace(key=None), seed=2).replace(key=key, step=jnp.int32(WARMUP + 3))
    if shared := getattr(self.method, 'shared', ()):
      student, assistant = state.networks['student'], state.networks['assistant']
      part = trees.copy(trees.select(student['params'], shared))
      params = trees.replace(assistant['params'], part)
      state = state.with_networks(assistant={**assistant, 'params': params})
    self.state = state

  @property
  def student(self):
    return self.state.networks['student']


def perturbed(tree, seed):
  """Every float leaf with positive noise of its own."""
  leaves, structure = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)
  noisy = [
    leaf + rng.uniform(0, 0.1, leaf.shape).astype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    for leaf in leaves
  ]
  return jax.tree.unflatten(structure, noisy)


# Methods that differ in no more than a number are one program; one of them stands for all.
DISTINCT = [name for name, named in METHODS.items() if issubclass(named.kind, Supervised)
            and named.kind.__module__.endswith(('gta', 'mean_teacher', 'supervised'))
            and not name.startswith(('gta_alpha', 'gta_warmup')) and name != 'ema_encoder']

every_method = pytest.mark.parametrize('name', [
  pytest.param(name, marks=pytest.mark.slow) if METHODS[name].note.startswith('Table') else name
  for name in DISTINCT])

every_recipe = pytest.mark.parametrize('recipe', ['paper', 'released'])


@functools.cache
def setup(name, recipe='paper'):
  return Setup(name, recipe)


@functools.cache
def pixelwise(name):
  """A model without neighbours or statistics, and no mixing."""
  mixing = {'mixing': 'none'} if 'mixing' in option_names(name) else {}
  return Setup(name, network=tiny.linear_network(), **mixing)
