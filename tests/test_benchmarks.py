"""What the benchmarks of speed count, on programs whose counts are known."""

import importlib
import types

import comparison
import dilated_convolutions as dilated
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.data import folder
from gta_jax.models.layers import conv
from gta_jax.ops.resizing import resize_bilinear


def test_operations_and_parts_of_a_program_are_known():
  def step(x, kernel):
    with jax.named_scope('backbone'), jax.named_scope('block'):
      x = conv(x, kernel)
    return resize_bilinear(x, (10, 5))

  lowered = jax.jit(step).lower(jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4)))
  found = hlo.parse(lowered.as_text(dialect='hlo', debug_info=True))
  operations = {}
  for instruction in found.values():
    if count := hlo.operations(instruction, found):
      operations[instruction.part] = operations.get(instruction.part, 0) + count
  assert operations == {
    'backbone': 2 * (2 * 5 * 5 * 4) * 9 * 3, 'resizing': 2 * (2 * 10 * 5 * 4) * 5}
  compiled = hlo.parse(lowered.compile().as_text())
  assert any(i.part == 'resizing' for i in compiled.values())


def test_traffic_counts_operands_and_results():
  lowered = jax.jit(lambda a, b: a @ b).lower(jnp.ones((2, 3)), jnp.ones((3, 5)))
  found = hlo.parse(lowered.as_text(dialect='hlo', debug_info=True))
  dot = next(i for i in found.values() if i.opcode == 'dot')
  assert hlo.traffic(dot, found) == 4 * (2 * 3 + 3 * 5 + 2 * 5)


@pytest.mark.parametrize('dilation', [1, 3])
def test_nine_products_are_a_convolution(dilation):
  rng = np.random.default_rng(0)
  x, kernel = jnp.array(rng.normal(size=(2, 9, 8, 3))), jnp.array(rng.normal(size=(3, 3, 3, 4)))
  np.testing.assert_allclose(
    dilated.products(x, kernel, dilation), conv(x, kernel, dilation=dilation),
    rtol=1e-5, atol=1e-5)


def test_gradients_are_sent_in_the_dtype_of_the_network(monkeypatch):
  jax.devices()  # They are this process's for good, before importing it changes the flags.
  monkeypatch.setenv('XLA_FLAGS', '')
  scaling = importlib.import_module('scaling')
  wide, half = (
    scaling.on_paper(types.SimpleNamespace(paper='configs/shapes.py', set=[f'model.dtype="{x}"']))
    for x in ('float32', 'bfloat16'))
  assert half['gradients'] == pytest.approx(wide['gradients'] / 2, rel=0.01)
  assert half['BatchNorm'] == wide['BatchNorm']


def test_both_ways_to_label_start_alike_and_are_compared_by_seed():
  labelling = importlib.import_module('label_next')
  text = labelling.table(
    {'label_next': [[10.0, 30.0], [20.0, 40.0]], 'random': [[10.0, 20.0], [20.0, 34.0]]}, 10, 5)
  assert '| labelled images | 10 | 15 |' in text
  assert '| label_next, 2 seeds | 15.0 ± 7.1 | 35.0 ± 7.1 |' in text
  assert '| difference of a seed | +0.0 ± 0.0 | +8.0 ± 2.8 |' in text


def test_lists_are_read_as_a_data_folder_reads_them(tmp_path):
  labelling = importlib.import_module('label_next')
  (tmp_path / 'val.txt').write_text('a.png\r\n\n  b\nc', newline='')
  assert labelling.read_list(tmp_path / 'val.txt', ['a', 'b', 'c', 'd']) == ['a', 'b', 'c']


def test_masks_of_images_to_be_asked_for_are_hidden(tmp_path):
  labelling = importlib.import_module('label_next')
  data = labelling.write_shapes(tmp_path / 'data', training=4, validation=2)
  ids = [f'train/{path.stem}' for path in sorted((data / 'masks' / 'train').iterdir())]
  val = (data / 'splits' / 'val.txt').read_text().split()
  for kept in (ids[:2], ids[:3]):
    comparison.write_list(tmp_path / 'lists' / '9' / 'labeled.txt', kept)
    comparison.write_list(tmp_path / 'lists' / 'val.txt', val)
    hidden = labelling.hide_masks(data, tmp_path / 'hidden', {*kept, *val})
    found = folder.read_folder(hidden, labelled='9', lists=tmp_path / 'lists')
    assert len(found.unlabelled) == 4 - len(kept) and found.labelled == tuple(kept)
    assert not any(map(found.reader.has_mask, found.unlabelled))
