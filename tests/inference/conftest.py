"""A run on a folder, of which every test gets a copy."""

import shutil

import pytest

from gta_jax import command
from tests.data.test_inspection import make


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
  """A folder with `data`, of which no list names labelled images, and `run`, of two steps."""
  root = tmp_path_factory.mktemp('trained')
  data = make(root / 'data', thickness=20)
  shutil.rmtree(data / 'splits' / '2')
  assert command.main([
    'gta-jax', '--config', 'folder:2,model=tiny,method=sup_only', '--config.data.dir', str(data),
    '--workdir', str(root / 'run'), '--config.data.crop=32', '--config.model.width=0.125',
    '--config.train.labelled_batch=2', '--config.train.unlabelled_batch=10',
    '--config.train.epochs=1', '--config.evaluate.pictures=1', '--config.evaluate.worst=0']) == 0
  return root


@pytest.fixture
def folder_run(trained, tmp_path, monkeypatch):
  """The current folder holds `data` and `run`, which may be changed."""
  for name in ('data', 'run'):
    shutil.copytree(trained / name, tmp_path / name)
  config = tmp_path / 'run' / 'config.json'
  config.write_text(config.read_text().replace(str(trained), str(tmp_path)))
  monkeypatch.chdir(tmp_path)
  return tmp_path
