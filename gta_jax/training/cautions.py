"""What a config allows but its user should hear as the run begins, as sentences."""

import math
from collections.abc import Sequence

import jax
import ml_collections

from gta_jax.methods.contract import Method, Stage

_FEWEST_POOLED = 8  # images whose pooled features are normalised together without a word


def cautions(
  config: ml_collections.ConfigDict, method: Method, stages: Sequence[Stage]
) -> list[str]:
  """The sentences that apply to a complete config, with its method and its stages."""
  return [*filter(None, (_of_pooling(config, method, stages), _of_teacher(config)))]


def _of_pooling(
  config: ml_collections.ConfigDict, method: Method, stages: Sequence[Stage]
) -> str:
  """Says when statistics of one value an image are of too few images."""
  batches = {
    'labelled': config.train.labelled_batch, 'unlabelled': config.train.unlabelled_batch,
    'pseudo_labelled': config.train.unlabelled_batch}
  read = [[(batches | dict(stage.sizes))[name] for name in stage.streams] for stage in stages]
  joint = getattr(method, 'joint', False) or any('pseudo_labelled' in s.streams for s in stages)
  passes = [sum(of) if joint else min(of) for of in read]
  cut = config.train.per_device_batch * jax.device_count() * (1 + joint)
  images = min(*passes, cut or math.inf)
  if config.model.decoder != 'deeplab' or not config.model.pool_norm or images >= _FEWEST_POOLED:
    return ''
  return (f"BatchNorm on the decoder's image pooling sees {images} values in a pass: scores may "
          'fall far behind training; set model.pool_norm=False, or larger batches or parts.')


def _of_teacher(config: ml_collections.ConfigDict) -> str:
  """Says where the teacher of train.init_from is replaced as the run begins."""
  if not config.train.init_from or 'warmup' not in config.method:
    return ''
  method = config.method
  options = {
    # The published warm-up leaves the teacher alone, but is followed by a hand-over.
    'method.warmup=all': method.warmup == 'student',
    'method.warmup_epochs=0.0': method.warmup_epochs > 0,
    'method.handover_epochs=0.0': method.handover_epochs > 0,
    'method.ema_ramp=False': method.get('ema_ramp', False)}
  needed = [option for option, replaces in options.items() if replaces]
  if not needed:
    return ''
  # Refused without warm-up and hand-over, as nobody would have taught the teacher anything.
  needed += ['method.initial_networks=one'] if method.get('initial_networks') == 'own' else []
  return ('The teacher of train.init_from is replaced by the student in the first steps and '
          f'averages anew from there; to go on with it set {", ".join(needed)}.')
