"""Names of files."""

import os

import pytest

from gta_jax.data.files import DataError
from gta_jax.data.listing import visible_files


def test_a_name_that_no_list_can_hold_is_named(tmp_path):
  (tmp_path / 'a.png').touch()
  assert [path.name for path in visible_files(tmp_path)] == ['a.png']
  (tmp_path / os.fsdecode(b'caf\xe9.png')).touch()
  with pytest.raises(DataError, match=r'caf\\xe9.png. has a name that is not UTF-8; rename it'):
    visible_files(tmp_path)
