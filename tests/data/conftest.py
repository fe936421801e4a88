"""What tests of several readers begin with."""

import pytest

from tests.data.small_folder import CLASSES, jpeg, mask, write_list


@pytest.fixture
def folder(tmp_path):
  """Eight images: a, b labelled, c and h validation, g test, the others without masks but d."""
  for id in 'abcdefgh':
    jpeg(tmp_path / 'images' / f'{id}.jpg')
  for id in 'abcdh':
    mask(tmp_path / 'masks' / f'{id}.png', [0, 1, 2, 255])
  (tmp_path / 'classes.txt').write_text(CLASSES)
  write_list(tmp_path, 'val.txt', 'ch')
  write_list(tmp_path, 'test.txt', 'g')
  write_list(tmp_path, '2/labeled.txt', 'ab')
  return tmp_path
