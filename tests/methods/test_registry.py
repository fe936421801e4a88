"""Names of methods and recipes, and what they refuse."""

import pytest

from gta_jax.methods.gta import Gta
from gta_jax.methods.registry import METHODS, RECIPES, has_recipe, make_method, table


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('name', METHODS)
def test_every_name_works_under_every_recipe_that_is_its_own(name, recipe):
  if not has_recipe(name, recipe):
    with pytest.raises(ValueError, match="the code of GTA-Seg's authors, which has no"):
      make_method(name, recipe=recipe)
    return
  method = make_method(name, recipe=recipe)
  assert method.scored and method.cost >= 3 and method.summary and method.paper
  hash(method)


def test_the_recipe_of_other_authors_is_named():
  with pytest.raises(ValueError, match='no u2pl; use method=u2pl_released, or recipe=paper'):
    make_method('u2pl', recipe='released')


def test_the_table_has_a_line_for_every_method():
  lines = table().splitlines()
  for name in METHODS:
    assert sum(line.split()[:1] == [name] for line in lines) == 1
  assert '7  an assistant learns from pseudo-labels' in table()


def test_published_cost_of_both_recipes():
  """The forward-equivalents that docs/method.md counts by hand."""
  costs = {name: (make_method(name).cost, make_method(name, recipe='released').cost)
           for name in ('sup_only', 'cutmix', 'gta')}
  assert costs == {'sup_only': (3, 4), 'cutmix': (7, 9), 'gta': (7, 15)}


def test_paper_is_the_default():
  method = make_method()
  assert method == Gta()
  assert (method.transmission_decay, method.teacher_decay) == (0.99, 0.99)
  assert (method.drop_fraction, method.smoothing, method.unlabelled_weight) == (0.2, 1.0, 1.0)
  assert method.transmitted == ('backbone', 'decoder') and not method.shared
  assert method.warmup_epochs == 1 and method.batch_norm == 'own'


def test_all_parameters_are_those_that_the_network_has():
  method = make_method('ema_all')
  for keys in (('backbone', 'classifier'), ('backbone', 'classifier', 'auxiliary')):
    assert method.transmitted_keys(keys) == keys
  assert make_method('gta').transmitted_keys(keys) == ('backbone', 'decoder')


def test_option_wins_over_name_and_name_over_recipe():
  assert make_method('gta_alpha_0.99', recipe='released').teacher_decay == 0.99
  assert make_method('gta_alpha_0.99', teacher_decay=0.5).teacher_decay == 0.5


@pytest.mark.parametrize('arguments, message', [
  (('gtaa',), r'unknown; did you mean gta\? Use one of: gta, sup_only'),
])
def test_unknown_name_lists_the_known(arguments, message):
  with pytest.raises(ValueError, match=message):
    make_method(*arguments)


@pytest.mark.parametrize('options, message', [
  ({'recipe': 'papers'}, 'did you mean paper. Use one of: paper, released'),
  ({'taw': 1}, 'gta has no options taw; use some of: .*smoothing'),
  ({'mixing': 'mixup'}, 'none, cutmix, classmix, cutout'),
  ({'drop_fraction': 20}, 'drop_fraction=20'),
  ({'smoothing': -1}, 'smoothing=-1 is out of range'),
  ({'student_learns': ()}, r'student_learns=\(\): a network learns'),
  ({'assistant_learns': ('pseudo', 'pseudo')}, 'once each'),
  ({'assistant_learns': ('labelled',)}, 'nothing would learn from unlabelled .* method=sup_only'),
  ({'student_learns': ('masks',)}, 'masks'),
  ({'shared': ('backbone',)}, 'both transmitted and shared'),
  ({'transmitted': ('all',), 'shared': ('classifier',)}, 'classifier.* both transmitted and'),
])
def test_bad_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    make_method('gta', **options)
