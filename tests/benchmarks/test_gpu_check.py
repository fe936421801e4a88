"""The check on a GPU: which card it is, what is compared, and what is said where there is none."""

import sys
from pathlib import Path

import cases
import gpu_check as check
import gpu_target as target
import pytest
import torch_twin as twin


@pytest.fixture
def here(monkeypatch):
  """Nothing in a process of its own."""
  monkeypatch.setattr(check, 'alone', lambda function, *args: function(*args))


@pytest.mark.parametrize('kind, name', [
  ('NVIDIA H100 80GB HBM3', 'h100'), ('NVIDIA A100-SXM4-40GB', 'a100_40'), ('Tesla T4', 't4')])
def test_a_card_is_known_by_what_jax_calls_it(kind, name):
  assert target.name_of(kind) == name


def test_an_unknown_card_is_refused_with_the_remedy():
  with pytest.raises(ValueError, match=r"describes 'NVIDIA X'; known are a100_40.*Copy"):
    target.name_of('NVIDIA X')


def test_without_a_gpu_there_is_a_sentence_and_status_2(here, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['gpu_check.py'])
  with pytest.raises(SystemExit) as stopped:
    check.main()
  assert stopped.value.code == 2 and 'there is no GPU that jax can use' in capsys.readouterr().err


def test_the_program_without_a_gpu_is_of_the_same_step():
  fields = ['train.epochs=2', 'model.remat=true', 'model.weights=""']
  for file in ('configs/voc.py:183', 'configs/shapes.py'):
    command = check.deviceless_command(file, 'released', fields, 'h100', Path('x.json'))
    flag = {name: command.index(name) + 1 for name in ('--config', '--gpu', '--set')}
    read = cases.read_whole_config(command[flag['--config']], command[flag['--set']:])
    assert read == cases.read_config(file, 'released', fields) and read.model.remat is True
    assert command[flag['--gpu']] == 'h100'


def test_targets_are_met_missed_or_open():
  gta = {'peak_percent': 40.0, 'peak_gb': 90.0, 'compile_cold_s': 91.0, 'compile_warm_s': 3.0,
         'wide_windows': []}
  twins = twin.ratios({('jax', 'gta'): [1.0, 1.0], ('torch', 'released'): [3.1, 3.3]})
  found = check.targets({'gta': gta}, twins)
  assert [met for *_, met in found] == [True, None, True, False, False, True, True]
  assert found[0][1] == '3.20 times' and found[1][1] == 'not measured'
  assert {met for *_, met in check.targets({}, {})} == {None}
  assert twin.ratios({('torch', 'gta'): [1.0, 1.0]}) == {}  # nothing to compare with


def test_a_step_that_fails_is_named_and_the_others_go_on(here, monkeypatch, tmp_path, capsys):
  def measure(config, step, *_):
    if step == 'released':
      raise RuntimeError('out of memory')
    return {'ms': 2.0, 'ratio': 1.5, 'estimated_ms': 1.33, 'peak_gb': None, 'wide_windows': []}

  monkeypatch.setattr(check, 'measure', measure)
  monkeypatch.setattr(check, 'torch_sees_a_gpu', lambda: False)
  script = ('import json, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(json.dumps('
            '{"estimated_ms": 1.25, "memory": {"arguments": 10**9, "temporaries": 2 * 10**9, '
            '"code and constants": 0}})); '
            'sys.exit("no plugin" if sys.argv[1].endswith("gta.json") else 0)')
  monkeypatch.setattr(check, 'deviceless_command', lambda *args: [
    sys.executable, '-c', script, str(args[-1])])
  flags = check.argparse.Namespace(config='c.py', set=[], repeats=1)
  found = check.check(flags, 'h100', tmp_path)
  assert found['failures'].keys() == {'released', 'gta, without a GPU', 'PyTorch'}
  assert found['failures']['gta, without a GPU'] == 'no plugin'
  assert found['steps']['supervised']['deviceless_gb'] == 3 and 'gta' in found['steps']
  check.print_tables(found)
  assert '| supervised | 2.0 | 1.3 | 1.50 | 1.2 | – | – |' in capsys.readouterr().out


@pytest.mark.slow
def test_a_step_is_measured_beside_its_roofline():
  fields = ['data.crop=17', 'train.labelled_batch=2', 'train.unlabelled_batch=2']
  found = check.measure('configs/shapes.py', 'supervised', fields, target.read_gpu('h100'), 2)
  assert len(found['times_ms']) == 2 and found['ms'] > found['estimated_ms'] > 0
  assert found['ratio'] == pytest.approx(found['ms'] / found['estimated_ms'])
  assert found['peak_gb'] is None  # of a CPU nothing is known
  assert 0 < found['program_gb'] < 1 and found['peak_percent'] > 0
