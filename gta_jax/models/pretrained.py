"""Weights from torch state dicts: the published code's (and U2PL's), torchvision's and timm's;
DINOv2's as published, of timm or transformers, and with DPT as UniMatch V2 names them.

    state = load_state_dict('resnet101s.safetensors')
    variables, report = convert(state, network.init(key, (513, 513)), scope='backbone')
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from gta_jax.models import torch_files
from gta_jax.models.dinov2_names import published_names
from gta_jax.ops.network import Params, Variables

SCOPES = ('all', 'backbone')

_PREFIXES = {
  'backbone': 'encoder.',
  'decoder': 'decoder.',
  'classifier': 'decoder.classifier.',
  'auxiliary': 'auxor.aux.',
}
# UniMatch V2's names; only of the parts that are its own.
_DINOV2_PREFIX = 'backbone.'
_DPT_PREFIXES = {'decoder': 'head.', 'classifier': 'head.scratch.output_conv.'}
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
# Orders of the axes of kernels: of convolutions, also transposed ones, and of products.
_FROM_TORCH, _TO_TORCH = {4: (2, 3, 1, 0), 2: (1, 0)}, {4: (3, 2, 0, 1), 2: (1, 0)}
# A counter, the representation head of U2PL, the classifiers of ImageNet, and what DINOv2 and DPT
# never use: the token of masked patches, and a unit of the coarsest fusion.
_IGNORED = re.compile(r'(.*\.)?num_batches_tracked$|decoder\.representation\.|fc\.|classifier\.|'
                      r'_conv_head\.|_bn1\.|_fc\.|(backbone\.)?mask_token$|'
                      r'head\.scratch\.refinenet4\.resConfUnit1\.')
_CLASS_LAYER = re.compile(
  r'(decoder\.classifier\.8|auxor\.aux\.4|head\.scratch\.output_conv\.2)\.')


@dataclasses.dataclass(frozen=True)
class Report:
  """Names, as in the state dict, by what became of them.

  Attributes:
    loaded: copied into the network.
    missing: the network needs them, the state dict lacks them.
    extra: the state dict has them, the network does not and no rule explains why.
    misshapen: both have them, in different shapes.
    ignored: left out by rule: counters, other heads, whatever the scope leaves out.
    kept: class layers left as they were, since the number of classes differs.
    drawn: parts of the network that the published code has no names for, left as they were: the
      heads of other methods.
  """

  loaded: tuple[str, ...] = ()
  missing: tuple[str, ...] = ()
  extra: tuple[str, ...] = ()
  misshapen: tuple[str, ...] = ()
  ignored: tuple[str, ...] = ()
  kept: tuple[str, ...] = ()
  drawn: tuple[str, ...] = ()


def load_state_dict(path: str | Path, *, item: str | None = None) -> dict[str, np.ndarray]:
  """Reads the tensors of a .safetensors, .pth or .pt file.

  Args:
    path: the file.
    item: which state dict of a file that holds several, e.g. 'teacher_state'; model.weights_item in
      messages.
  Returns: name -> float32 array, axes in torch's order.
  Raises: ValueError for another kind of file, one that cannot be read, and an item that is unknown
    or needed.
  """
  path = Path(path)
  readers = {'.safetensors': _load_safetensors, '.pth': _load_torch, '.pt': _load_torch}
  if path.suffix not in readers:
    raise ValueError(f'{path} is no .safetensors, .pth or .pt file; convert it to one of these.')
  content = readers[path.suffix](path)
  if not content:
    raise ValueError(f'{path} holds no state dict; save one, such as model.state_dict().')
  items = {name: value for name, value in content.items() if isinstance(value, dict)}
  if bool(items) != (item is not None) or (items and item not in items):
    held, remedy = (', '.join(items), 'one of them') if items else ('one state dict', "''")
    raise ValueError(
      f'{path} holds {held}, but model.weights_item is {item or ""!r}; set it to {remedy}.')
  state = content if item is None else items[item]
  state = {name: np.asarray(value, np.float32) for name, value in state.items()}
  if wrong := [name for name, value in state.items() if not np.isfinite(value).all()]:
    raise ValueError(f'{path} holds infinite or undefined numbers in {", ".join(wrong[:5])}; get '
                     'the file again.')
  return state


def _load_safetensors(path: Path) -> dict[str, Any]:
  try:
    return safetensors.numpy.load_file(path)
  except Exception as error:  # the library has errors of its own for a damaged file
    cause = (str(error).strip() or repr(error)).splitlines()[0]
    raise ValueError(f'{path} cannot be read: {cause} Get the file again.') from error


def _load_torch(path: Path) -> dict[str, Any]:
  """The state dicts of a dict, or the tensors of one; what else it holds is left out.

  Beside state dicts a tensor is no weight: PyTorch's ImageNet example keeps its best score so.
  """
  content = torch_files.load(path)
  if not isinstance(content, dict):
    raise ValueError(f'{path} cannot be read: it holds a {type(content).__name__}, not a dict of '
                     'tensors; save a state dict.')
  named = {name: value for name, value in content.items() if isinstance(name, str)}
  held = {name: value for name, value in named.items() if _is_state_dict(value)}
  return held or {name: value for name, value in named.items() if isinstance(value, np.ndarray)}


def _is_state_dict(value: Any) -> bool:
  return isinstance(value, dict) and bool(value) and all(
    isinstance(name, str) and isinstance(tensor, np.ndarray) for name, tensor in value.items())


def convert(
  state_dict: dict[str, np.ndarray],
  variables: Variables,
  *,
  scope: str = 'all',
  allow_other_classes: bool = False,
) -> tuple[Variables, Report]:
  """Puts a torch state dict into a network's variables.

  Args:
    state_dict: named as in the published code or, with scope 'backbone', as in torchvision, timm
      and transformers; 'module.' in front is dropped.
    variables: of the network. Leaves that are not loaded are returned as they are.
    scope: 'all', or 'backbone' to leave decoder and heads alone.
    allow_other_classes: leave a class layer alone where the state dict's has another shape.
  Returns: new variables, and the report.
  Raises: ValueError that lists every missing, extra and misshapen name.
  """
  if scope not in SCOPES:
    raise ValueError(f'model.weights_scope={scope!r} is unknown; use one of {", ".join(SCOPES)}.')
  state = {name.removeprefix('module.'): value for name, value in state_dict.items()}
  prefixes = _prefixes_of(variables['params'])
  parts = {'backbone'} if scope == 'backbone' else prefixes.keys() & variables['params'].keys()
  if scope == 'backbone':
    if prefixes['backbone'] == _DINOV2_PREFIX:
      state = published_names(state)
    if not any(name.startswith(prefixes['backbone']) for name in state):
      prefixes['backbone'] = ''
  leaves, tree = jax.tree_util.tree_flatten_with_path(variables)
  new = [leaf for _, leaf in leaves]
  found: dict[str, list[str]] = {field.name: [] for field in dataclasses.fields(Report)}
  for index, (path, leaf) in enumerate(leaves):
    _, part, *inner = (entry.key for entry in path)
    if part not in parts:
      continue
    name = _torch_name(prefixes[part], inner)
    fate, new[index] = _load_leaf(state.pop(name, None), leaf)
    if fate == 'misshapen' and allow_other_classes and _CLASS_LAYER.match(name):
      fate = 'kept'
    found[fate].append(name)
  others = tuple(prefix for part, prefix in prefixes.items() if part not in parts)
  for name in state:
    by_rule = _IGNORED.match(name) or name.startswith(others)
    found['ignored' if by_rule else 'extra'].append(name)
  if scope == 'all':
    found['drawn'] = sorted(variables['params'].keys() - parts)
  report = Report(**{fate: tuple(names) for fate, names in found.items()})
  _raise_unless_whole(report, scope)
  return tree.unflatten(new), report


def to_state_dict(variables: Variables) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """The inverse of convert: a network's variables in the published code's names.

  Returns: name -> float32 array with torch's axes, and the top-level keys that have no such name.
  """
  prefixes = _prefixes_of(variables['params'])
  state, unknown = {}, [part for part in variables['params'] if part not in prefixes]
  for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
    _, part, *inner = (entry.key for entry in path)
    if part not in unknown:
      value = _with_axes(np.asarray(leaf, np.float32), _TO_TORCH)
      state[_torch_name(prefixes[part], inner)] = np.array(value, order='C')
  return state, tuple(unknown)


def _prefixes_of(params: Params) -> dict[str, str]:
  """What stands before the names of each part."""
  prefixes = dict(_PREFIXES)
  if 'patch_embed' in params.get('backbone', {}):
    prefixes['backbone'] = _DINOV2_PREFIX
  if 'scratch' in params.get('decoder', {}):
    prefixes |= _DPT_PREFIXES
  return prefixes


def _torch_name(prefix: str, path: list[str]) -> str:
  """('encoder.', ['layer1_0', 'conv1', 'kernel']) -> 'encoder.layer1.0.conv1.weight'."""
  *modules, leaf = path
  return prefix + re.sub(r'_(?=\d)', '.', '.'.join([*modules, _LEAVES.get(leaf, leaf)]))


def _load_leaf(value: np.ndarray | None, leaf: jax.Array) -> tuple[str, jax.Array]:
  """What became of a leaf, as a field of Report, and the array to put there."""
  if value is None:
    return 'missing', leaf
  value = _with_axes(value, _FROM_TORCH)
  if value.shape != leaf.shape:
    return 'misshapen', leaf
  return 'loaded', jnp.array(value, leaf.dtype)


def _with_axes(value: np.ndarray, axes: dict[int, tuple[int, ...]]) -> np.ndarray:
  return value.transpose(axes[value.ndim]) if value.ndim in axes else value


def _raise_unless_whole(report: Report, scope: str) -> None:
  problems = [f'{fate}: {", ".join(names)}' for fate in ('missing', 'extra', 'misshapen')
              if (names := getattr(report, fate))]
  if problems:
    raise ValueError(
      f'The weights do not fit the network with model.weights_scope={scope}. Set model.backbone, '
      'model.depth, model.stem and model.width as the weights were trained with; those of ImageNet '
      'and DINOv2 need model.weights_scope=backbone.\n' + '\n'.join(problems))
