"""GTA-Seg in JAX: semi-supervised semantic segmentation with a gentle teaching assistant.

    import gta_jax
    model = gta_jax.load('runs/mine')
    mask = model.predict(image)  # uint8 [H,W] of ids in model.classes

Importing the package imports neither jax nor anything else; `load` does.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from gta_jax.inference.model import Model

__all__ = ['load']
__version__ = '0.2.0'


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
