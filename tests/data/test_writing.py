"""Files that are whole or not there."""

import errno
import os

import pytest

from gta_jax.data import writing
from gta_jax.data.writing import replace_bytes, replace_text


def test_an_error_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  replace_text(path, 'old')

  def fail(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', fail)
  replace_bytes(path, b'new')  # does not wait for the disk
  with pytest.raises(OSError, match='No space left') as raised:
    replace_text(path, 'newer')
  assert raised.value.filename == str(path)
  assert path.read_text() == 'new' and [p.name for p in tmp_path.iterdir()] == ['a.json']


def test_two_processes_that_write_one_file_do_not_take_each_others(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'

  def meanwhile(*_):  # Another process writes the same file to its end.
    with monkeypatch.context() as patch:
      patch.setattr(os, 'fsync', lambda *_: None)
      patch.setattr(writing.os, 'getpid', lambda: 0)
      replace_text(path, 'theirs')

  monkeypatch.setattr(os, 'fsync', meanwhile)
  replace_text(path, 'ours')
  assert path.read_text() == 'ours' and [p.name for p in tmp_path.iterdir()] == ['a.json']


def test_a_files_name_may_be_as_long_as_names_can_be(tmp_path):
  path = tmp_path / (83 * '山' + '.json')  # 254 bytes
  replace_text(path, 'whole')
  assert path.read_text() == 'whole' and [p.name for p in tmp_path.iterdir()] == [path.name]
