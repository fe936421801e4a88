"""The environment of the tests themselves."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_environment_is_ready_before_anything_imports_jax():
  """A conftest.py of a folder imports jax before hooks of the first one are called."""
  code = ("import os, sys, tests.conftest; assert 'jax' not in sys.modules; "
          "print(os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'], os.environ['JAX_PLATFORMS'], "
          "os.path.isdir(os.environ['JAX_COMPILATION_CACHE_DIR']))")
  inherited = {name: value for name, value in os.environ.items() if not name.startswith('JAX_')}
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=Path(__file__).parents[1], env=inherited,
    capture_output=True, text=True, check=False)
  assert done.stdout.split() == ['1', 'cpu', 'True'], done.stderr
