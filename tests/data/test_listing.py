"""Names of files."""

import errno
import os
from pathlib import Path

import pytest

from gta_jax.data.files import DataError
from gta_jax.data.listing import visible_files


def test_a_name_that_no_list_can_hold_is_named(tmp_path):
  (tmp_path / 'a.png').touch()
  assert [path.name for path in visible_files(tmp_path)] == ['a.png']
  (tmp_path / os.fsdecode(b'caf\xe9.png')).touch()
  with pytest.raises(DataError, match=r'caf\\xe9.png. has a name that is not UTF-8; rename it'):
    visible_files(tmp_path)


def test_links_to_folders_are_followed_and_no_folder_counts_twice(tmp_path):
  images, disk = tmp_path / 'images', tmp_path / 'disk'
  for folder in (images / 'z', disk / 'deep', disk / '.hidden'):
    folder.mkdir(parents=True)
    (folder / 'a.png').touch()
  (images / 'a.png').symlink_to(disk / 'deep' / 'a.png')
  (images / 'day').symlink_to(disk)
  (images / 'latest').symlink_to('z')  # before z, which counts all the same
  (images / 'all').symlink_to(images)
  (disk / 'back').symlink_to(images)
  found = [path.relative_to(images).as_posix() for path in visible_files(images)]
  assert found == ['a.png', 'day/deep/a.png', 'z/a.png']
  assert [path.name for path in visible_files(images, recursive=False)] == ['a.png']


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path, monkeypatch):
  def iterdir(path):
    if path.name in ('lost+found', 'day'):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return listed(path)

  listed = Path.iterdir
  monkeypatch.setattr(Path, 'iterdir', iterdir)
  (tmp_path / 'lost+found').mkdir()
  (tmp_path / 'a.png').touch()
  assert visible_files(tmp_path) == [tmp_path / 'a.png']
  (tmp_path / 'day').mkdir()
  with pytest.raises(DataError, match=r'day cannot be looked into \(Permission denied\); per'):
    visible_files(tmp_path)
