"""What is kept, what is found damaged, and saves that are cut off or fail."""

import errno
import json
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.methods.contract import TrainState
from gta_jax.training import checkpoint
from gta_jax.training.checkpoint import Checkpoints


def state_of(step):
  """A state whose every number tells its step."""
  network = {'params': {'backbone': {'kernel': jnp.full((300, 7), float(step))}},
             'batch_stats': {'backbone': {'mean': jnp.full(3, float(step))}}}
  return TrainState(
    step=jnp.int32(step), key=jax.random.key(0),
    networks={'teacher': network, 'student': jax.tree.map(lambda x: x + 1, network)},
    optimizers={'student': (jnp.full(2, float(step)),)},
    memory={'queue': jnp.full((4, 3), float(step))})


def scores(miou):
  return {'teacher': {'miou': miou}}


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def assert_restored(checkpoints, step):
  found, expected = checkpoints.restore(step, state_of(0)), state_of(step)
  for a, b in zip(*(jax.tree.leaves(s.replace(key=None)) for s in (found, expected)), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Steps 2, scored best, 4 and 6."""
  folder = tmp_path_factory.mktemp('run') / 'checkpoints'
  with Checkpoints(folder) as checkpoints:
    for step, miou in ((1, 0.3), (2, 0.5), (4, 0.4), (6, None)):
      checkpoints.save(step, state_of(step), unlogged=[(step, {'a': 0.1})])
      if miou:
        checkpoints.add_scores(step, scores(miou))
  return folder


def test_the_two_newest_and_the_best_are_kept(saved):
  assert names(saved) == ['2', '2.json', '4', '4.json', '6', '6.json']
  with Checkpoints(saved) as checkpoints:
    assert (checkpoints.last_step, checkpoints.best_step) == (6, 2)
    assert checkpoints.scores(4) == scores(0.4) and checkpoints.scores(6) is None
    assert checkpoints.unlogged(6) == [[6, {'a': 0.1}]]
    for step in (2, 6):
      assert_restored(checkpoints, step)
  for names_wanted in (('teacher',), ('student', 'teacher')):
    with Checkpoints(saved) as checkpoints:
      found = checkpoints.restore_networks(6, state_of(0).networks['teacher'], names_wanted)
    assert tuple(found) == names_wanted
    for name, mean in {'teacher': 6, 'student': 7}.items():
      if name in found:
        np.testing.assert_array_equal(found[name]['batch_stats']['backbone']['mean'], [mean] * 3)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def remove(path):
  path.unlink()


@pytest.mark.parametrize('damage', [truncate, flip, remove])
def test_any_damaged_file_is_named_and_the_newest_whole_checkpoint_used(
  saved, tmp_path, capsys, damage
):
  files = [p.relative_to(saved) for p in [saved / '6.json', *(saved / '6').rglob('*')]
           if p.is_file()]
  assert len(files) > 8
  for i, name in enumerate(files):
    folder = tmp_path / str(i)
    shutil.copytree(saved, folder)
    damage(folder / name)
    with Checkpoints(folder) as checkpoints:
      assert (checkpoints.last_step, checkpoints.best_step) == (4, 2), name
      if i == 0:
        assert_restored(checkpoints, 4)
        checkpoints.save(6, state_of(6))
        checkpoints.wait()
        assert_restored(checkpoints, 6)
    told = capsys.readouterr().err
    assert f'{folder / "6"} is not whole and not used' in told and name.name in told


def test_only_the_checkpoint_asked_for_is_looked_at(saved, tmp_path, capsys, monkeypatch):
  folder = shutil.copytree(saved, tmp_path / 'checkpoints')
  read, digests = [], checkpoint._digests
  monkeypatch.setattr(checkpoint, '_digests', lambda path: read.append(path.name) or digests(path))

  def opened(only):
    read.clear()
    with Checkpoints(folder, only=only) as checkpoints:
      return checkpoints.last_step if only == 'last' else checkpoints.best_step

  assert (opened('last'), read) == (6, ['6']) and (opened('best'), read) == (2, ['2'])
  for step in '62':
    max((folder / step).glob('teacher/d/*')).write_bytes(b'damaged')
  assert (opened('last'), read) == (4, ['6', '4']) and (opened('best'), read) == (4, ['2', '4'])
  told = capsys.readouterr().err
  assert f'{folder / "6"} is not whole' in told and f'{folder / "2"} is not whole' in told


def test_leftovers_of_a_killed_save_are_never_read_and_go_with_the_next(saved, tmp_path, capsys):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  shutil.copytree(folder / '6', folder / '8.orbax-checkpoint-tmp')  # killed while Orbax writes
  shutil.copytree(folder / '6', folder / '9')  # killed before its record
  (folder / '9.json.77.partial').write_text('{"st')
  shutil.rmtree(folder / '4' / 'rest')  # killed while it was removed
  (folder / '4.json').unlink()
  with Checkpoints(folder) as checkpoints:
    assert (checkpoints.last_step, checkpoints.best_step) == (6, 2)
    told = capsys.readouterr().err
    assert f'{folder / "9"} is not whole' in told and f'{folder / "6"}' not in told
    for step in (8, 9):
      checkpoints.save(step, state_of(step))
    checkpoints.wait()
    assert_restored(checkpoints, 9)
  assert names(folder) == ['2', '2.json', '8', '8.json', '9', '9.json']


def test_what_a_user_keeps_among_the_checkpoints_stays(saved, tmp_path):
  folder = shutil.copytree(saved, tmp_path / 'checkpoints')
  kept = ['1000.keep', '7.txt', '6.old', '2.json.bak', 'notes']
  for name in kept:
    (folder / name).mkdir() if name == '1000.keep' else (folder / name).write_text('mine')
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(8, state_of(8))
    checkpoints.wait()
  assert set(kept) <= set(names(folder)) and '4' not in names(folder)


def test_a_save_that_fails_is_told_and_the_next_one_tried(saved, tmp_path, capsys, monkeypatch):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  with Checkpoints(folder) as checkpoints:
    for method in ('save', 'wait_until_finished'):
      def fail(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')

      with monkeypatch.context() as patch:
        patch.setattr(checkpoints._checkpointer, method, fail)
        checkpoints.save(8, state_of(8))
        checkpoints.wait()
      assert 'step 8 could not be saved' in capsys.readouterr().err
      assert checkpoints.last_step == 6 and '8.json' not in names(folder)
      checkpoints.add_scores(8, scores(0.9))
      assert checkpoints.best_step == 2
    checkpoints.save(9, state_of(9))
    checkpoints.wait()
    assert_restored(checkpoints, 9)


def test_what_cannot_be_removed_ends_no_run(saved, tmp_path, capsys, monkeypatch):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  with Checkpoints(folder) as checkpoints:
    def fail(*_):
      raise OSError(errno.ESTALE, 'Stale file handle')

    with monkeypatch.context() as patch:
      patch.setattr(checkpoints, '_remove_all_but', fail)
      checkpoints.save(8, state_of(8))
      checkpoints.wait()
      patch.setattr(checkpoints._checkpointer, 'save', fail)
      checkpoints.save(9, state_of(9))
    said = capsys.readouterr().err
    assert 'step 8 could not' not in said and said.count('could not be removed: ') == 2
    assert 'step 9 could not be saved' in said and checkpoints.last_step == 8
    assert '4' in names(folder)
    checkpoints.save(10, state_of(10))
  assert '4' not in names(folder) and '10' in names(folder)


def test_a_full_disk_ends_no_run(saved, tmp_path, capsys):
  folder = tmp_path / 'small'
  folder.mkdir()
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', folder], capture_output=True, check=False)
  if mounted.returncode:
    pytest.skip('Only root may mount a small disk.')
  try:
    with Checkpoints(folder) as checkpoints:
      checkpoints.save(1, state_of(1))
      checkpoints.wait()
      filler = folder / 'filler'
      with pytest.raises(OSError, match='No space'), filler.open('wb', buffering=0) as file:
        while True:
          file.write(bytes(4096))
      for step in (2, 3):
        checkpoints.save(step, state_of(step))
        checkpoints.wait()
        assert f'step {step} could not be saved' in capsys.readouterr().err
        assert checkpoints.last_step == 1
      filler.unlink()
      checkpoints.save(4, state_of(4))
      checkpoints.wait()
    assert names(folder) == ['1', '1.json', '4', '4.json']
    assert json.loads((folder / '4.json').read_text().partition('\n')[0])['step'] == 4
  finally:
    subprocess.run(['umount', folder], check=True)


# Orbax gives up while other reads of its are under way, which tell of it.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('wrong', [
  {'params': {'backbone': {'kernel': jnp.zeros((300, 8))}},
   'batch_stats': {'backbone': {'mean': jnp.zeros(3)}}},
  {'params': {'backbone': {'bias': jnp.zeros(7)}}, 'batch_stats': {'backbone': {}}}])
def test_networks_of_other_shapes_are_refused(saved, wrong):
  with Checkpoints(saved) as checkpoints, pytest.raises(ValueError, match='with another network'):
    checkpoints.restore_networks(6, wrong, ['teacher'])


def test_a_network_that_was_not_saved_is_refused(saved):
  network = state_of(0).networks['teacher']
  with Checkpoints(saved) as checkpoints, pytest.raises(ValueError, match='with another network'):
    checkpoints.restore_networks(6, network, ['assistant'])
