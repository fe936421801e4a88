"""Hue and boxes as options of every method with pseudo-labels."""

import pytest

from gta_jax.methods.registry import make_method
from tests import tiny


def test_hue_needs_jitter():
  tools = tiny.make_tools(tiny.linear_network())
  with pytest.raises(ValueError, match='method.jitter=0 jitters none; raise method.jitter'):
    make_method('mean_teacher', hue=0.25).check(tools)
  make_method('mean_teacher', hue=0.25, jitter=0.8).check(tools)


@pytest.mark.parametrize('name', ['gta', 'cutmix'])
def test_boxes_and_hue_are_options(name):
  method = make_method(name, mixing='boxes', hue=0.25, jitter=0.8)
  assert (method.mixing, method.hue) == ('boxes', 0.25)
  with pytest.raises(ValueError, match='cutout, boxes'):
    make_method(name, mixing='box')
  with pytest.raises(ValueError, match='hue=0.6 is out of range; use 0 to 0.5'):
    make_method(name, hue=0.6)
