"""What one test compiles serves the others, on every worker and in processes that they start."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from gta_jax.devices import runtime


def prepare_environment() -> None:
  """Before anything imports jax; workers and processes of tests inherit it."""
  runtime.disable_faulty_cpu_fusion()
  # Several workers would share a GPU's memory; JAX_PLATFORMS=cuda with -n 0 asks for it.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  # Servers of tests are on this machine, whatever proxy the network has.
  os.environ['no_proxy'] = os.environ['NO_PROXY'] = '127.0.0.1,localhost'
  # Tests compute little and compile much: without LLVM's optimisations and XLA's fusion emitters
  # they take half the time. JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run.
  if os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1') == '1':
    _disable_fusion_emitters()
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    folder = tempfile.mkdtemp(prefix='gta_jax_tests_')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'


def _disable_fusion_emitters() -> None:
  # Only of a jaxlib that is known to have the flag: others would end the process.
  flags, flag = os.environ.get('XLA_FLAGS', ''), '--xla_cpu_use_fusion_emitters='
  if importlib.metadata.version('jaxlib') == '0.10.2' and flag not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} {flag}false'.strip()


# On import and not in a hook: conftest.py of a folder may import jax before hooks are called.
prepare_environment()


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
