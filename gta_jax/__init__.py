"""GTA-Seg in JAX: semi-supervised semantic segmentation with a gentle teaching assistant.

    import gta_jax
    model = gta_jax.load('runs/mine')
    mask = model.predict(image)  # uint8 [H,W] of ids in model.classes

Importing the package imports neither jax nor another package; `load` does.
"""

import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gta_jax.version import __version__

if TYPE_CHECKING:
  import ml_collections

  from gta_jax.inference.model import Model

__all__ = ['__version__', 'load', 'load_config']


def load(workdir: str | Path, *, checkpoint: str = 'last') -> 'Model':
  """The trained model of a run; its data set is not needed.

  Like the command, it keeps compiled programs in ~/.cache/gta_jax/xla unless jax has another folder
  for them, and turns a faulty optimisation of jaxlib 0.10.2 off (see devices.runtime).

  Args:
    workdir: of the run, as given to --workdir.
    checkpoint: 'last' or 'best'.
  Raises:
    ValueError: the folder holds no run, or no such checkpoint.
  """
  from gta_jax.devices import runtime  # noqa: PLC0415  jax takes seconds to import.

  runtime.disable_faulty_cpu_fusion()
  from gta_jax.inference import finished  # noqa: PLC0415

  if checkpoint not in ('last', 'best'):
    raise ValueError(f"checkpoint={checkpoint!r} is unknown; use 'last' or 'best'.")
  runtime.keep_compiled_programs()
  return finished.load_model(Path(workdir).expanduser(), which=checkpoint)


def load_config(
  name: str, fields: Mapping[str, Any] = types.MappingProxyType({})
) -> 'ml_collections.ConfigDict':
  """The config that the command's --config finds, from any folder.

      config = gta_jax.load_config('shapes:48,method=cutmix', {'train.epochs': 5})

  Args:
    name: of a config that comes with the package, or a path; after a colon its choice. Method and
      recipe are chosen here: they are options from then on, and config.method.name is only a name.
    fields: those that are set, by their dotted names.
  Raises:
    ValueError: an unknown name, choice or field.
    TypeError: a value of another kind than the field's.
  """
  from gta_jax import command_flags  # noqa: PLC0415  So that importing the package is cheap.

  try:
    return command_flags.load_config(name, fields)
  except command_flags.UsageError as error:
    raise ValueError(str(error).removeprefix('--config ')) from error
