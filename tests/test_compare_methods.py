"""What the comparison runs, with which budget, and how it orders its table; no training."""

import concurrent.futures
import os
import subprocess
from pathlib import Path

import cases
import compare_methods as compare
import comparison
import pytest

from gta_jax.data import proposals
from gta_jax.methods.registry import METHODS, make_method
from gta_jax.models.flaw_detector import map_size
from tests.data.test_inspection import make


def test_systems_are_no_variants():
  found = comparison.systems()
  assert {'gta', 'sup_only', 'mean_teacher', 'cutmix', 'unimatch_v2', 'corrmatch'} <= set(found)
  assert not {'gta_alpha_0.99', 'ema_all', 'gta_confidence', 'corrmatch_released'} & set(found)
  assert {METHODS[name].kind for name in found} >= {named.kind for name, named in METHODS.items()
                                                    if not name.endswith('_torchsemiseg')}


def read(method, *flags):
  return cases.read_method_config('configs/shapes.py:8', method, 'scratch', flags)


def test_compute_scales_steps_by_counted_cost_and_all_epochs_with_them():
  config = read('unimatch_v2', '--config.train.epochs=40')
  assert comparison.budget_fields(config, 'steps') == {}
  fields = comparison.budget_fields(config, 'compute')
  assert fields['train.epochs'] * make_method('unimatch_v2').cost == pytest.approx(
    40 * make_method('gta').cost)
  assert fields['method.warmup_epochs'] == pytest.approx(6 * 0.7)  # the config file's, scaled
  config = read('gta')
  assert comparison.budget_fields(config, 'compute')['train.epochs'] == config.train.epochs


def task(method='gta', seed=0, **changes):
  fields = [f'--config.{name}={value}' for name, value in changes.items()]
  return comparison.make_task('shapes:8', 'steps', method, seed, fields)


def line(method, seed, *, steps=7, **scores):
  return {'method': method, 'seed': seed, 'steps': steps, 'last': scores, 'best': scores,
          'seconds': 10 + seed, 'config': task(method, seed).digest}


def test_digest_is_of_what_decides_the_scores():
  assert task().digest == task(**{'data.threads': 7, 'data.store': '/elsewhere'}).digest
  config, older = read('gta'), read('gta')
  del older.train['init_from']  # a field that a config from before it lacks
  assert comparison.digest(config) == comparison.digest(older)
  assert len({task().digest, task(seed=1).digest, task('cutmix').digest,
              task(**{'train.init_from': "'run'"}).digest,
              task(**{'data.crop': 32}).digest,
              comparison.make_task('shapes:8', 'compute', 'cps', 0, []).digest,
              comparison.make_task('shapes:8', 'steps', 'cps', 0, []).digest}) == 7
  one, other, third = (task(**{'data.dir': f"'/{folder}'"}).digest
                       for folder in ('a/camvid', 'b/camvid', 'a/own'))
  assert one == other != third


def test_what_follows_from_a_folder_is_in_the_digest_and_scaled_by_the_budget(
  tmp_path, monkeypatch
):
  folder = f'--config.data.dir={make(tmp_path)}'
  wide = comparison.make_task('folder:2', 'steps', 'gta', 0, [folder])
  assert wide.flags == ('--config=configs/folder.py:2,method=gta,recipe=scratch', folder,
                        '--config.seed=0')
  # 1,000 steps of 5 an epoch; cps costs 12 where gta costs 7.
  scaled = comparison.make_task('folder:2', 'compute', 'cps', 0, [folder])
  assert f'--config.train.epochs={round(200 * 7 / 12, 6)}' in scaled.flags
  monkeypatch.setitem(proposals.RULES, 'data.image_scale', lambda *_: (0.5, 'another rule'))
  assert comparison.make_task('folder:2', 'steps', 'gta', 0, [folder]).digest != wide.digest


def test_methods_that_a_config_gives_other_terms_are_refused(tmp_path, capsys):
  folder = f'--config.data.dir={make(tmp_path)}'
  for config, fields in (('shapes:8', []), ('folder:2', [folder])):
    comparison.check_equal_terms(config, comparison.systems(), fields)
  with pytest.raises(SystemExit, match='voc:183 gives gta .* and cps .*, as they were published'):
    compare.main(['--config', 'voc:183', '--methods', 'gta', 'cps', '--out', str(tmp_path / 'a')])


def test_a_folder_leaves_gct_a_map_of_flaws_and_cct_the_weights_of_classes():
  options = {name: cases.read_method_config('configs/folder.py:2', name, 'scratch', []).method
             for name in ('gct', 'cct')}
  assert map_size(96, options['gct'].detector_blocks) >= 4
  assert options['cct'].supervised == 'plain'


def test_table_is_sorted_by_the_network_that_predicts():
  found = compare.table([
    line('gta', 1, teacher=50.0, student=99.0), line('gta', 0, teacher=40.0, student=99.0),
    line('corrmatch', 0, model=60.0)]).splitlines()
  assert found[2:] == [
    '| corrmatch | model | 60.00 | 0 | 7 | 3.33 | 10 |',
    '| gta | teacher | 45.00 ± 7.07 | 0, 1 | 7 | 2.33 | 10 |']


def test_a_run_that_was_stopped_has_no_time_and_versions_that_are_mixed_are_said():
  runs = [line('gta', seed, teacher=40.0) | {'seconds': seconds, 'version': version}
          for seed, (seconds, version) in enumerate([(None, '1'), (8.0, '1'), (9.0, '2')])]
  *_, row, blank, said = compare.table(runs).splitlines()
  assert row.endswith('| 8 |') and (blank, said) == ('', 'The runs are of 2 versions: 1, 2.')
  assert compare.table(runs[:1]).endswith('| – |')


def test_finished_runs_are_lines_and_are_not_repeated(tmp_path, monkeypatch):
  trained = []

  def train(task, out, cores):
    trained.append(task.method)
    if task.method == 'cps':
      raise subprocess.CalledProcessError(1, 'launch.py')
    networks = {'teacher': {'miou': 0.5}, 'student': {'miou': 0.4}}
    starts = [{'gta_jax': version} for version in ('0.1', '0.2', '0.2')]
    return {'seconds': 3.0, 'starts': starts,
            'seconds_from_step': 15 if task.seed else 0,
            'last': {'step': 20, **networks}, 'best': {'step': 10, **networks}}

  monkeypatch.setattr(compare, 'train', train)
  results = tmp_path / 'results' / 'shapes.jsonl'
  failed = compare.run_all([task(), task('cps')], tmp_path, results, jobs=1)
  assert len(failed) == 1 and failed[0].startswith('cps with seed 0: status 1')
  found, = compare.read_lines(results).values()
  assert found.items() >= {'method': 'gta', 'seed': 0, 'steps': 20, 'best_step': 10,
                           'last': {'teacher': 50.0, 'student': 40.0},
                           'version': '0.1, 0.2'}.items()
  later = [task(), task(seed=1), task(**{'data.crop': 32})]
  assert compare.run_all(later, tmp_path, results, jobs=2) == []
  assert trained == ['gta', 'cps', 'gta', 'gta'] and len(compare.read_lines(results)) == 3
  assert {of['seed']: of['seconds'] for of in compare.read_lines(results).values()} == {
    0: 3.0, 1: None}
  compare.run_all([task(seed=2)], tmp_path, results, jobs=1, minutes=-1)
  assert len(trained) == 4


def test_a_run_has_its_share_of_the_cores_and_the_thread_alone_gives_the_rest_up(
  tmp_path, monkeypatch
):
  seen, own = [], os.sched_getaffinity(0)

  def run(command, **_):
    seen.append(os.sched_getaffinity(0))
    workdir = Path(command[command.index('--workdir') + 1])
    (workdir / 'results.json').write_text('{}')

  monkeypatch.setattr(compare.subprocess, 'run', run)
  core = {min(own)}
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    assert pool.submit(compare.train, task(), tmp_path, core).result() == {}
  assert seen == [core] and os.sched_getaffinity(0) == own
