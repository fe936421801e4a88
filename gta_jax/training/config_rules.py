"""What every field of a config may be, in one table; the method's own fields are in methods.py."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from gta_jax import config_base

# RGB pixels of one batch on the host: 6 GiB; more is a slip of the finger.
_MOST_PIXELS = 2**31
_MISSING = object()


@dataclasses.dataclass(frozen=True)
class _Rule:
  """A kind, the range of a number, and whether the field is a tuple of such or may be None."""

  kind: type
  low: float = 0
  high: float = math.inf
  tuple_of: bool = False
  or_none: bool = False
  optional: bool = False  # only some config files have the field
  known: tuple[str, ...] = ()
  lengths: tuple[int, ...] = ()  # that a tuple may have; () for any
  or_empty: bool = False

  def allows(self, value: Any) -> bool:
    if value is None:
      return self.or_none
    if self.tuple_of:
      one = dataclasses.replace(self, tuple_of=False, or_none=False)
      right_length = isinstance(value, tuple | list) and (
        not self.lengths or len(value) in self.lengths or (self.or_empty and not value))
      return right_length and all(map(one.allows, value))
    if self.kind in (bool, str):
      return isinstance(value, self.kind) and (not self.known or value in self.known)
    kinds = int if self.kind is int else (int, float)
    finite = isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < math.inf
    return finite and self.low <= value <= self.high

  def __str__(self) -> str:
    if self.known:
      text = f'one of: {", ".join(self.known)}'
    elif self.kind in (bool, str):
      text = {bool: 'True or False', str: 'text'}[self.kind]
    else:
      text = 'a whole number' if self.kind is int else 'a number'
      text += f' from {self.low} to {self.high}' if self.high < math.inf else f' >= {self.low}'
    if self.tuple_of:
      values = f'{" or ".join(map(str, self.lengths))} values' if self.lengths else 'a tuple'
      text = f'{values}, each {text}'
    text += ', or ()' if self.or_empty else ''
    return f'{text}, or None' if self.or_none else text


def _whole(low: int, high: int, **options: Any) -> _Rule:
  return _Rule(int, low, high, **options)


def _real(low: float, high: float = math.inf, **options: Any) -> _Rule:
  return _Rule(float, low, high, **options)


_TINY, _BELOW_ONE = 1e-6, math.nextafter(1, 0)
RULES = {
  'seed': _whole(0, 2**32 - 1),
  'method.name': _Rule(str),
  'method.recipe': _Rule(str),
  'data.source': _Rule(str),
  'data.dir': _Rule(str),
  'data.store': _Rule(str, optional=True),
  'data.mirror': _Rule(str, optional=True),
  'data.split': _Rule(str),
  'data.split_source': _Rule(str, known=('published', 'seeded'), optional=True),
  'data.split_lists': _Rule(str, optional=True),
  'data.pixel_range': _whole(0, 2**16 - 1, tuple_of=True, optional=True),
  'data.unlabelled': _whole(0, 10**6, optional=True),
  'data.validation': _whole(1, 10**6, optional=True),
  'data.size': _whole(32, 4096, optional=True),
  'data.crop': _whole(1, 16_384),
  'data.image_scale': _real(0.01, 100),
  'data.scale': _real(0.01, 100, tuple_of=True, lengths=(2, 3)),
  'data.flip': _Rule(bool),
  'data.jitter': _real(0, _BELOW_ONE, optional=True),
  'data.padding_label': _whole(0, 255),
  'data.label_sampling': _Rule(str, known=('reshuffled', 'once')),
  'data.threads': _whole(1, 1024),
  'data.workers': _whole(0, 1024),
  'data.prefetch': _whole(1, 1024),
  'data.cache': _real(0, 1e9),
  'data.skip_limit': _whole(0, 10**9, optional=True),
  'data.oracle': _Rule(bool),
  'model.backbone': _Rule(str, optional=True),
  'model.decoder': _Rule(str, optional=True),
  'model.frozen_stages': _whole(0, 4, optional=True),
  'model.pool_norm': _Rule(bool, optional=True),
  'model.depth': _whole(1, 1000),
  'model.stem': _Rule(str),
  'model.output_stride': _whole(1, 64),
  'model.multi_grid': _whole(1, 64, tuple_of=True),
  'model.width': _real(0.01, 16),
  'model.aspp_rates': _whole(1, 1024, tuple_of=True),
  'model.dropout': _real(0, _BELOW_ONE),
  'model.auxiliary': _Rule(bool),
  'model.dtype': _Rule(str),
  'model.remat': _Rule(bool, optional=True),
  'model.mean': _real(0, 1, tuple_of=True, lengths=(3,), or_empty=True, optional=True),
  'model.std': _real(_TINY, 10, tuple_of=True, lengths=(3,), or_empty=True, optional=True),
  'model.weights': _Rule(str),
  'model.weights_item': _Rule(str),
  'model.weights_scope': _Rule(str, known=('backbone', 'all')),
  'loss.ohem_threshold': _real(0, 1, or_none=True),
  'loss.ohem_min_kept': _whole(0, 2**31 - 1),
  'loss.auxiliary_weight': _real(0, 1e6),
  'loss.class_weights': _real(0, 1e6, tuple_of=True),
  'optim.rate': _real(0),
  'optim.decoder_multiplier': _real(0, 1e6),
  'optim.power': _real(0, 100),
  'optim.momentum': _real(0, _BELOW_ONE),
  'optim.weight_decay': _real(0, 1),
  'optim.name': _Rule(str, known=('sgd', 'adamw'), optional=True),
  'optim.decay': _Rule(str, known=('all', 'kernels'), optional=True),
  'train.epochs': _real(_TINY, 1e6),
  'train.labelled_batch': _whole(1, 65_536),
  'train.unlabelled_batch': _whole(1, 65_536),
  'train.per_device_batch': _whole(0, 65_536, optional=True),
  'train.log_steps': _whole(1, 10**9),
  'train.checkpoint_steps': _whole(0, 10**9, optional=True),
  'train.deterministic': _Rule(bool, optional=True),
  'train.init_from': _Rule(str, optional=True),
  'train.non_finite': _Rule(str, known=('stop', 'skip'), optional=True),
  'train.evaluate_epochs': _real(_TINY, 1e6),
  'evaluate.batch': _whole(1, 65_536),
  'evaluate.pictures': _whole(0, 1000),
  'evaluate.worst': _whole(0, 1000, optional=True),
  'evaluate.protocols': _Rule(str, tuple_of=True, optional=True),
}


# Fields that a config from before them, or one of a user's own, may lack; as in config_base.py.
DEFAULTS = {
  'data.store': '', 'data.mirror': '', 'data.split_source': 'published', 'data.split_lists': '',
  'data.pixel_range': (), 'data.skip_limit': 10, 'train.per_device_batch': 0,
  'train.checkpoint_steps': 0, 'train.init_from': '', 'train.non_finite': 'stop',
  'optim.name': 'sgd', 'optim.decay': 'all', 'train.deterministic': False,
  'model.backbone': 'resnet', 'model.decoder': 'deeplab', 'model.frozen_stages': 0,
  'model.pool_norm': True, 'evaluate.worst': 8, 'data.jitter': 0.0,
}


# Fields that are read only where another one says so; that one, and whether it does.
_RESNET = 'model.backbone=resnet', lambda c: c.model.backbone == 'resnet'
_READERS: Mapping[str, tuple[str, Callable[[ml_collections.ConfigDict], bool]]] = {
  'model.depth': _RESNET, 'model.stem': _RESNET, 'model.multi_grid': _RESNET,
  'model.aspp_rates': ('model.decoder=deeplab', lambda c: c.model.decoder == 'deeplab'),
  'loss.auxiliary_weight': ('model.auxiliary=True', lambda c: c.model.auxiliary),
  'optim.momentum': ('optim.name=sgd', lambda c: c.optim.name == 'sgd'),
}


def unread(config: ml_collections.ConfigDict) -> list[str]:
  """A sentence for each field of a complete config that was changed though nothing reads it."""
  plain = config_base.base('sup_only', 'paper')
  return [f'{name}={_shown(look_up(config, name))} has no effect without {reader}.'
          for name, (reader, reads) in _READERS.items()
          if look_up(config, name) != look_up(plain, name) and not reads(config)]


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A checked config, with the defaults of fields that it lacks. Raises: as check."""
  check(config)
  missing = {k: v for k, v in DEFAULTS.items() if look_up(config, k) is _MISSING}
  if missing:
    config = config.copy_and_resolve_references()
    with config.unlocked():
      for name, value in missing.items():
        section, field = name.split('.')
        config[section][field] = value
  return config


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a config with a field that is missing, of another type or out of its range.

  Raises: ValueError with the field, its value and the rule.
  """
  for name, rule in RULES.items():
    value = look_up(config, name)
    of_data = name in config_base.FROM_DATA and look_up(config, 'data.source') == 'folder'
    if of_data and value is None:
      continue
    if value is _MISSING:
      if rule.optional:
        continue
      raise ValueError(f'{name} is missing in the config; set it to {rule}.')
    if not rule.allows(value):
      raise ValueError(f'{name}={_shown(value)} is not possible; use {rule}.')
  _refuse_unknown(config)
  if list(config.data.scale) != sorted(config.data.scale):
    raise ValueError(f'data.scale={config.data.scale} is not (lowest, highest) or (lowest, middle, '
                     'highest); swap what is out of order.')
  pixel_range = config.data.get('pixel_range')
  if pixel_range and not (len(pixel_range) == 2 and pixel_range[0] < pixel_range[1]):
    raise ValueError(f'data.pixel_range={pixel_range} is not (black, white) with black < white; '
                     'give two values of 0 to 65535, () for images of 8 bits, or None.')
  largest = max(config.train.labelled_batch or 0, config.train.unlabelled_batch or 0)
  if largest * (config.data.crop or 0)**2 > _MOST_PIXELS:
    raise ValueError(
      f'data.crop={config.data.crop} and a batch of {largest} make more than {_MOST_PIXELS} pixels '
      'a batch; lower one of them.')


def _refuse_unknown(config: ml_collections.ConfigDict) -> None:
  """Refuses fields that nothing reads; the method's own are looked at where it is made."""
  sections = {name.partition('.')[0] for name in RULES if '.' in name} - {'method'}
  for section in sorted(sections):
    for field in config[section]:
      name = f'{section}.{field}'
      if name not in RULES:
        near = difflib.get_close_matches(name, RULES, n=1)
        raise ValueError(f'{name} is no field of a config' + (
          f', did you mean {near[0]}?' if near else f'; {section} has ' + ', '.join(
            known.partition('.')[2] for known in RULES if known.startswith(f'{section}.')) + '.'))


def look_up(config: Any, name: str) -> Any:
  """A field by its dotted name; an object that is nothing else where there is none."""
  for part in name.split('.'):
    if not isinstance(config, ml_collections.ConfigDict) or part not in config:
      return _MISSING
    config = config[part]
  return config


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 100 else f'{text[:100]}...'
