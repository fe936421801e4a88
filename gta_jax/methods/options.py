"""Fields of a method's options that say what they may be, and the check of all of them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


def choice(default: str, *known: str) -> Any:
  """A field that is one of some words."""
  return dataclasses.field(default=default, metadata={'known': known})


def number(default: float, *, least: float = 0, most: float = math.inf) -> Any:
  """A field that is a number from `least` to `most`; a whole one where the default is."""
  return dataclasses.field(default=default, metadata={'least': least, 'most': most})


def drop_share(options: Mapping[str, Any]) -> float:
  """Share of the least confident pixels that pictures mark: what the method drops, else 0.2."""
  return options.get('drop_fraction', 0.2)


def check_fields(options: Any) -> None:
  """Refuses a value of another type than its default, or out of its range.

  Args:
    options: of a dataclass whose fields all have defaults.
  Raises: ValueError with the field, its value and the rule.
  """
  for field in dataclasses.fields(options):
    _check(field, getattr(options, field.name))


def _check(field: dataclasses.Field, value: Any) -> None:
  known, most = field.metadata.get('known'), field.metadata.get('most')
  kind = type(field.default)
  # Numbers may be whole where they need not; a bool is an int to Python, but not here.
  allowed = (int, float) if kind is float else kind
  if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
    raise ValueError(f'{field.name}={value!r} is not possible; use a {kind.__name__}, as in '
                     f'{field.default!r}.')
  if known and value not in known:
    raise ValueError(f'{field.name}={value!r} is unknown; use one of: {", ".join(known)}.')
  if most is not None:
    least = field.metadata['least']
    if not (least <= value <= most and value < math.inf):
      raise ValueError(f'{field.name}={value} is out of range; use {least} to {most}.')
