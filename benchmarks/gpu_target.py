"""Compiles steps for a GPU that is not there.

XLA needs the description of a GPU, not the GPU: benchmarks/gpus/NAME.toml, with published figures.
What only a measurement could choose stays as it is by default: convolutions' algorithms, and so
their workspace, and products of matrices by Triton.
"""

import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from cases import num_classes
from hlo import parse
from jax._src import xla_bridge
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict
from program_report import costs

from gta_jax.devices import sharding
from gta_jax.methods.contract import Stage
from gta_jax.training import config_rules, setup

GPUS = Path(__file__).parent / 'gpus'
_OPTIONS = {'xla_gpu_autotune_level': 0, 'xla_gpu_enable_triton_gemm': False,
            'xla_gpu_force_compilation_parallelism': 1, 'xla_dump_hlo_as_text': True}


class Gpu(NamedTuple):
  """A file of benchmarks/gpus.

  tflops: peak of dense products by dtype: bfloat16, tf32, float32.
  bandwidth: of the memory, bytes a second.
  memory: bytes.
  link_gigabytes: a second in each direction, to the other GPUs of a host.
  target: what XLA is told.
  """

  name: str
  tflops: dict[str, float]
  bandwidth: float
  memory: int
  link_gigabytes: float
  target: str


def names() -> list[str]:
  """Of the GPUs that are described."""
  return sorted(path.stem for path in GPUS.glob('*.toml'))


def read_gpu(name: str) -> Gpu:
  """The GPU of that name."""
  fields = tomllib.loads((GPUS / f'{name}.toml').read_text())
  lines = dict(re.findall(r'^  (\w+): (\S+)$', fields['target'], re.M))
  return Gpu(fields['name'], fields['tflops'], float(lines['memory_bandwidth']),
             int(lines['device_memory_size']), fields['link_gigabytes'], fields['target'])


def name_of(device_kind: str) -> str:
  """The name of the described GPU that this one is.

  Args:
    device_kind: as jax says it of a device, such as 'NVIDIA H100 80GB HBM3'.
  Raises: ValueError for one that is not described, with what to do.
  """
  for name in names():
    if f'device_description_str: "{device_kind}"' in read_gpu(name).target:
      return name
  raise ValueError(
    f'no file of benchmarks/gpus describes {device_kind!r}; known are {", ".join(names())}. Copy '
    'the nearest one, with the published figures of this card and this name in it.')


def on_cards(text: str) -> dict[str, float]:
  """Least milliseconds of a program at the figures of each described GPU, by its name.

  An estimate from one program: XLA may fuse a little differently for another card. Those that lack
  bfloat16 are left out where the program has it, as theirs would be in float32.
  """
  of_name, found = parse(text), {}
  for name in names():
    gpu = read_gpu(name)
    if 'bf16[' in text and gpu.tflops['bfloat16'] == gpu.tflops['float32']:
      continue
    by_part, _ = costs(of_name, tflops=gpu.tflops, bandwidth=gpu.bandwidth)
    found[name] = 1000 * sum(cost.seconds for cost in by_part.values())
  return found


class Program(NamedTuple):
  """A compiled step: its stage's name, its text, its memory in bytes by kind, and XLA's report of
  what lives when.
  """

  stage: str
  text: str
  memory: dict[str, int]
  live_ranges: str


def make_stage(config: ConfigDict, name: str | None, devices: int) -> tuple[Any, Stage]:
  """The abstract first state, and the stage of that name; None for 'main', or else the last one.

  Raises: ValueError for an unknown name.
  """
  config = config_rules.complete(config)
  for batch in ('labelled_batch', 'unlabelled_batch'):
    if config.train[batch] % devices:
      raise ValueError(f'train.{batch}={config.train[batch]} does not split over {devices} '
                       f'devices; use a multiple of {devices}.')
  method = setup.make_method_of(config)
  tools = setup.make_tools(config, num_classes=num_classes(config), epoch_steps=1000)
  accumulation = tools.accumulation
  tools = tools._replace(accumulation=type(accumulation)(accumulation.per_device, devices))
  method.check(tools)
  key = jax.random.key(0)

  def draw(own: jax.Array | None = None) -> Any:
    return tools.network.init(key if own is None else own, (config.data.crop,) * 2)

  stages = {stage.name: stage for stage in method.stages(tools)}
  name = name or ('main' if 'main' in stages else list(stages)[-1])
  if name not in stages:
    raise ValueError(f'--stage {name} is unknown; use one of: {", ".join(stages)}.')
  return jax.eval_shape(lambda: method.init(key, draw, tools)), stages[name]


def batch_shapes(config: ConfigDict, stage: Stage) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
  """What the stage's streams hold, by name."""
  train, side = config.train, config.data.crop

  def of_stream(name: str) -> dict[str, jax.ShapeDtypeStruct]:
    size = stage.sizes.get(
      name, train.labelled_batch if name == 'labelled' else train.unlabelled_batch)
    fields = {'labelled': ('label',), 'unlabelled': ('valid',),
              'pseudo_labelled': ('label', 'valid', 'confidence')}[name]
    maps = {field: jax.ShapeDtypeStruct(
      (size, side, side), jnp.bool if field == 'valid' else jnp.uint8) for field in fields}
    return {'image': jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8), **maps}

  return {name: of_stream(name) for name in stage.streams}


def make_mesh(gpu: Gpu, devices: int) -> Mesh:
  """So many of these GPUs along the axis `data`, none of which is there."""
  xla_bridge.canonicalize_platform = _canonicalize
  topology = topologies.get_topology_desc(
    platform='cuda', target_config=gpu.target, topology=f'{devices}x1x1')
  return topologies.make_mesh(topology, (devices,), ('data',))


_canonicalize_known = xla_bridge.canonicalize_platform


def _canonicalize(platform: str) -> str:
  """jax knows no platform without a device (jax issue 23971)."""
  try:
    return _canonicalize_known(platform)
  except RuntimeError:
    return 'cuda'


def compile_step(config: ConfigDict, gpu: Gpu, *, stage: str | None, devices: int) -> Program:
  """The step of a config's stage as XLA compiles it for so many of these GPUs."""
  state, chosen = make_stage(config, stage, devices)
  step = sharding.compile_step(chosen.step, make_mesh(gpu, devices))
  lowered = step.lower(state, batch_shapes(config, chosen))
  with tempfile.TemporaryDirectory() as folder:
    compiled = lowered.compile(compiler_options=_OPTIONS | {'xla_dump_to': folder})
    reports = sorted(Path(folder).glob('*live-range.txt'), key=lambda path: path.stat().st_size)
    live = reports[-1].read_text() if reports else ''
  memory = compiled.memory_analysis()
  return Program(chosen.name, compiled.as_text(), {
    'arguments': memory.argument_size_in_bytes, 'of which updated in place':
    memory.alias_size_in_bytes, 'temporaries': memory.temp_size_in_bytes,
    'code and constants': memory.generated_code_size_in_bytes}, live)
