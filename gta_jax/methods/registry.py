"""Every method by name, and the recipes that decide what a paper leaves open.

A new method is a file beside this one and a line in METHODS; docs/new_method.md shows how.
"""

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from gta_jax.methods.ael import NOT_PASTED as AEL_NOT_PASTED
from gta_jax.methods.ael import RELEASED as AEL_RELEASED
from gta_jax.methods.ael import Ael
from gta_jax.methods.cct import Cct, CctTorchSemiSeg
from gta_jax.methods.contract import Method
from gta_jax.methods.corrmatch import CorrMatch
from gta_jax.methods.cps import Cps, CpsCutMix
from gta_jax.methods.cutmix_consistency import CutMixConsistency
from gta_jax.methods.dmt import DynamicMutualTraining
from gta_jax.methods.fixmatch import FixMatch
from gta_jax.methods.gct import Gct, GctTorchSemiSeg
from gta_jax.methods.gta import ALL, FEATURES, Gta
from gta_jax.methods.mean_teacher import PSEUDO, MeanTeacher
from gta_jax.methods.mean_teacher_consistency import MeanTeacherConsistency
from gta_jax.methods.pc2seg import Pc2seg
from gta_jax.methods.pseudo_seg import PseudoSeg
from gta_jax.methods.self_training import SelfTraining
from gta_jax.methods.st_plus_plus import SelfTrainingPlusPlus
from gta_jax.methods.supervised import LABELLED, Supervised
from gta_jax.methods.u2pl import U2pl
from gta_jax.methods.unimatch import UniMatch
from gta_jax.methods.unimatch_v2 import UniMatchV2


class Named(NamedTuple):
  """A method under a name.

  kind: its class.
  changes: options that differ from the recipe.
  note: what the name stands for, where the class's summary does not say.
  published: data set -> fields of the config, which come after the class's own.
  """

  kind: Any
  changes: Mapping[str, Any] = types.MappingProxyType({})
  note: str = ''
  published: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({})


# Of each recipe, the options that a method has. `paper` is the methods' defaults.
RECIPES: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({
  'paper': {},
  'released': {
    'shared': ('classifier',),
    'transmission_decay': 0.999,
    'teacher_decay': 0.999,
    'ema_ramp': True,
    'teacher_batch_norm': 'own',
    'threshold_images': 3,
    'threshold_rule': 'percentile',
    'confidence_pass': 'mixed',
    'weight_normalizer': 'all',
    'batch_norm': 'joint',
    'labelled_images': 3,
    'mixing_images': 3,
    'initial_networks': 'own',
    'warmup': 'student',
    'handover_epochs': 1.0,
    'assistant_rate': 'constant',
  },
  # The paper's, with what the config file sets for training from random weights (docs/results.md).
  'scratch': {},
})

# docs/method.md has the paper's figure for each.
METHODS: Mapping[str, Named] = types.MappingProxyType({
  'gta': Named(Gta),
  # Table 1
  'sup_only': Named(Supervised),
  'mean_teacher': Named(MeanTeacher, {'mixing': 'none'}),
  'cutmix': Named(MeanTeacher, {'mixing': 'cutmix'}, 'mean teacher on mixed images'),
  # Table 4
  'gta_unweighted': Named(Gta, {'reweight': False}, 'Table 4: no re-weighting'),
  # Table 5, all without re-weighting
  'ema_all': Named(Gta, {'reweight': False, 'transmitted': (ALL,), 'shared': ()},
                   'Table 5: the mask predictor is transmitted too'),
  'unbiased_st': Named(Gta, {'reweight': False, 'transmitted': (), 'shared': FEATURES},
                       'Table 5: features are shared'),
  'ema_encoder': Named(Gta, {'reweight': False}, 'Table 5: features are transmitted'),
  'ema_backbone': Named(Gta, {'reweight': False, 'transmitted': ('backbone',)},
                        'Table 5: the backbone alone is transmitted'),
  # Table 7
  'assistant_labelled_student_pseudo': Named(
    Gta, {'assistant_learns': (LABELLED,), 'student_learns': (PSEUDO,)},
    'Table 7: who learns from what, exchanged'),
  'assistant_both_student_labelled': Named(
    Gta, {'assistant_learns': (LABELLED, PSEUDO)}, 'Table 7: the assistant learns from both'),
  # Table 8
  **{f'gta_alpha_{alpha}': Named(
    Gta, {'transmission_decay': alpha, 'teacher_decay': alpha}, f'Table 8: alpha {alpha}')
    for alpha in (0.99, 0.999, 0.9999)},
  **{f'gta_warmup_{epochs}': Named(
    Gta, {'warmup_epochs': float(epochs)}, f'Table 8: {epochs} epochs of warm-up')
    for epochs in (1, 2, 3)},
  # Table 9
  'gta_confidence': Named(Gta, {'smoothing': 0.0}, 'Table 9: tau 0'),
  # What the cited works have in the place of mean_teacher's and cutmix's hard labels
  'mean_teacher_consistency': Named(MeanTeacherConsistency),
  'mean_teacher_consistency_released': Named(
    MeanTeacherConsistency, {'average': 'before', 'labelled_void': 'learn'},
    'the teacher moves before the step, as the published code'),
  'cutmix_consistency': Named(CutMixConsistency),
  # The other systems of the paper's tables
  'cps': Named(Cps),
  'cps_cutmix': Named(CpsCutMix),
  'cps_cutmix_released': Named(CpsCutMix, {'cross_on': 'unlabelled'},
                               'without the labels of labelled images, as the published code'),
  'u2pl': Named(U2pl),
  'u2pl_released': Named(U2pl, {
    'negative_rule': 'released', 'queue_rule': 'position', 'anchors': 256, 'negatives': 50,
    'contrast_weight': 0.25}, 'U2PL with the negatives and the index of its published code',
    {'voc': {'data.label_sampling': 'once'},
     'cityscapes': {'data.label_sampling': 'once',
                    'method.contrast_weight': 0.125}}),  # on 8 GPUs there, and 4 on VOC
  'st': Named(SelfTraining),
  'st_plus_plus': Named(SelfTrainingPlusPlus),
  'cct': Named(Cct),
  'cct_torchsemiseg': Named(CctTorchSemiSeg),
  'gct': Named(Gct),
  'gct_torchsemiseg': Named(GctTorchSemiSeg),
  'dmt': Named(DynamicMutualTraining),
  'ael': Named(Ael),
  'ael_released': Named(
    Ael, AEL_RELEASED, "AEL as its authors' code has it",
    {'voc': {'method.threshold': 0.7, 'method.not_pasted': AEL_NOT_PASTED},
     'cityscapes': {'method.not_pasted': AEL_NOT_PASTED}}),
  'pseudo_seg': Named(PseudoSeg),
  'pc2seg': Named(Pc2seg),
  # And those that came after it
  'fixmatch': Named(FixMatch),
  'unimatch': Named(UniMatch),
  'unimatch_v2': Named(UniMatchV2),
  'fixmatch_ema': Named(
    UniMatchV2, {'views': 1, 'feature_dropout': 'none', 'batch_norm': 'joint'},
    "UniMatch V2's baseline: one strong view, no dropout"),
  'corrmatch': Named(CorrMatch),
  'corrmatch_released': Named(
    CorrMatch, {'kl_target': 'unmixed', 'threshold_padding': 'mixed', 'padding_counts': True},
    'CorrMatch as its code has it'),
})


def option_names(name: str) -> tuple[str, ...]:
  """The options of a method.

  Raises: ValueError for an unknown name, with the known ones.
  """
  return tuple(field.name for field in dataclasses.fields(_look_up('method', name, METHODS).kind))


def has_recipe(name: str, recipe: str) -> bool:
  """Whether a recipe is one of a method: the released code is GTA-Seg's and of its baselines."""
  return recipe != 'released' or METHODS[name].kind in (Gta, MeanTeacher, Supervised)


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
    recipe: a key of RECIPES; options that the method does not have are left out.
    recipe_changes: options that a config file sets for its recipe; the name wins over them.
    **options: of the method; they win over name and recipe.
  Raises:
    ValueError: an unknown name, recipe or option (the known ones are listed), a bad value, or a
      recipe that is not of this method.
  """
  named, decided = _look_up('method', name, METHODS), _look_up('recipe', recipe, RECIPES)
  known = option_names(name)
  if unknown := sorted(options.keys() - set(known)):
    raise ValueError(
      f'{name} has no options {", ".join(unknown)}; use some of: {", ".join(known)}.')
  if not has_recipe(name, recipe):
    own = f'{name}_released'
    remedy = f'method={own}, or recipe=paper' if own in METHODS else 'recipe=paper'
    raise ValueError(
      f"recipe=released is the code of GTA-Seg's authors, which has no {name}; use {remedy}.")
  of_recipe = {k: v for k, v in {**decided, **recipe_changes}.items() if k in known}
  return named.kind(**{**of_recipe, **named.changes, **options})


def _look_up(what: str, value: str, known: Mapping[str, Any]) -> Any:
  if value not in known:
    close = difflib.get_close_matches(value, known, n=1)
    raise ValueError(f'{what}={value!r} is unknown; {f"did you mean {close[0]}? " if close else ""}'
                     f'Use one of: {", ".join(known)}.')
  return known[value]


def table() -> str:
  """Every method in a line: what it is, its paper, its cost in forward-equivalents."""
  lines, paper = [], ''
  width = max(map(len, METHODS))
  for name, named in METHODS.items():
    if named.kind.paper != paper:
      paper = named.kind.paper
      lines.append(f'\n{paper}')
    cost = f'{make_method(name).cost:g}'
    lines.append(f'  {name:{width}}  {cost:>5}  {named.note or named.kind.summary}')
  head = ('The number is the cost of a step in forward passes of a batch of one kind; a backward '
          'pass counts two.\nA supervised step costs 3.')
  return '\n'.join([head, *lines])
