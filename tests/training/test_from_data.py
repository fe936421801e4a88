"""What a config leaves to the data is found once, and stays with the run."""

import json

import pytest

from configs import folder, shapes
from gta_jax.training import from_data


def test_a_run_that_goes_on_keeps_what_it_found(tmp_path):
  config = folder.get_config('1')
  assert 'data.pixel_range' in from_data.unset(config)
  found = from_data.with_values(config, {'data.pixel_range': (3, 9), 'data.crop': 5})
  assert found.data.pixel_range == (3, 9) and found.data.crop != 5
  assert config.data.pixel_range is None
  assert from_data.as_begun(config, tmp_path) is config
  (tmp_path / 'config.json').write_text(json.dumps(found.to_dict()))
  assert from_data.as_begun(config, tmp_path).data.pixel_range == (3, 9)
  assert from_data.as_begun(shapes.get_config(), tmp_path).data.pixel_range == ()
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='is damaged'):
    from_data.as_begun(config, tmp_path)
