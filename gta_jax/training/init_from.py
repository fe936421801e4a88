"""The networks that a run starts from: drawn, pretrained, or those of a finished run.

A semi-supervised run may begin where a supervised one has become flat: `train.init_from` names the
workdir of that one. Only networks are taken over; optimisers and step start anew, and so do heads
that the other run's networks lack.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from gta_jax.devices import sharding
from gta_jax.methods.contract import TrainState
from gta_jax.models import pretrained, weights
from gta_jax.ops import trees
from gta_jax.ops.network import Variables
from gta_jax.training import config_rules
from gta_jax.training.finished_run import load_networks, read_run
from gta_jax.training.logs import note
from gta_jax.training.setup import Run, make_method_of, make_network
from gta_jax.training.unseen import check_unseen, is_own

STUDENT = 'student'
_SEEN = ('model.output_stride', 'model.multi_grid', 'model.aspp_rates', 'data.image_scale',
         'data.pixel_range')


def first_state(run: Run) -> TrainState:
  """The state before the first step, on every device; fetches pretrained weights if need be.

  With train.init_from every network takes the variables of the network of the same name. One whose
  name the other run does not score begins as that run's student, or as its network that predicts
  where it has none. Of several that a method draws apart, because equal ones would stay equal, all
  but the first keep the classifier that was drawn, unless the other run has their names too; this
  holds for pretrained weights as well. What a method remembers of its first networks, as ST does to
  begin again, is of these.

  Raises:
    ValueError: train.init_from names no finished run, or one with other classes or networks, one
      whose networks saw images normalised in another way, or that learnt from masks of images by
      which this run is scored.
  """
  source = run.config.train.init_from
  if not source:
    return _pretrained_state(run)
  config, described = read_run(Path(source))
  classes = tuple(described['classes'])
  if classes != tuple(run.dataset.classes):
    raise ValueError(
      f'train.init_from={source} was trained for {", ".join(classes)}, the data set has '
      f'{", ".join(run.dataset.classes)}; name a run with the same classes in the same order.')
  _check_inputs(run, config, source)
  for split, ids in (('val', run.dataset.validation), ('test', run.dataset.test)):
    check_unseen(Path(source), ids, split=split, same_data=is_own(config, run.config))
  scored = make_method_of(config).scored
  _, found, _ = load_networks(Path(source), config, num_classes=len(classes), names=scored)
  found = sharding.local_copy(found)
  other = found.get(STUDENT, found[scored[0]])

  state = run.drawn_state(lambda drawn: _taken_over(drawn, other, source))
  begun = sharding.local_copy(state.networks)
  named = {name: _taken_over(begun[name], variables, source)
           for name, variables in found.items() if name in begun}
  return state.with_networks(**sharding.replicate(named, sharding.make_mesh()))


def _pretrained_state(run: Run) -> TrainState:
  """Networks with the weights of model.weights, or drawn where it names none."""
  model = run.config.model
  if not model.weights:
    return run.drawn_state()
  state_dict = pretrained.load_state_dict(
    weights.fetch(model.weights), item=model.weights_item or None)
  reports = []

  def load(drawn: Variables) -> Variables:
    variables, report = pretrained.convert(
      state_dict, drawn, scope=model.weights_scope, allow_other_classes=True)
    reports.append(report)
    return variables

  state = run.drawn_state(load)
  if (drawn := (*reports[0].kept, *reports[0].drawn)) and sharding.is_first_process():
    note(f'model.weights={model.weights} has nothing that fits {", ".join(drawn)}: random weights '
         'are what these begin from')
  return state


def _check_inputs(run: Run, other: ml_collections.ConfigDict, source: str) -> None:
  """Refuses or names what no shape shows: how the other run's networks saw images."""
  other = config_rules.complete(other)  # An older run's lacks fields.
  theirs, ours = make_network(other, run.tools.num_classes), run.network
  if (theirs.mean, theirs.std) != (ours.mean, ours.std):
    raise ValueError(
      f'train.init_from={source} saw images normalised by mean {theirs.mean} and std {theirs.std}, '
      f'this run would by {ours.mean} and {ours.std}; use the same model.weights, or set '
      'model.mean and model.std.')
  values = {field: tuple(config[section][name] for config in (other, run.config))
            for field in _SEEN for section, name in (field.split('.'),)}
  differing = [f'{field}={one}, here {own}' for field, (one, own) in values.items() if one != own]
  if differing and sharding.is_first_process():
    note(f'train.init_from={source} was trained with {"; ".join(differing)}: its features may not '
         'fit at first')


def _taken_over(drawn: Variables, found: Variables, source: str) -> Variables:
  """`found`, in buffers of its own, with the heads of `drawn` that it lacks."""
  variables = {}
  for collection, of_drawn in drawn.items():
    of_found = found.get(collection, {})
    part = {key: of_found[key] for key in of_drawn if key in of_found}
    if differing := _differing({key: of_drawn[key] for key in part}, part):
      raise ValueError(
        f'train.init_from={source} has another network: {differing}; use the same model.* as that '
        'run, or leave train.init_from empty.')
    variables[collection] = {**of_drawn, **trees.copy(part)}
  return variables


def _differing(drawn: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  """The first leaf that differs in its place or shape, in words; '' if none does."""
  ours, theirs = (
    {jax.tree_util.keystr(path, simple=True, separator='.'): leaf.shape
     for path, leaf in jax.tree_util.tree_leaves_with_path(tree)} for tree in (drawn, found))
  for name in sorted(ours | theirs):
    if ours.get(name) != theirs.get(name):
      return f'{name} has shape {theirs.get(name)} there and {ours.get(name)} here'
  return ''
