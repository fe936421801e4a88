"""Flags before jax starts; joining several processes: what is refused, before jax could abort."""

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys

import pytest

from gta_jax.devices import runtime
from tests.test_launch import ROOT, launch

FLAG = '--xla_cpu_experimental_ynn_fusion_type='


def test_importing_the_package_or_any_part_of_it_changes_no_environment_variable():
  # Some of the libraries set variables themselves; they come first.
  code = (
    'import importlib, os, pkgutil\n'
    'import cv2, grain, jax, orbax.checkpoint, scipy.io, tensorboardX, tensorflow_datasets\n'
    'before = dict(os.environ)\n'
    'import gta_jax\n'
    'for part in pkgutil.walk_packages(gta_jax.__path__, "gta_jax."):\n'
    '  importlib.import_module(part.name)\n'
    '  assert dict(os.environ) == before, part.name\n'
    'print(part.name)\n')
  clean = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
  assert done.returncode == 0 and done.stdout.startswith('gta_jax.'), done.stderr


@pytest.mark.parametrize('version, given, expected', [
  ('0.10.2', '', FLAG), ('0.10.2', '--a=1', f'--a=1 {FLAG}'),
  ('0.10.2', f'{FLAG}2 --a=1', f'{FLAG}2 --a=1'),  # the user's own choice
  ('0.10.1', '', ''), ('0.11.2', '--a=1', '--a=1')])  # they would end the process on it
def test_the_faulty_fusion_is_turned_off_where_the_flag_is_known(
  version, given, expected, monkeypatch
):
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: {'jaxlib': version}[name])
  monkeypatch.setenv('XLA_FLAGS', given)
  runtime.disable_faulty_cpu_fusion()
  assert os.environ['XLA_FLAGS'] == expected


@pytest.mark.parametrize('environment, mapped', [
  ({}, 0), ({'MALLOC_TRIM_THRESHOLD_': '131072'}, 1)])  # the user's own choice
def test_large_buffers_are_kept_where_the_c_library_can(environment, mapped):
  """A buffer of 64 MB is one of malloc's own, not mapped for itself."""
  code = (
    'import ctypes\n'
    'from gta_jax.devices import runtime\n'
    'class Info(ctypes.Structure):\n'
    '  _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "chunks", "fast", "mapped", "e", '
    '"f", "g", "h", "i", "j")]\n'
    'library = ctypes.CDLL(None)\n'
    'library.mallinfo2.restype, library.malloc.restype = Info, ctypes.c_void_p\n'
    'runtime.keep_freed_memory()\n'
    'before = library.mallinfo2().mapped\n'
    'assert library.malloc(ctypes.c_size_t(2**26))\n'
    'print(library.mallinfo2().mapped - before)\n')
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False,
    env={name: value for name, value in os.environ.items() if not name.startswith('MALLOC_')}
    | environment)
  assert done.stdout == f'{mapped}\n', done.stderr


def test_the_command_turns_it_off_before_jax_is_imported():
  code = (
    'import sys\n'
    'from gta_jax.devices import runtime\n'
    'def stop():\n'
    '  assert "jax" not in sys.modules\n'
    '  sys.exit(7)\n'
    'runtime.disable_faulty_cpu_fusion = stop\n'
    'from gta_jax import command\n'
    'command.main(["gta-jax", "--mode", "evaluate", "--workdir", "w"])\n')
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 7, done.stderr


def test_modes_that_compute_nothing_open_no_device_and_programs_are_kept_for_the_next(tmp_path):
  code = (
    'from gta_jax import command\n'
    'assert command.main(["gta-jax", "--mode", "methods"]) == 0\n'
    'import jax\n'
    'from jax._src import xla_bridge\n'
    'assert not xla_bridge.backends_are_initialized()\n'
    'from pathlib import Path\n'
    'from gta_jax.devices import runtime\n'
    'def homeless(path):\n'
    '  raise RuntimeError\n'
    'expanduser, Path.expanduser = Path.expanduser, homeless\n'
    'runtime.keep_compiled_programs()\n'
    'assert not jax.config.jax_compilation_cache_dir\n'
    'Path.expanduser = expanduser\n'
    'runtime.keep_compiled_programs()\n'
    'print(jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size)\n')
  environment = {name: value for name, value in os.environ.items()
                 if name != 'JAX_COMPILATION_CACHE_DIR'} | {'HOME': str(tmp_path)}
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=environment,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  kept = tmp_path / '.cache' / 'gta_jax' / 'xla' / platform.node()
  assert done.stdout.splitlines()[-1] == f'{kept} {2 * 10**9}'


@pytest.mark.parametrize('address, count, index', [
  ('host', 2, 1), (':1234', 2, 1), ('host:port', 2, 1), ('host:65536', 2, 0),
  ('host:1234', 2, 2), ('host:1234', 2, -1)])
def test_a_bad_address_or_index_is_refused(address, count, index):
  with pytest.raises(ValueError, match="give the first process's HOST:PORT"):
    runtime.join_processes(address, count, index)


def test_a_coordinator_that_does_not_answer_is_named():
  with socket.create_server(('localhost', 0)) as server:
    port = server.getsockname()[1]
  with pytest.raises(ValueError, match=f'localhost:{port} does not answer after 0.1 s'):
    runtime.join_processes(f'localhost:{port}', 2, 1, seconds=0.1)


def test_a_port_in_use_is_named():
  with socket.create_server(('', 0)) as server:
    port = server.getsockname()[1]
    with pytest.raises(ValueError, match=f'port {port} of this host cannot be used'):
      runtime.join_processes(f'localhost:{port}', 2, 0)


@pytest.mark.parametrize('arguments, message', [
  (('--coordinator', 'a:1', '--process_count', '2'), 'go together; add --process_index'),
  (('--coordinator', 'a:1', '--distributed', 'auto'), 'give it or --coordinator, not both'),
  (('--distributed', 'auto'), 'no SLURM step, Open MPI or Kubernetes job'),
])
def test_half_given_flags_are_refused(arguments, message):
  done = launch('--mode', 'evaluate', '--workdir', 'w', *arguments)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr and 'Traceback' not in done.stderr
