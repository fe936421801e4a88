"""The paper's mIoU in percent, for reports: its authors' figures, none measured here.

Rows of other systems are as the paper quotes them.
"""

from typing import NamedTuple


class Figure(NamedTuple):
  """mIoU in percent, mean of the seeds 0, 1, 2, and its deviation where the paper gives one."""

  table: int
  miou: float
  deviation: float | None = None

  def __str__(self) -> str:
    spread = '' if self.deviation is None else f' ± {self.deviation:.2f}'
    return f'{self.miou:.2f}{spread} (Table {self.table})'


def _row(table: int, splits: str, mious: str, deviations: str = '') -> dict[str, Figure]:
  spreads = [float(d) for d in deviations.split()] or [None] * len(splits.split())
  return {split: Figure(table, float(miou), spread)
          for split, miou, spread in zip(splits.split(), mious.split(), spreads, strict=True)}


_ORIGINAL, _AUGMENTED = '92 183 366 732 1464', '662 1323 2646 5291'
# Data source -> method -> split. The paper calls the split of 2646 images 2645. Its Table 3,
# Cityscapes, and SupOnly in Table 2 are missing in the text that these were taken from.
_FIGURES = {'voc': {
  'sup_only': _row(1, _ORIGINAL, '45.77 54.92 65.88 71.69 72.50'),
  # MT and CutMix of Table 1 have hard labels; those of Table 2 are quoted from works in which the
  # average's probabilities are followed.
  'mean_teacher': _row(1, _ORIGINAL, '51.72 58.93 63.86 69.51 70.96'),
  'cutmix': _row(1, _ORIGINAL, '52.16 63.47 69.46 73.73 76.54'),
  'mean_teacher_consistency': _row(2, _AUGMENTED, '70.51 71.53 73.02 76.58'),
  'cutmix_consistency': _row(2, _AUGMENTED, '71.66 75.51 77.33 78.21'),
  'pseudo_seg': _row(1, _ORIGINAL, '57.60 65.50 69.14 72.41 73.23'),
  'pc2seg': _row(1, _ORIGINAL, '57.00 66.28 69.78 73.05 74.15'),
  'st_plus_plus': _row(1, _ORIGINAL, '65.23 71.01 74.59 77.33 79.12'),
  'u2pl': _row(1, _ORIGINAL, '67.98 69.15 73.66 76.16 79.49'),
  'cct_torchsemiseg': _row(2, _AUGMENTED, '71.86 73.68 76.51 77.40'),
  'gct_torchsemiseg': _row(2, _AUGMENTED, '70.90 73.29 76.66 77.98'),
  'cps_cutmix': _row(2, _AUGMENTED, '74.48 76.44 77.68 78.64'),
  'ael': _row(2, _AUGMENTED, '77.20 77.57 78.06 80.29'),
  'gta': (_row(1, _ORIGINAL, '70.02 73.16 75.57 78.37 80.47', '0.53 0.45 0.48 0.33 0.35')
          | _row(2, _AUGMENTED, '77.82 80.47 80.57 81.01', '0.31 0.28 0.33 0.24')),
  'gta_unweighted': _row(4, '183', '72.10'),
  'ema_all': _row(5, '183', '64.07'),
  'unbiased_st': _row(5, '183', '65.92'),
  'ema_encoder': _row(5, '183', '72.10'),
  'assistant_labelled_student_pseudo': _row(7, '183', '66.71'),
  'assistant_both_student_labelled': _row(7, '183', '72.28'),
  'gta_alpha_0.99': _row(8, '183', '73.16'),
  'gta_alpha_0.999': _row(8, '183', '73.44'),
  'gta_alpha_0.9999': _row(8, '183', '73.57'),
  'gta_warmup_1': _row(8, '183', '73.16'),
  'gta_warmup_2': _row(8, '183', '73.58'),
  'gta_warmup_3': _row(8, '183', '73.39'),
  'gta_confidence': _row(9, '183', '70.67'),
}}


def find(source: str, split: str, method: str) -> Figure | None:
  """The paper's figure for data.source, data.split and a name of METHODS; None if it has none."""
  return _FIGURES.get(source, {}).get(method, {}).get(split)
