"""What a run has left in its folder: its config, its classes and its networks."""

from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections

from gta_jax.data.files import IGNORE
from gta_jax.devices import sharding
from gta_jax.ops.network import Network, Variables
from gta_jax.training import setup
from gta_jax.training.checkpoint import Checkpoints
from gta_jax.training.workdir_files import read_json


def read_run(workdir: Path) -> tuple[ml_collections.ConfigDict, dict]:
  """The config of a run, and the classes and colours of its data set.

  Raises:
    ValueError: the folder is missing, holds no run, or a file of it is damaged.
  """
  if not workdir.is_dir():
    raise ValueError(f'{workdir} does not exist; give the --workdir of a run.')
  if not (workdir / 'config.json').is_file():
    raise ValueError(f'{workdir} holds no run: config.json is missing; give the --workdir of one.')
  config, path = setup.from_json(workdir / 'config.json'), workdir / 'dataset.json'
  described = read_json(path)
  classes, palette = described.get('classes'), described.get('palette')
  whole = (
    isinstance(classes, list) and 0 < len(classes) <= IGNORE
    and all(isinstance(name, str) for name in classes)
    and isinstance(palette, list) and len(palette) == len(classes)
    and all(isinstance(rgb, list) and len(rgb) == 3 for rgb in palette)
    and all(value in range(256) for rgb in palette for value in rgb))
  if not whole:
    raise ValueError(
      f'{path} is damaged: it holds no list of classes with a colour each; restore it, or train '
      'anew.')
  return config, described


def load_networks(
  workdir: Path, config: ml_collections.ConfigDict, *, num_classes: int, which: str = 'last',
  names: Sequence[str] = (),
) -> tuple[Network, dict[str, Variables], int]:
  """Networks of a run's last or best checkpoint; nothing else is read.

  Args:
    workdir: of the run.
    config: the run's, for the network.
    num_classes: K.
    which: 'last' or 'best'.
    names: some of the method's networks; the one that predicts if none is named.
  Returns: their common shape, their variables by name, and the step they are from.
  Raises:
    ValueError: no checkpoint is there.
  """
  folder = workdir / 'checkpoints'
  if not folder.is_dir():
    raise ValueError(f'{folder} does not exist; train first, or give the --workdir of a run.')
  names = names or setup.make_method_of(config).scored[:1]
  network = setup.make_network(config, num_classes)
  crop = config.data.crop
  like = jax.eval_shape(lambda key: network.init(key, (crop, crop)), jax.random.key(0))
  everywhere = sharding.replicated(sharding.make_mesh())
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), like)
  with Checkpoints(folder, only=which) as checkpoints:
    step = checkpoints.best_step if which == 'best' else checkpoints.last_step
    if step is None:
      kind = 'scored' if which == 'best' else 'finished'
      raise ValueError(f'{folder} holds no {kind} checkpoint; go on training first.')
    return network, checkpoints.restore_networks(step, like, names), step
