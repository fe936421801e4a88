"""What a run was made with, as it keeps it."""

import os
import shutil
import subprocess

import jax
import pytest

import gta_jax
from gta_jax.training import loop, setup, starts
from gta_jax.training.starts import add_start, read_starts
from gta_jax.version import version
from tests.runs import tiny_config


def test_a_version_names_its_commit_and_whether_the_package_differs_from_it(
    tmp_path, monkeypatch):
  ours = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
  ours |= {'GIT_CONFIG_GLOBAL': os.devnull, 'GIT_CONFIG_NOSYSTEM': '1'}
  monkeypatch.setenv('GIT_DIR', str(tmp_path / 'of a hook'))  # says nothing of the package

  def git(*arguments):
    subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments], cwd=tmp_path,
                   env=ours, check=True, capture_output=True)

  package, beside = tmp_path / 'package', tmp_path / 'beside.txt'
  package.mkdir()
  (package / '__init__.py').touch(), beside.touch()
  assert version(package) == gta_jax.__version__  # no repository
  git('init', '-q'), git('add', beside.name), git('commit', '-qm', 'a')
  assert version(package) == gta_jax.__version__  # an environment in somebody else's
  git('add', '.'), git('commit', '-qm', 'b')
  beside.write_text('other')
  clean = version(package)
  assert clean.startswith(f'{gta_jax.__version__}+') and not clean.endswith('-dirty')
  (package / 'method.py').touch()
  assert version(package) == f'{clean}-dirty'


def test_without_git_a_version_is_that_of_the_package(monkeypatch):
  monkeypatch.setenv('PATH', '')
  assert version() == gta_jax.__version__


def test_a_run_keeps_what_it_was_made_with(finished, tmp_path):
  workdir, results = shutil.copytree(finished[0], tmp_path / 'run'), finished[1]
  entry, = results['starts']
  assert entry['step'] == 0 and entry['gta_jax'].startswith(gta_jax.__version__)
  assert entry['jax'] == jax.__version__ and entry['devices'] and entry['numpy']
  assert read_starts(workdir) == [entry]
  loop.train(setup.make_run(tiny_config()), workdir)  # Nothing is left to do.
  assert read_starts(workdir) == [entry]


def test_what_has_changed_since_the_last_start_is_said(tmp_path, monkeypatch):
  assert add_start(tmp_path, 0) == add_start(tmp_path, 4) == add_start(tmp_path, 8) == ''
  monkeypatch.setattr(starts, 'made_with', lambda: {**read_starts(tmp_path)[0], 'jaxlib': '9.0'})
  # What steps 4 to 8 were made with is gone with them.
  assert 'from step 4 on' in add_start(tmp_path, 4) and len(read_starts(tmp_path)) == 2
  assert read_starts(tmp_path)[1]['jaxlib'] == '9.0'


@pytest.mark.parametrize('text', ['', '[]', '{"starts": 1}', '{"starts": [{}]}', '{"starts": [1]}'])
def test_a_damaged_record_begins_anew(tmp_path, text):
  (tmp_path / starts.FILE).write_text(text)
  assert add_start(tmp_path, 4) == ''
  assert [entry['step'] for entry in read_starts(tmp_path)] == [4]
