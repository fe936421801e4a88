"""Process-wide settings."""

import jax
import pytest

from gta_jax import runtime


@pytest.fixture
def cache_folder(monkeypatch, tmp_path):
  """A home of its own, and jax's setting of the cache as it was before."""
  before = jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size
  monkeypatch.setenv('HOME', str(tmp_path))
  yield tmp_path
  jax.config.update('jax_compilation_cache_dir', before[0])
  jax.config.update('jax_compilation_cache_max_size', before[1])


def test_programs_are_kept_at_home_in_bounds(cache_folder):
  jax.config.update('jax_compilation_cache_dir', None)
  runtime.keep_compiled_programs()
  assert jax.config.jax_compilation_cache_dir.startswith(str(cache_folder / '.cache/gta_jax/xla/'))
  assert 0 < jax.config.jax_compilation_cache_max_size < 1e10


def test_a_cache_of_the_users_own_stands(cache_folder):
  jax.config.update('jax_compilation_cache_dir', 'elsewhere')
  runtime.keep_compiled_programs()
  assert jax.config.jax_compilation_cache_dir == 'elsewhere'


@pytest.mark.parametrize('jaxlib, given, expected', [
  ('0.10.2', '', '--xla_cpu_experimental_ynn_fusion_type='),
  ('0.10.2', '--a=1', '--a=1 --xla_cpu_experimental_ynn_fusion_type='),
  ('0.10.2', '--xla_cpu_experimental_ynn_fusion_type=x', None),
  ('0.11.2', '--a=1', None),
])
def test_the_cpu_flag_is_set_where_it_is_known_only(monkeypatch, jaxlib, given, expected):
  monkeypatch.setenv('XLA_FLAGS', given)
  monkeypatch.setattr(runtime.importlib.metadata, 'version', lambda _: jaxlib)
  runtime.set_cpu_flags()
  assert runtime.os.environ['XLA_FLAGS'] == (given if expected is None else expected)
