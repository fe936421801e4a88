"""What is read in a compiled program's text, of which all is known; and what is compiled."""

from pathlib import Path

import cases
import gpu_target as target
import hlo
import jax
import program_report as report
import pytest

TEXT = (Path(__file__).parent / 'program.hlo.txt').read_text()
TFLOPS = {'bfloat16': 100.0, 'tf32': 50.0, 'float32': 10.0}
PASS = 2 * (2 * 65 * 65 * 32) * 9 * 16  # operations of the convolution, and of each gradient


@pytest.fixture(scope='module')
def program():
  return hlo.parse(TEXT)


@pytest.mark.parametrize('name', ['c', 'g', 'i'])
def test_operations_of_library_calls(program, name):
  assert hlo.operations(program[name], program) == PASS


def test_operations_of_products_in_fusions_and_of_loops(program):
  assert hlo.fused_operations(program['times'], program) == 2 * 4 * 8 * 2
  assert hlo.operations(program['m'], program) == 2 * 8450 * 64 * 32
  runs = {i.name: times for i, times in hlo.executed(program)}
  assert runs['times'] == 31 and runs['c'] == 1
  assert not {'dot.1', 'x', 'y', 'loop'} & runs.keys()


def test_workspace_is_no_traffic(program):
  assert hlo.traffic(program['c'], program) == 2 * (2 * 65 * 65 * (16 + 32) + 9 * 16 * 32)


def test_origin_is_the_line_of_the_package_and_the_place_in_the_network(program):
  assert program['c'].part == 'backbone'
  assert report.where(program['c']) == 'models/layers.py:41 backbone/layer1_0/conv2'
  assert program['wide'].source == 'methods/gta.py:99'


def test_windows_buffers_transposes_and_collectives_are_found(program):
  window, = report.wide_windows(program)
  assert window['window'].startswith('65x65 stride=2x2') and window['by'] == 'cuDNN forward'
  assert window['where'].startswith('models/layers.py:41 decoder/aspp')
  wide, = report.large_float32(program)
  assert (wide['shape'], wide['count']) == ('f32[2,513,513,64]', 1)
  # Not the kernel's transpose, and not what has fewer bytes.
  assert report.transposes(program, least=1e5) == [
    {'shape': 'bf16[2,32,65,65]', 'where': '(unknown)', 'count': 1, 'megabytes': 0.5408},
    {'shape': 'bf16[2,65,65,32]', 'where': '(unknown)', 'count': 1, 'megabytes': 0.5408}]
  assert report.collectives(program) == {
    'all-reduce of kernels': {'number': 31, 'megabytes': pytest.approx(31 * 32 / 1e6)}}


def test_a_kernel_takes_the_longer_of_its_operations_and_its_bytes(program):
  def seconds(bandwidth):
    return report.cost(program['c'], program, tflops=TFLOPS, bandwidth=bandwidth).seconds

  assert seconds(1e15) == pytest.approx(PASS / 100e12)
  assert seconds(1e9) == pytest.approx(hlo.traffic(program['c'], program) / 1e9)
  by_part, by_class = report.costs(program, tflops=TFLOPS, bandwidth=1e12)
  assert by_part['backbone'].kernels == 1 and by_class['collectives'].kernels == 31
  assert by_class['cuDNN kernel gradient'].operations == PASS


def test_one_program_is_estimated_for_every_card():
  found = target.on_cards(TEXT)
  assert found.keys() == set(target.names()) - {'t4'}  # which has no bfloat16
  gpu = target.read_gpu('l4')
  assert found['l4'] == pytest.approx(
    report.report(TEXT, '', tflops=gpu.tflops, bandwidth=gpu.bandwidth)['estimated_ms'])
  assert target.on_cards(TEXT.replace('bf16[', 'f16[')).keys() == set(target.names())


def test_what_runs_beside_a_collective_is_counted():
  add = '  %{} = f32[1000]{{0}} add(%x, %x)'
  lines = ['ENTRY %main {', '  %x = f32[1000]{0} parameter(0)',
           '  %s = f32[1000]{0} all-reduce-start(%x), to_apply=%sum', add.format('a'),
           add.format('b'), '  %d = f32[1000]{0} all-reduce-done(%s)',
           '  %t = f32[1000]{0} all-reduce-start(%d), to_apply=%sum',
           '  %e = f32[1000]{0} all-reduce-done(%t)', add.format('c'), '}']
  found = report.overlaps(hlo.parse('\n'.join(lines)), tflops=TFLOPS, bandwidth=12e6)
  assert found == {'all-reduce': {
    'number': 2, 'beside_kernels': 1, 'beside_ms': pytest.approx(2.0)}}  # two of 12,000 bytes


def test_buffers_at_the_peak_are_named(program):
  live = '''HloLiveRange (max 9):
  Live ranges at 13 (peak):
    wide{}: 800 bytes (cumulative: 800 bytes)
    x{}: 100 bytes (cumulative: 900 bytes)
    c{1}: 7 bytes (cumulative: 907 bytes)
    c{}: 16 bytes (cumulative: 923 bytes)
  Stack trace breakdown for peak usage: 923 bytes
'''
  found = report.at_the_peak(live, program)  # without the table of c's two results
  assert [(row['shape'], row['where']) for row in found] == [
    ('f32[2,513,513,64]', 'methods/gta.py:99'), ('bf16[2,65,65,16]', 'state and batches'),
    ('u8[1024]', 'models/layers.py:41 backbone/layer1_0/conv2')]


@pytest.mark.parametrize('gigabytes, card', [(12, '16 GB'), (14, '24 GB'), (61, 'none of them')])
def test_a_step_fits_three_quarters_of_a_card(gigabytes, card):
  memory = {'arguments': 10**9, 'of which updated in place': 10**9, 'code and constants': 0,
            'temporaries': (gigabytes - 1) * 10**9}
  found = {'config': 'c.py', 'set': ['a=1'], 'gpu': 'h100', 'devices': 1, 'memory': memory,
           **report.report(TEXT, '', tflops=TFLOPS, bandwidth=1e12)}
  row = report.summary(found)
  assert row[:6] == ('c.py a=1', 'h100', 1, f'{gigabytes}.0', '1.0', card)
  assert row[8] == 1 and len(row) == 1 + len(report.SUMMARY)


@pytest.mark.parametrize('name', target.names())
def test_gpus_are_described(name):
  gpu = target.read_gpu(name)
  assert 1e11 < gpu.bandwidth < 1e13 and 1e10 < gpu.memory < 1e11
  assert gpu.tflops['bfloat16'] >= gpu.tflops['tf32'] >= gpu.tflops['float32'] > 1


def test_an_unknown_stage_and_an_odd_batch_are_refused():
  config = cases.read_whole_config('configs/shapes.py:8', ['data.crop=17'])
  with pytest.raises(ValueError, match='--stage x is unknown; use one of: warmup, main'):
    target.make_stage(config, 'x', 1)
  with pytest.raises(ValueError, match='does not split over 3 devices'):
    target.make_stage(config, None, 3)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['sup_only', 'gta', 'u2pl', 'unimatch', 'cct'])
def test_no_method_convolves_with_a_window_of_the_whole_map_on_gpus(method):
  """XLA makes cuDNN's gradients of wide windows without a stride, and of others such windows."""
  config = cases.read_whole_config(
    f'configs/voc.py:183,method={method}', ['data.crop=129', 'model.depth=50'])
  state, stage = target.make_stage(config, None, 1)
  traced = jax.jit(stage.step).trace(state, target.batch_shapes(config, stage))
  text = traced.lower(lowering_platforms=('cuda',)).as_text(dialect='hlo')
  windows = report.wide_windows(hlo.parse(text))
  assert windows and not [row for row in windows if 'stride' in row['window']]
