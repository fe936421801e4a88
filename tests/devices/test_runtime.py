"""Joining several processes: what is refused, in a sentence, before jax could abort."""

import socket

import pytest

from gta_jax.devices import runtime
from tests.test_launch import launch


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
