"""CutMix-Seg: the student's probabilities on mixed images follow the mix of its average's.

French, Laine, Aila, Mackiewicz, Finlayson, Semi-supervised semantic segmentation needs strong,
varied perturbations, BMVC 2020 (the rows CutMix of GTA-Seg's tables), as PixelSSL has it, which is
the one description that was at hand. u' is another unlabelled image, m a box of half the area:

    u_m = u (1 - m) + u' m        q = p_t(u) (1 - m) + p_t(u') m        p = softmax f
    c   = share of pixels with max_k q_k > 0.97, one number for the batch
    L   = CE(f_s(x_l), y) + w c mean_ij mean_k (p_s(u_m)_ijk - q_ijk)^2
    one SGD step of the student; theta_t <- a theta_t + (1 - a) theta_s, a = min(1 - 1/(k+1), 0.99)

w = 20 without a ramp. The other image is the next one of the batch; partner='half' pairs image j
with image j + B/2 and mixes half as many, as PixelSSL does with twice the unlabelled images.

Cost 7 forward-equivalents: teacher 1, student 6.

Reported, ResNet-101: VOC's original lists 92 / 183 / 366 / 732 / 1464 52.16 63.47 69.46 73.73 76.54
(GTA-Seg's Table 1), augmented lists 71.66 75.51 77.33 78.21 (its Table 2; in the text that was at
hand the row stands on one line with CCT's). PixelSSL, PSPNet: 69.21 70.82 71.69 73.86 for 1/16 to
1/2 of VOC.

Where this differs, and what is unverified:
- Padding counts neither in the mean nor in c.
- c counts pixels of the mix, as PixelSSL; confidence_on='all' counts those of both clean images.
- Unverified: that the paper sums over classes with w = 1 (reduction='sum', from memory).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState
from gta_jax.methods.mean_teacher_consistency import CONSISTENCY, MeanTeacherConsistency
from gta_jax.methods.objectives import Term, unlabelled_images
from gta_jax.methods.options import choice, number
from gta_jax.methods.supervised import LABELLED
from gta_jax.ops.mixing import next_images, paste, xor_boxes
from gta_jax.ops.network import Array

_AREA = (0.5, 0.5)  # least and largest share of the box


@dataclasses.dataclass(frozen=True)
class CutMixConsistency(MeanTeacherConsistency):
  """Options: those of the soft consistency, and those of the mix."""

  summary: ClassVar[str] = "the student's probabilities on mixed images follow its average's"
  paper: ClassVar[str] = ("CutMix of GTA-Seg's tables, after French et al., Semi-supervised "
                          'semantic segmentation needs strong, varied perturbations, BMVC 2020')
  # PixelSSL's, with a PSPNet pretrained on COCO: rate for all 4 GPUs, epochs of 1/16 and 1/8.
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    'voc': {
      'optim.rate': 0.001, 'optim.decoder_multiplier': 10.0, 'optim.weight_decay': 5e-4,
      'train.epochs': 45, 'train.labelled_batch': 8, 'train.unlabelled_batch': 16,
      'data.crop': 513, 'model.output_stride': 16, 'model.multi_grid': (),
      'model.aspp_rates': (6, 12, 18), 'method.partner': 'half',
    },
  }

  ema_ramp: bool = True  # min(1 - 1/(k+1), alpha)
  consistency_weight: float = number(20.0)  # w, once the ramp is over
  consistency_on: str = choice('unlabelled', 'unlabelled')
  consistency_of: str = choice('probabilities', 'probabilities')
  threshold: float = number(0.97, most=1)  # largest probability above which a pixel is sure
  confidence_on: str = choice('mixed', 'mixed', 'all')  # pixels whose sure share is c
  reduction: str = choice('mean', 'mean', 'sum')  # over classes
  partner: str = choice('next', 'next', 'half')  # the other image

  def __post_init__(self):
    super().__post_init__()
    if self.labelled_void != 'ignore':
      raise ValueError(f'labelled_void={self.labelled_void} has no effect here: unlabelled images '
                       'alone are compared; leave it out.')

  @property
  def cost(self) -> float:
    return 5.5 if self.partner == 'half' else 7

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    batch = tools.unlabelled_batch
    if batch < 2 or (self.partner == 'half' and batch % 2):
      raise ValueError(
        f'train.unlabelled_batch={batch} cannot be mixed with method.partner={self.partner}, which '
        f'takes {"an even number of" if self.partner == "half" else "two or more"} images; use '
        f'{max(2, batch + batch % 2)}.')
    if self.partner == 'half':
      tools.accumulation.count(batch // 2)
      if self.joint:
        raise ValueError(
          'method.batch_norm=joint takes mixed and labelled images together, but '
          'method.partner=half halves their number; use method.partner=next.')
    return super().check(tools)

  def compare(
    self, tools: Tools, state: TrainState, batches: dict[str, Batch], key: Array
  ) -> tuple[TrainState, dict[str, Term], Metrics]:
    """See MeanTeacherConsistency: of mixed images, and of labelled ones ground truth alone."""
    key_mix, key_teacher = jax.random.split(key)
    labelled, valid = self.labelled(tools, batches), batches['unlabelled']['valid']
    images = unlabelled_images(tools, batches['unlabelled'])
    state, said = self.ask_teacher(tools, state, {CONSISTENCY: images}, key_teacher)
    said = said[CONSISTENCY]
    clean = (images, valid, said)
    pair = (clean, jax.tree.map(next_images, clean))
    if self.partner == 'half':
      half = len(images) // 2
      pair = (jax.tree.map(lambda x: x[:half], clean), jax.tree.map(lambda x: x[half:], clean))
    inside = xor_boxes(
      key_mix, len(pair[0][0]), (images.shape[1], images.shape[2]), boxes=1, area=_AREA)
    images, mixed_valid, mixed = jax.tree.map(lambda x, y: paste(x, y, inside), *pair)

    sure = self.sure_share(*((mixed, mixed_valid) if self.confidence_on == 'mixed' else
                             (said, valid)))
    weight = self.weight(tools, state) * sure
    if self.reduction == 'sum':
      weight = weight * tools.num_classes
    terms = {
      LABELLED: labelled,
      CONSISTENCY: Term(images, (mixed, mixed_valid),
                        self.consistency(weight, jnp.sum(mixed_valid))),
    }
    return state, terms, {'consistency_weight': weight, 'kept_share': sure}

  def sure_share(self, said: Array, valid: Array) -> Array:
    """Of the valid pixels of probabilities [B,H,W,K], those above the threshold."""
    sure = valid & (jnp.max(said, axis=-1) > self.threshold)
    return jnp.sum(sure) / jnp.maximum(jnp.sum(valid), 1)
