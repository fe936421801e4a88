"""The method of docs/new_method.md, run as it stands there."""

import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from gta_jax.methods import registry
from gta_jax.methods.cps import Cps
from tests import tiny
from tests.methods import kit

PAGE = (Path(__file__).parent.parent / 'docs' / 'new_method.md').read_text()


@pytest.fixture
def registered(monkeypatch):
  """The page's first block as a module, and its second as a line of METHODS."""
  code, line = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
  module = types.ModuleType('two_networks')
  exec(compile(code, 'docs/new_method.md', 'exec'), module.__dict__)
  entry = eval('{' + line + '}', {'Named': registry.Named, **module.__dict__})
  monkeypatch.setattr(registry, 'METHODS', {**registry.METHODS, **entry})
  return next(iter(entry))


def test_the_example_takes_steps_and_keeps_the_contract(registered):
  kit.assert_contract(registry.make_method(registered))
  kit.assert_cut_batches_are_the_whole_step(registry.make_method(registered))


def test_the_example_is_cps_on_unlabelled_images(registered):
  """At the same weight, the labels of labelled images aside, it takes the step of cps."""
  tools, found = tiny.make_tools(tiny.linear_network()), []
  for method in (registry.make_method(registered, cross_weight=0.7),
                 Cps(cross_on='unlabelled', cross_weight=0.7)):
    state = tiny.first_state(method, tools)
    state, _ = jax.jit(method.step(tools))(state, kit.batches(*tiny.make_batches(4)))
    found.append([state.networks[name] for name in method.scored])
  kit.assert_close(*found)


def test_options_are_checked_and_the_method_is_listed(registered):
  with pytest.raises(ValueError, match='cross_weight=-1 is out of range'):
    registry.make_method(registered, cross_weight=-1)
  assert re.search(r'two_networks +14 +two networks learn', registry.table())


def test_every_module_and_helper_that_the_page_names_exists():
  root = Path(__file__).parent.parent
  for name in re.findall(r'`((?:methods|ops|tests|gta_jax)/[\w/]+\.py)`', PAGE):
    assert (root / name).exists() or (root / 'gta_jax' / name).exists(), name
  for name in re.findall(r'`(assert_\w+)`', PAGE):
    assert hasattr(kit, name)
  code, _ = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
  of_class = code[code.index('@dataclasses'):].splitlines()
  assert np.sum([bool(line.strip()) for line in of_class]) <= 30
