"""Steps of a config on random batches, for the benchmarks of speed."""

import ast
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import gta_jax  # noqa: E402
from gta_jax.devices import runtime  # noqa: E402

# Of every script that imports this, before any of them asks jax for a device.
runtime.disable_faulty_cpu_fusion()
runtime.keep_freed_memory()

# name -> (method, recipe)
STEPS = {
  'supervised': ('sup_only', 'paper'),
  'mean_teacher': ('mean_teacher', 'paper'),
  'gta': ('gta', 'paper'),
  'released': ('gta', 'released'),
}
CLASSES = {'voc': 21, 'cityscapes': 19}


@dataclasses.dataclass
class Case:
  """A jitted step with its first state and one batch of each kind, on the devices already.

  `run` takes a step and waits for the device; the state moves on.
  """

  step: Callable
  state: object
  batches: dict

  def run(self) -> None:
    import jax  # noqa: PLC0415

    self.state, metrics = self.step(self.state, self.batches)
    jax.block_until_ready((self.state, metrics))


def read_config(
  config_file: str, name: str, overrides: Sequence[str]
) -> ml_collections.ConfigDict:
  """The config of `FILE.py:ARGUMENT` with the method and recipe of a step's name.

  Args:
    overrides: FIELD=JSON each, as in data.crop=513 or model.dtype="bfloat16".
  """
  config = _get_config(config_file, 'method={},recipe={}'.format(*STEPS[name]))
  pairs = (item.partition('=') for item in overrides)
  config.update_from_flattened_dict({field: json.loads(value) for field, _, value in pairs})
  return config


def read_method_config(
  config_file: str, method: str, recipe: str, flags: Sequence[str]
) -> ml_collections.ConfigDict:
  """The config of `FILE.py:ARGUMENT` with a method and a recipe.

  Args:
    flags: --config.FIELD=VALUE each, as for launch.py.
  """
  config = _get_config(config_file, f'method={method},recipe={recipe}')
  pairs = (flag.removeprefix('--config.').partition('=') for flag in flags)
  config.update_from_flattened_dict({field: _literal(value) for field, _, value in pairs})
  return config


def read_whole_config(config_file: str, fields: Sequence[str]) -> ml_collections.ConfigDict:
  """The config of `FILE.py:ARGUMENT`, where the argument says all.

  Args:
    fields: FIELD=VALUE each.
  """
  config = _get_config(config_file)
  pairs = (field.partition('=') for field in fields)
  config.update_from_flattened_dict({field: _literal(value) for field, _, value in pairs})
  return config


def _literal(text: str) -> object:
  """A Python literal, or the text itself where it is none."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _get_config(config_file: str, more: str = '') -> ml_collections.ConfigDict:
  path, _, argument = config_file.partition(':')
  return gta_jax.load_config(f'{ROOT / path}:{",".join(filter(None, [argument, more]))}')


def num_classes(config: ml_collections.ConfigDict) -> int:
  """K of the config's data set, which the benchmarks do not need; 7 where it is not known."""
  return CLASSES.get(config.data.source, 7)


def random_batches(config: ml_collections.ConfigDict) -> tuple[dict, dict]:
  """Labelled and unlabelled NumPy batches of the config's sizes, without padding."""
  import numpy as np  # noqa: PLC0415

  rng = np.random.default_rng(0)
  side, train = config.data.crop, config.train
  labelled, unlabelled = (
    {'image': rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)}
    for batch in (train.labelled_batch, train.unlabelled_batch))
  shape = labelled['image'].shape[:3]
  labelled['label'] = rng.integers(0, num_classes(config), shape, dtype=np.uint8)
  unlabelled['valid'] = np.ones(unlabelled['image'].shape[:3], bool)
  return labelled, unlabelled


def make_case(config: ml_collections.ConfigDict, devices: int | None = None) -> Case:
  """The config's semi-supervised step (supervised where the method is), past any hand-over.

  Args:
    devices: on so many; None for all.
  """
  import jax  # noqa: PLC0415
  import numpy as np  # noqa: PLC0415

  from gta_jax.devices import sharding  # noqa: PLC0415
  from gta_jax.training import config_rules, setup  # noqa: PLC0415

  method = setup.make_method_of(config)
  tools = setup.make_tools(
    config_rules.complete(config), num_classes=num_classes(config), epoch_steps=100)
  mesh = sharding.make_mesh(jax.devices()[:devices])
  key = jax.random.key(0)
  init = jax.jit(tools.network.init, static_argnums=1)

  def draw(own: jax.Array | None = None) -> dict:
    return init(key if own is None else own, (config.data.crop,) * 2)

  state = sharding.replicate(method.init(key, draw, tools), mesh)
  stage = method.stages(tools)[-1]
  labelled, unlabelled = random_batches(config)
  batches = {'labelled': labelled, 'unlabelled': unlabelled, 'pseudo_labelled': {
    **unlabelled, 'label': labelled['label'][:len(unlabelled['image'])],
    'confidence': np.full(unlabelled['valid'].shape, 200, np.uint8)}}
  step = sharding.compile_step(stage.step, mesh)
  return Case(
    step, state, {name: sharding.global_batch(batches[name], mesh) for name in stage.streams})
