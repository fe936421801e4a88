"""The package as others get it: a wheel, built from a copy, installed and run from elsewhere."""

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gta_jax

ROOT = Path(__file__).parents[1]
SOURCES = ('gta_jax', 'configs', 'pyproject.toml', 'requirements-cpu.txt', 'README.md', 'LICENSE')


def run(*command, **options) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Built without a network, by the setuptools of this environment."""
  tree, out = tmp_path_factory.mktemp('tree'), tmp_path_factory.mktemp('wheel')
  for name in SOURCES:  # A build leaves files beside what it builds.
    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
    copy(ROOT / name, tree / name)
  done = run('-m', 'pip', 'wheel', '--no-deps', '--no-index', '--no-build-isolation', '-w', out,
             tree)
  assert done.returncode == 0, done.stderr
  return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def gta_jax_command(wheel, tmp_path_factory):
  """Runs the installed command in an empty folder; its own package comes before any other."""
  site, elsewhere = tmp_path_factory.mktemp('site'), tmp_path_factory.mktemp('elsewhere')
  done = run('-m', 'pip', 'install', '--no-deps', '--no-index', '--target', site, wheel)
  assert done.returncode == 0, done.stderr
  environment = os.environ | {'PYTHONPATH': str(site), 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  return lambda *arguments: run(
    site / 'bin' / 'gta-jax', *arguments, cwd=elsewhere, env=environment), elsewhere


def requirements(name: str) -> set[str]:
  lines = (line.partition(' #')[0].strip() for line in (ROOT / name).read_text().splitlines())
  return {line for line in lines if line and not line.startswith(('#', '-r'))}


def test_the_wheel_holds_all_modules_and_configs_and_nothing_beside_them(wheel):
  expected = {str(path.relative_to(ROOT)) for path in (ROOT / 'gta_jax').rglob('*.*')
              if path.suffix in ('.py', '.css', '.js')}
  expected |= {f'gta_jax/configs/{path.name}' for path in (ROOT / 'configs').glob('*.py')}
  names = set(zipfile.ZipFile(wheel).namelist())
  information = {name for name in names if '.dist-info/' in name}
  assert names - information == expected
  assert any(name.endswith('/LICENSE') for name in information)


def test_the_requirement_files_and_the_package_ask_for_the_same(wheel):
  archive = zipfile.ZipFile(wheel)
  path = next(name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
  metadata = email.message_from_bytes(archive.read(path))
  assert metadata['Version'] == gta_jax.__version__
  found: dict[str, set[str]] = {}
  for line in metadata.get_all('Requires-Dist', []):
    requirement, _, extra = line.partition('; extra == ')
    found.setdefault(extra.strip('"'), set()).add(requirement)
  assert found[''] == requirements('requirements-cpu.txt')
  assert found['cuda'] == requirements('requirements.txt')
  assert found['test'] == requirements('requirements-test.txt')


def test_changelog_and_citation_name_the_version_and_the_paper():
  versions = re.findall(r'^## \[(.+?)\]', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)
  citation = (ROOT / 'CITATION.cff').read_text()
  cited = re.findall(r'^version: (.+)$', citation, re.MULTILINE)
  assert versions[0] == gta_jax.__version__ and cited == [gta_jax.__version__]
  assert 'title: Semi-Supervised Semantic Segmentation via Gentle Teaching Assistant\n' in citation


def test_the_installed_command_knows_its_version_and_its_configs(gta_jax_command):
  command, _ = gta_jax_command
  assert command('--version').stdout == f'gta-jax {gta_jax.__version__}\n'
  done = command('--config', 'nope', '--workdir', 'w')
  assert done.returncode == 2
  assert "error: --config 'nope' is neither a known config nor a file; use one of cityscapes, " \
         'folder, shapes, voc, or' in done.stderr


@pytest.mark.slow  # compiles two steps
def test_the_installed_command_trains_from_another_folder(gta_jax_command):
  command, folder = gta_jax_command
  small = {
    'data.unlabelled': 4, 'data.validation': 2, 'data.size': 40, 'data.crop': 32,
    'model.width': 0.125, 'train.labelled_batch': 2, 'train.unlabelled_batch': 2,
    'train.epochs': 1, 'train.evaluate_epochs': 1, 'evaluate.pictures': 1}
  done = command('--config', 'shapes:2,method=sup_only', '--workdir', 'run',
                 *(f'--config.{name}={value}' for name, value in small.items()))
  assert done.returncode == 0, done.stderr
  assert (folder / 'run' / 'results.json').is_file()
