"""What the comparison runs, with which budget, and how it orders its table; no training."""

import importlib
import sys
from pathlib import Path

import pytest

from gta_jax.methods.registry import METHODS, make_method

# The benchmarks are scripts that import one another by their bare names.
sys.path.append(str(Path(__file__).parents[1] / 'benchmarks'))
compare = importlib.import_module('compare_methods')
cases = importlib.import_module('cases')


def test_systems_are_no_variants():
  found = compare.systems()
  assert {'gta', 'sup_only', 'mean_teacher', 'cutmix', 'unimatch_v2', 'corrmatch'} <= set(found)
  assert not {'gta_alpha_0.99', 'ema_all', 'gta_confidence', 'corrmatch_released'} & set(found)
  assert {METHODS[name].kind for name in found} >= {named.kind for name, named in METHODS.items()
                                                    if not name.endswith('_torchsemiseg')}


def read(method, *flags):
  return cases.read_method_config('configs/shapes.py:8', method, 'scratch', flags)


def test_compute_scales_steps_by_counted_cost_and_all_epochs_with_them():
  config = read('unimatch_v2', '--config.train.epochs=40')
  assert compare.budget_fields(config, 'steps') == {}
  fields = compare.budget_fields(config, 'compute')
  assert fields['train.epochs'] * make_method('unimatch_v2').cost == pytest.approx(
    40 * make_method('gta').cost)
  assert fields['method.warmup_epochs'] == pytest.approx(6 * 0.7)  # the config file's, scaled
  assert compare.budget_fields(read('gta'), 'compute')['train.epochs'] == read('gta').train.epochs


def test_table_is_sorted_by_the_network_that_predicts():
  def runs(network, *scores):
    return [{'last': {'step': 7, network: {'miou': score}, 'student': {'miou': 0.99}}}
            for score in scores]

  found = compare.table(
    {'gta': runs('teacher', 0.4, 0.5), 'corrmatch': runs('model', 0.6)}, {'gta': 2.5}).splitlines()
  assert found[2:] == [
    '| corrmatch | model | 60.00 | 7 | 3.33 | – |',
    '| gta | teacher | 45.00 ± 7.07 | 7 | 2.33 | 2.50 |']


def test_a_folder_with_another_plan_is_refused(tmp_path):
  compare.keep_plan(tmp_path, {'budget': 'steps'})
  compare.keep_plan(tmp_path, {'budget': 'steps'})
  with pytest.raises(SystemExit, match='give another --out'):
    compare.keep_plan(tmp_path, {'budget': 'compute'})
