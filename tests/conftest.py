"""What one test compiles serves the others, on every worker and in processes that they start."""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from gta_jax.devices import runtime


def pytest_configure(config: pytest.Config) -> None:
  # In the environment, before any test imports jax; workers and processes of tests inherit it.
  runtime.disable_faulty_cpu_fusion()
  # Several workers would share a GPU's memory; JAX_PLATFORMS=cuda with -n 0 asks for it.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  # Servers of tests are on this machine, whatever proxy the network has.
  os.environ['no_proxy'] = os.environ['NO_PROXY'] = '127.0.0.1,localhost'
  # Tests compute little and compile much: without LLVM's optimisations they take two thirds of the
  # time. JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run.
  os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    folder = tempfile.mkdtemp(prefix='gta_jax_tests_')
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
  """Programs of one file are of no use to the next, and gigabytes of them slow everything down."""
  yield
  if 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()
  gc.collect()


@pytest.fixture(scope='session')
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
  """Workdir and results of a whole run of `runs.tiny_config`; tests copy it to change it."""
  from gta_jax.training import loop, setup  # noqa: PLC0415  jax is for those who ask for it.
  from tests import runs  # noqa: PLC0415

  workdir = tmp_path_factory.mktemp('finished')
  return workdir, loop.train(setup.make_run(runs.tiny_config()), workdir)
