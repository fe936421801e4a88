"""The published figures of methods reach the configs."""

import pytest

from configs import cityscapes, voc
from gta_jax.methods.registry import make_method
from gta_jax.training import config_rules


@pytest.mark.parametrize('config, method, expected', [
  (voc, 'cps', {'optim.rate': 0.0025, 'optim.weight_decay': 4e-4, 'optim.decay': 'kernels',
                'method.cross_weight': 1.5, 'data.crop': 512, 'train.epochs': 34}),
  (voc, 'cps_cutmix', {'method.cross_weight': 1.0, 'method.mixing': 'xor_boxes'}),
  (cityscapes, 'cps', {'method.cross_weight': 6.0, 'optim.weight_decay': 8e-4,
                       'loss.ohem_min_kept': 400_000, 'model.auxiliary': False}),
  (cityscapes, 'cps_cutmix_released', {'method.cross_weight': 5.0,
                                       'method.cross_on': 'unlabelled'}),
  (voc, 'mean_teacher_consistency', {'optim.rate': 0.0025, 'method.consistency_weight': 100.0}),
  (voc, 'cutmix_consistency', {'train.unlabelled_batch': 16, 'method.partner': 'half'}),
  (voc, 'fixmatch', {'optim.rate': 0.001, 'data.crop': 321, 'method.threshold': 0.95}),
  (voc, 'u2pl', {'data.scale': (0.5, 1.0, 2.0), 'data.crop': 513}),
  (cityscapes, 'ael', {'data.scale': (0.5, 1.0, 2.0), 'data.crop': 769}),
  (cityscapes, 'unimatch', {'optim.rate': 0.005, 'data.crop': 801, 'method.threshold': 0.0,
                            'optim.decoder_multiplier': 1.0, 'loss.ohem_threshold': 0.7}),
])
def test_published_figures_are_the_configs(config, method, expected):
  c = config_rules.complete(config.get_config(f'183,method={method}'))
  for name, value in expected.items():
    section, field = name.split('.')
    assert c[section][field] == value, name
  options = {k: v for k, v in c.method.items() if k not in ('name', 'recipe')}
  make_method(method, **options)
