"""Files that are whole or not there."""

import errno
import os

import pytest

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
