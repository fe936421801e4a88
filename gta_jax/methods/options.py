"""The method as data: every choice a named option, every row of the paper's tables a name.

No jax in here, so that config files can read it.
"""

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from typing import Any

LABELLED, PSEUDO = 'labelled', 'pseudo'
FEATURES = ('backbone', 'decoder')
_KEYS = (*FEATURES, 'classifier', 'auxiliary')
ALL = 'all'  # the keys that the network has


def _choice(default: str, *known: str) -> Any:
  return dataclasses.field(default=default, metadata={'known': known})


def _number(default: float, *, most: float = math.inf) -> Any:
  return dataclasses.field(default=default, metadata={'most': most})


@dataclasses.dataclass(frozen=True)
class Method:
  """What the step does. The defaults are GTA-Seg as the paper describes it.

  The number behind a field is its row in docs/method.md, "Paper and published code".
  """

  # Who learns from what (Table 7). No assistant exists if it learns from nothing.
  student_learns: tuple[str, ...] = (LABELLED,)
  assistant_learns: tuple[str, ...] = (PSEUDO,)

  # What passes from the assistant to the student, and from the student to the teacher.
  transmitted: tuple[str, ...] = FEATURES  # (6) averaged into the student, Eq. 9; or ('all',)
  shared: tuple[str, ...] = ()  # (1) keys that student and assistant hold in common
  transmission_decay: float = _number(0.99, most=1)  # (3) alpha of Eq. 9
  teacher_decay: float = _number(0.99, most=1)  # (3) alpha of Eq. 12
  ema_ramp: bool = False  # (3) min(1 - 1/(k+1), alpha)
  teacher_batch_norm: str = _choice('ema', 'ema', 'own')  # (13) averaged, or by its own passes

  # Pseudo-labels (Eq. 1, 2, 6, 7).
  drop_fraction: float = _number(0.2, most=1)  # share of pixels, the least confident
  threshold_images: int = _number(0)  # (10) images that share a threshold; 0: all
  confidence_pass: str = _choice('clean', 'clean', 'mixed')  # (9) which teacher pass weighs
  reweight: bool = True  # Eq. 6, or every kept pixel alike
  smoothing: float = _number(1.0)  # tau of Eq. 6
  weight_normalizer: str = _choice('kept', 'kept', 'all')  # (7) pixels in Eq. 6's lower sum
  unlabelled_weight: float = _number(1.0)  # mu of Eq. 3
  reduction: str = _choice('mean', 'mean', 'sum')  # (8) of Eq. 7

  # Strong augmentation of the unlabelled images.
  mixing: str = _choice('cutmix', 'none', 'cutmix', 'classmix', 'cutout')  # (11)
  mixing_probability: float = _number(0.5, most=1)  # that a batch is mixed
  jitter: float = _number(0.0, most=1)  # probability of colour jitter for an image
  greyscale: float = _number(0.0, most=1)  # probability of greyscale for an image
  blur: float = _number(0.0, most=1)  # probability of a Gaussian blur for an image

  # Forward passes.
  batch_norm: str = _choice('own', 'own', 'joint')  # (12) which images share batch statistics

  # From warm-up to the semi-supervised phase.
  warmup_epochs: float = _number(1.0)
  warmup: str = _choice('all', 'all', 'student')  # (5) who trains on labelled data
  handover_epochs: float = _number(0.0)  # (2) the student overwrites the others so long
  assistant_rate: str = _choice('poly', 'poly', 'constant')  # (4)

  def __post_init__(self):
    for field in dataclasses.fields(self):
      _check(field, getattr(self, field.name))
    for name in ('student_learns', 'assistant_learns'):
      if unknown := [data for data in getattr(self, name) if data not in (LABELLED, PSEUDO)]:
        raise ValueError(f'{name} holds {unknown}; use {LABELLED} and {PSEUDO}.')
    if not self.student_learns:
      raise ValueError('student_learns is empty; a student learns from labelled, pseudo or both.')
    for name, known in (('transmitted', (*_KEYS, ALL)), ('shared', _KEYS)):
      if unknown := [key for key in getattr(self, name) if key not in known]:
        raise ValueError(f'{name} holds {unknown}; use some of: {", ".join(known)}.')
    if overlap := set(self.transmitted_keys(_KEYS)) & set(self.shared):
      raise ValueError(f'{sorted(overlap)} is both transmitted and shared; choose one of them.')

  def transmitted_keys(self, params: Iterable[str]) -> tuple[str, ...]:
    """Which of a network's keys are averaged into the student."""
    return tuple(params) if ALL in self.transmitted else self.transmitted

  @property
  def has_assistant(self) -> bool:
    return bool(self.assistant_learns)

  @property
  def uses_unlabelled(self) -> bool:
    return PSEUDO in self.student_learns + self.assistant_learns


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
  if most is not None and not (0 <= value <= most and value < math.inf):
    raise ValueError(f'{field.name}={value} is out of range; use 0 to {most}.')


# Which recipe decides what the paper leaves open. `paper` is Method's defaults.
RECIPES: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({
  'paper': {},
  'released': {
    'shared': ('classifier',),
    'transmission_decay': 0.999,
    'teacher_decay': 0.999,
    'ema_ramp': True,
    'teacher_batch_norm': 'own',
    'threshold_images': 3,
    'confidence_pass': 'mixed',
    'weight_normalizer': 'all',
    'batch_norm': 'joint',
    'warmup': 'student',
    'handover_epochs': 1.0,
    'assistant_rate': 'constant',
  },
  # The paper's, with what the config file sets for training from random weights (docs/results.md).
  'scratch': {},
})

_NO_ASSISTANT = {'assistant_learns': (), 'transmitted': (), 'shared': ()}
_TEACHER_STUDENT = {**_NO_ASSISTANT, 'student_learns': (LABELLED, PSEUDO), 'reweight': False}

# Name -> what differs from the recipe. docs/method.md has the paper's figure for each.
METHODS: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({
  'gta': {},
  # Table 1
  'sup_only': {**_NO_ASSISTANT, 'mixing': 'none'},
  'mean_teacher': {**_TEACHER_STUDENT, 'mixing': 'none'},
  'cutmix': {**_TEACHER_STUDENT, 'mixing': 'cutmix'},
  # Table 4
  'gta_unweighted': {'reweight': False},
  # Table 5, all without re-weighting
  'ema_all': {'reweight': False, 'transmitted': (ALL,), 'shared': ()},
  'unbiased_st': {'reweight': False, 'transmitted': (), 'shared': FEATURES},
  'ema_encoder': {'reweight': False},
  'ema_backbone': {'reweight': False, 'transmitted': ('backbone',)},
  # Table 7
  'assistant_labelled_student_pseudo': {
    'assistant_learns': (LABELLED,), 'student_learns': (PSEUDO,)},
  'assistant_both_student_labelled': {'assistant_learns': (LABELLED, PSEUDO)},
  # Table 8
  'gta_alpha_0.99': {'transmission_decay': 0.99, 'teacher_decay': 0.99},
  'gta_alpha_0.999': {'transmission_decay': 0.999, 'teacher_decay': 0.999},
  'gta_alpha_0.9999': {'transmission_decay': 0.9999, 'teacher_decay': 0.9999},
  'gta_warmup_1': {'warmup_epochs': 1.0},
  'gta_warmup_2': {'warmup_epochs': 2.0},
  'gta_warmup_3': {'warmup_epochs': 3.0},
  # Table 9
  'gta_confidence': {'smoothing': 0.0},
})


def make_method(
  name: str = 'gta',
  *,
  recipe: str = 'paper',
  recipe_changes: Mapping[str, Any] = types.MappingProxyType({}),
  **options: Any,
) -> Method:
  """The named method under a recipe, with single options changed.

  Args:
    name: a key of METHODS.
    recipe: a key of RECIPES.
    recipe_changes: fields of Method that a config file sets for its recipe; the name wins over
      them.
    **options: fields of Method; they win over name and recipe.
  Raises:
    ValueError: an unknown name, recipe or option (the known ones are listed), or a bad value.
  """
  for what, value, known in (('method', name, METHODS), ('recipe', recipe, RECIPES)):
    if value not in known:
      raise ValueError(f'{what}={value!r} is unknown; use one of: {", ".join(known)}.')
  known_options = [field.name for field in dataclasses.fields(Method)]
  if unknown := sorted({*options, *recipe_changes} - set(known_options)):
    raise ValueError(f'unknown method options {unknown}; use some of: {", ".join(known_options)}.')
  return Method(**{**RECIPES[recipe], **recipe_changes, **METHODS[name], **options})
