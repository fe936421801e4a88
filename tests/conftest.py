"""What one test compiles serves the others, on every worker and in processes that they start."""

import os
import shutil
import tempfile

import pytest

from gta_jax.devices import runtime


def pytest_configure(config: pytest.Config) -> None:
  # In the environment, before any test imports jax; workers and processes of tests inherit it.
  runtime.disable_faulty_cpu_fusion()
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    folder = tempfile.mkdtemp(prefix='gta_jax_tests_')
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
