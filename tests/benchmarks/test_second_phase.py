"""Which runs the comparison of second phases makes; no training."""

import shutil

import compare_methods as compare
import comparison
import pytest
import second_phase
from second_phase import Arm

from tests.data.test_inspection import make


@pytest.fixture
def data(tmp_path):
  """24 images: 4 labelled in a list, 2 to validate on."""
  root = make(tmp_path / 'data')
  four = root / 'splits' / '4' / 'labeled.txt'
  four.parent.mkdir()
  four.write_text('00\n01\n04\n05\n')
  for name in ('04', '05'):
    (root / 'masks' / f'{name}.png').write_bytes((root / 'masks' / '00.png').read_bytes())
  return root


def flags_of(task):
  return dict(flag.removeprefix('--config.').split('=', 1) for flag in task.flags[1:])


def test_fewer_masks_are_an_even_choice_and_the_rest_is_unlabelled(data, tmp_path):
  folder = comparison.make_folder(data, tmp_path / 'out', 3)
  assert (folder / 'splits' / '3' / 'labeled.txt').read_text().split() == ['00', '01', '04']
  config = comparison.resolved('folder:3', 'gta', [f'--config.data.dir={folder}'])
  dataset = second_phase.datasets.make_dataset(config)
  assert (len(dataset.labelled), len(dataset.unlabelled), len(dataset.validation)) == (3, 19, 2)
  assert comparison.make_folder(data, tmp_path / 'out', 3) == folder
  with pytest.raises(ValueError, match=r'out/data/3 has the images of .*/data, not of .*/other'):
    comparison.make_folder(shutil.copytree(data, tmp_path / 'other'), tmp_path / 'out', 3)
  with pytest.raises(ValueError, match='has no list of 5 masks or more'):
    comparison.make_folder(data, tmp_path / 'out', 5)


def test_arms_see_as_many_batches_and_the_second_phase_starts_from_the_first_run(data, tmp_path):
  tasks = {name: second_phase.make_task(Arm(2, name, 1), data, tmp_path / 'out', 60)
           for name in ('sup_only-first', 'sup_only', 'gta', 'gta-scratch')}
  flags = {name: flags_of(task) for name, task in tasks.items()}
  epoch = 20 // 4  # steps; images without a mask, and of them four a step
  assert [float(flags[name]['train.epochs']) * epoch for name in flags] == pytest.approx(
    [60, 60, 60, 120])
  assert float(flags['gta-scratch']['method.warmup_epochs']) * epoch == pytest.approx(60)
  assert flags['gta']['method.warmup_epochs'] == '0' and flags['gta']['seed'] == '1'
  assert [flags[name].get('optim.rate') for name in flags] == [None, '0.0001', '0.0001', None]
  first = str(compare.workdir_of(tasks['sup_only-first'], tmp_path / 'out'))
  assert [flags[name].get('train.init_from') for name in flags] == [None, first, first, None]
  assert len({task.digest for task in tasks.values()}) == 4
  longer = second_phase.make_task(Arm(2, 'gta', 1), data, tmp_path / 'out', 61)
  assert longer.digest.split('-')[1] != tasks['gta'].digest.split('-')[1]


def test_a_folder_that_was_cut_off_is_made_anew(data, tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    def stop(*_, **__):
      raise KeyboardInterrupt

    patch.setattr(comparison.Path, 'write_text', stop)
    comparison.make_folder(data, tmp_path / 'out', 3)
  folder = comparison.make_folder(data, tmp_path / 'out', 3)
  assert [path.name for path in folder.parent.iterdir()] == ['3']
  assert (folder / 'splits' / '3' / 'labeled.txt').is_file()


def test_results_of_other_settings_are_not_mixed(tmp_path):
  path = tmp_path / 'new' / 'settings.json'
  for _ in range(2):
    comparison.check_settings(path, {'config': 'shapes', 'fields': ['a']})
  with pytest.raises(ValueError, match="of results with config=folder:46 instead of shapes; give"):
    comparison.check_settings(path, {'config': 'folder:46', 'fields': ['a']})


def test_differences_are_between_runs_of_one_seed():
  lines = {Arm(23, name, seed): {'last': {'teacher': score, 'student': 0.0}}
           for name, seed, score in [('sup_only', 0, 40.0), ('sup_only', 1, 50.0), ('gta', 0, 41.0),
                                     ('gta', 1, 53.0), ('gta', 2, 99.0)]}
  assert '| 23 | gta | 64.33 ± 30.62 | 3 | +2.00 ± 1.41 |' in second_phase.table(lines)
