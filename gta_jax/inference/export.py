"""A network of a run as StableHLO, ONNX or a torch state dict, checked as soon as it is written."""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export as jax_export

from gta_jax.data.transforms import block_side
from gta_jax.data.writing import replace_bytes
from gta_jax.inference.model import Model
from gta_jax.models import pretrained
from gta_jax.ops.platforms import portable
from gta_jax.ops.resizing import resize_bilinear

TOLERANCE = 1e-4  # of probabilities, between JAX and what was exported
_SUFFIXES = {'stablehlo': ('.stablehlo',), 'onnx': ('.onnx',), 'torch': ('.pth', '.safetensors')}
FORMATS = tuple(_SUFFIXES)
_BESIDE_JAX2ONNX = ('onnx', 'onnx_ir', 'onnxruntime', 'equinox', 'jaxtyping', 'dm_pix')
ONNX_PACKAGES = f'pip install {" ".join(_BESIDE_JAX2ONNX)} && pip install --no-deps jax2onnx'


def export(
  model: Model, out: Path, *, layout: str, size: tuple[int, int] | None = None,
  network: str | None = None, overwrite: bool = False,
) -> str:
  """Writes a network and compares what was written with JAX.

  stablehlo, onnx: images uint8 [1,H,W,3] -> probabilities float32 [1,H,W,K], normalisation and
  resizing inside. torch: the parameters in the published code's names; heads that it does not have
  are left out.

  Args:
    model: of a run.
    out: the file, named .stablehlo, .onnx, .pth (needs torch) or .safetensors (does not).
    layout: one of FORMATS.
    size: (H,W) of stablehlo and onnx; the crop by default. torch takes none.
    network: one of the model's; the first by default.
    overwrite: whether a file that is there is replaced.
  Returns: a sentence that says what was written, and how it was checked.
  Raises: ValueError for an unknown format, suffix or network, a size for torch, a file that is
    there, a package that is missing, and for a result that differs: then nothing is left.
  """
  if layout not in FORMATS:
    raise ValueError(f'format={layout!r} is unknown; use one of {", ".join(FORMATS)}.')
  if out.suffix not in _SUFFIXES[layout]:
    raise ValueError(f'out={out} should end in {" or ".join(_SUFFIXES[layout])}; rename it.')
  if layout == 'torch' and size:
    raise ValueError(f'size={size[0]}x{size[1]} has no effect with format=torch, whose parameters '
                     'take images of any size; leave it out.')
  if out.is_dir() or (out.exists() and not overwrite):
    raise ValueError(f'{out} is there already; give another --out, or --overwrite.')
  _check_packages(out)
  name = model.check_network(network)
  out.parent.mkdir(parents=True, exist_ok=True)
  if layout == 'torch':
    return _export_torch(model, name, out)
  size = size or (model.crop, model.crop)
  if min(size) < 1 or size[0] * size[1] > 2**26:
    raise ValueError(f'size={size} should be HEIGHTxWIDTH in pixels, such as 360x480.')
  function = make_function(model, name, size)
  image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
  # First, and jitted here alone: what jax2onnx has traced, jax cannot run any more.
  expected = np.asarray(jax.jit(function)(image))
  predicted = model.probabilities(image[0], network=name)
  data, run, checker = {'stablehlo': _stablehlo, 'onnx': _onnx}[layout](function, size)
  found = np.asarray(run(image))
  difference = float(np.abs(found - expected).max())
  _check(difference, out)
  apart = float(np.abs(found[0] - predicted).max())  # OpenCV resizes what `predict` sees.
  replace_bytes(out, data)
  return (f'{out}: {name} of step {model.step}, uint8 [1,{size[0]},{size[1]},3] -> probabilities '
          f'[1,{size[0]},{size[1]},{len(model.classes)}]; {checker} gives the same as JAX within '
          f'{difference:.1e}, and as predict within {apart:.1e}, on an image of noise')


def _check_packages(out: Path) -> None:
  """Refuses a file whose package is missing, before any work."""
  needed = {'.pth': ('torch',), '.onnx': ('jax2onnx', *_BESIDE_JAX2ONNX)}.get(out.suffix, ())
  missing = [name for name in needed if not importlib.util.find_spec(name)]
  if 'torch' in missing:
    raise ValueError('.pth needs torch: install it, or write .safetensors.')
  if missing:
    raise ValueError(f'ONNX needs {", ".join(missing)}; install with "{ONNX_PACKAGES}".')


def make_function(
  model: Model, name: str, size: tuple[int, int]
) -> Callable[[jax.Array], jax.Array]:
  """uint8 [B,H,W,3] -> probabilities float32 [B,H,W,K] for one size, as the model gives them.

  Where model.image_scale is not 1 the resized image's values, 0 to 255, may differ by 1 from the
  model's, which OpenCV computes in integers.

  Raises: ValueError for sides that the blocks of a small image_scale do not divide.
  """
  block = block_side(model.image_scale)
  if any(side % block for side in size):
    raise ValueError(f'size={size[0]}x{size[1]} is averaged in blocks of {block} x {block} pixels '
                     f'(data.image_scale={model.image_scale:g}); give multiples of {block}.')
  network, variables = model.network, model.variables[name]
  scaled = tuple(max(1, round(side * model.image_scale)) for side in size)
  padded = tuple(side + (model.crop - side) % model.multiple for side in scaled)
  colour = jnp.round(255 * jnp.array(network.mean))

  def function(images: jax.Array) -> jax.Array:
    x = images.astype(jnp.float32)
    if scaled != size:
      x = _resize_image(_averaged(x, block), scaled)
    # Subtracted and added: then what is padded is zero.
    margins = ((0, 0), (0, padded[0] - scaled[0]), (0, padded[1] - scaled[1]), (0, 0))
    x = jnp.pad(x - colour, margins) + colour
    low = network.apply(variables, network.normalize(x), train=False)[0].main
    logits = resize_bilinear(low.astype(jnp.float32), padded)[:, : scaled[0], : scaled[1]]
    return jax.nn.softmax(logits if scaled == size else _resize_centred(logits, size))

  return function


def _averaged(x: jax.Array, block: int) -> jax.Array:
  """Means of blocks, rounded to whole numbers; [B,h,w,C] to [B,h/block,w/block,C]."""
  if block == 1:
    return x
  rows, height, width, channels = x.shape
  blocks = x.reshape(rows, height // block, block, width // block, block, channels)
  return jnp.round(blocks.mean((2, 4)))


def _resize_image(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
  """_resize_centred of whole numbers up to 255, rounded to such.

  Weights have 11 bits, as OpenCV's, and what lies between the axes 5 behind the point. So nothing
  is rounded by float32 but where it is meant, and halves become the same whole number in every
  program that runs an export.
  """
  for axis, bits in ((2, 5), (1, 0)):
    length, side = x.shape[axis], size[axis - 1]
    places = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
    low = np.floor(places).astype(np.int32)
    share = np.expand_dims(np.round((places - low) * 2**11) / 2**11, [*range(1, 4 - axis)])
    share = share.astype(np.float32)
    high = np.minimum(low + 1, length - 1)
    x = jnp.take(x, low, axis=axis) * (1 - share) + jnp.take(x, high, axis=axis) * share
    x = jnp.round(x * 2**bits) / 2**bits
  return x


def _resize_centred(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
  """Bilinear, [B,h,w,C] to [B,H,W,C], with half-pixel centres as cv2.resize."""
  return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), 'bilinear', antialias=False)


def _stablehlo(function: Any, size: tuple[int, int]) -> tuple[bytes, Callable, str]:
  shape = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
  platforms = sorted({'cpu', 'cuda', jax_export.default_export_platform()})
  data = bytes(jax_export.export(jax.jit(function), platforms=platforms)(shape).serialize())
  return data, jax_export.deserialize(bytearray(data)).call, 'jax.export'


def _onnx(function: Any, size: tuple[int, int]) -> tuple[bytes, Callable, str]:
  import jax2onnx  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
  import onnxruntime  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

  shape = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
  try:
    with portable():  # As another function: jax remembers the one that has run.
      proto = jax2onnx.to_onnx(functools.partial(function), [shape], model_name='gta_jax')
  except NotImplementedError as error:
    raise ValueError(f'jax2onnx cannot write this network as ONNX ({error}); export it with '
                     '--format stablehlo.') from error
  data = proto.SerializeToString()
  session = onnxruntime.InferenceSession(data, providers=['CPUExecutionProvider'])
  input_name = session.get_inputs()[0].name
  return data, lambda image: session.run(None, {input_name: image})[0], 'onnxruntime'


def _export_torch(model: Model, name: str, out: Path) -> str:
  variables = model.variables[name]
  state, left_out = pretrained.to_state_dict(variables)
  partial = out.with_name(f'.{out.stem}.partial{out.suffix}')
  try:
    if out.suffix == '.safetensors':
      partial.write_bytes(safetensors.numpy.save(state))  # save_file raises no OSError.
    else:
      _save_pth(state, partial)
    # The heads left out are not asked for.
    kept = {kind: {k: v for k, v in of.items() if k not in left_out}
            for kind, of in variables.items()}
    back, _ = pretrained.convert(pretrained.load_state_dict(partial), kept)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), kept, back)
    if not all(jax.tree.leaves(same)):
      raise ValueError(f'{out} was not written: it reads back with other numbers.')
    partial.replace(out)
  finally:
    partial.unlink(missing_ok=True)
  without = f', without {", ".join(left_out)}' if left_out else ''
  return (f'{out}: {len(state)} tensors of {name}, step {model.step}{without}; read back, every '
          'number is the same')


def _save_pth(state: dict[str, np.ndarray], path: Path) -> None:
  import torch  # noqa: PLC0415

  torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)


def _check(difference: float, out: Path) -> None:
  if not difference < TOLERANCE:
    raise ValueError(f'{out} was not written: its probabilities differ from JAX by '
                     f'{difference:.1e}, more than {TOLERANCE:.0e}; please report it.')
