"""The table of ranges: every field has a rule, and each kind of wrong value is refused by name."""

import ml_collections
import pytest

from configs import cityscapes, folder, shapes, voc
from gta_jax.methods.registry import METHODS, option_names
from gta_jax.training import config_rules
from gta_jax.training.same_run import flatten


def config(**changes):
  found = shapes.get_config()
  with found.ignore_type():
    found.update_from_flattened_dict(changes)
  return found


def test_the_configs_are_allowed():
  for module in (folder, shapes, voc, cityscapes):
    for recipe in ('paper', 'released', 'scratch'):
      config_rules.check(module.get_config(f'46,method=gta,recipe={recipe}'))


def test_every_field_has_a_rule():
  """The method's own fields are checked by Method."""
  fields = {field for module in (folder, shapes, voc, cityscapes)
            for field in flatten(module.get_config('46,method=gta').to_dict())}
  method = {f'method.{name}' for name in option_names('gta')}
  assert not fields - method - set(config_rules.RULES)
  assert not set(config_rules.RULES) - fields  # No rule is left of a field that is gone.


@pytest.mark.parametrize('name, value', [
  ('seed', -1), ('seed', 0.5), ('seed', True), ('data.crop', 0), ('data.crop', 10**20),
  ('data.threads', 0), ('data.workers', -1), ('data.cache', float('nan')),
  ('data.cache', float('inf')), ('data.scale', (0.0, 1.0)), ('data.scale', (1.0,)),
  ('data.scale', (0.5, 1.0, 1.5, 2.0)),
  ('data.scale', 1.0), ('data.flip', 1), ('data.label_sampling', 'twice'),
  ('model.dropout', 1.0), ('model.aspp_rates', (3, 0)), ('model.aspp_rates', ('a',)),
  ('optim.rate', -0.1), ('optim.momentum', 1.0), ('optim.momentum', None),
  ('optim.rate', '0.1'), ('loss.ohem_threshold', 1.5), ('loss.class_weights', (float('nan'),)),
  ('train.epochs', 0.0), ('train.log_steps', 0), ('evaluate.batch', 0), ('data.split', 5),
  ('data.size', 8), ('data.skip_limit', -1), ('model.mean', (0.5,)), ('model.std', (0.5, 0.5)),
  ('model.std', (0, 0, 0)),
])
def test_values_out_of_range_or_of_another_kind_are_refused(name, value):
  with pytest.raises(ValueError, match=rf'^{name}=.* is not possible; use .*\.$'):
    config_rules.check(config(**{name: value}))


def test_mean_and_deviation_are_three_values_or_those_of_the_weights():
  config_rules.check(config(**{'model.mean': (0.0, 0.5, 1), 'model.std': [0.2, 0.2, 0.2]}))
  config_rules.check(config(**{'model.mean': (), 'model.std': ()}))
  with pytest.raises(ValueError, match=r'use 3 values, each a number from 0 to 1, or \(\)\.'):
    config_rules.check(config(**{'model.mean': (0.5,)}))


def test_what_only_two_fields_together_rule_out():
  with pytest.raises(ValueError, match='swap'):
    config_rules.check(config(**{'data.scale': (2.0, 1.0)}))
  with pytest.raises(ValueError, match='swap'):
    config_rules.check(config(**{'data.scale': (0.5, 3.0, 2.0)}))
  with pytest.raises(ValueError, match=r'data.crop=8192 and a batch of 64 .* pixels a batch'):
    config_rules.check(config(**{'data.crop': 8192, 'train.labelled_batch': 64}))
  config_rules.check(config(**{'loss.ohem_threshold': 0.7, 'model.multi_grid': (1, 2, 4)}))


def test_fields_of_a_later_date_have_the_defaults_of_the_configs():
  full = voc.get_config('183').lock()
  base = voc.get_config('183')
  for name in config_rules.DEFAULTS:
    section, field = name.split('.')
    del base[section][field]
  base.lock()
  assert config_rules.complete(base).to_dict() == full.to_dict()
  assert 'skip_limit' not in base.data
  assert config_rules.complete(full) is full


def test_missing_fields_are_named():
  found = config()
  del found.data.crop
  with pytest.raises(ValueError, match='data.crop is missing.*whole number from 1'):
    config_rules.check(found)
  with pytest.raises(ValueError, match='seed is missing'):
    config_rules.check(ml_collections.ConfigDict())


@pytest.mark.parametrize('field, value, reader', [
  ('optim.momentum', 0.5, {'optim.name': 'adamw'}),
  ('model.aspp_rates', (1,), {'model.decoder': 'unet'}),
  ('model.depth', 18, {'model.backbone': 'efficientnet_lite0'}),
  ('loss.auxiliary_weight', 1.0, {'model.auxiliary': False})])
def test_fields_that_nothing_reads_are_said(field, value, reader):
  plain = shapes.get_config()
  base = {'model.depth': 50, 'model.aspp_rates': (6, 12, 18), 'model.stem': 'deep', **reader}
  with plain.ignore_type():
    plain.update_from_flattened_dict(base)
  assert not config_rules.unread(plain)
  with plain.ignore_type():
    plain.update_from_flattened_dict({field: value})
  said, = config_rules.unread(plain)
  assert said.startswith(f'{field}={value} has no effect without ')
  used = {'optim.name': 'sgd', 'model.decoder': 'deeplab', 'model.backbone': 'resnet',
          'model.auxiliary': True}
  plain.update_from_flattened_dict({name: used[name] for name in reader})
  assert not config_rules.unread(plain)


@pytest.mark.parametrize('module', [voc, cityscapes])
def test_published_data_sets_have_the_network_of_the_paper(module):
  model = module.get_config().model
  assert (model.backbone, model.depth, model.decoder) == ('resnet', 101, 'deeplab')
  assert model.weights == 'timm/resnet101s.gluon_in1k' and model.stem == 'deep'
  assert (model.output_stride, model.multi_grid, model.aspp_rates) == (8, (2, 2, 4), (12, 24, 36))


@pytest.mark.parametrize('module', [folder, shapes, voc, cityscapes])
def test_no_config_sets_a_field_that_nothing_reads(module):
  networks = {folder: ('small', 'base', 'large', 'tiny'), voc: ('resnet101', 'dinov2_b'),
              cityscapes: ('resnet101', 'dinov2_b')}.get(module, ())
  for choice in [f',model={network}' for network in networks] or ['']:
    for method in METHODS:
      found = config_rules.complete(module.get_config(f'46,method={method}{choice}'))
      assert not config_rules.unread(found), (method, choice)
