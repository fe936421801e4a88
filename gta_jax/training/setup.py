"""From a config to everything that a run is made of; all that can be refused is refused here."""

import dataclasses
import inspect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from gta_jax.data import pipeline, published, shapes, sources
from gta_jax.data.sources import Dataset
from gta_jax.devices import sharding
from gta_jax.evaluation.protocols import make_protocols
from gta_jax.methods.accumulation import MicroBatches
from gta_jax.methods.gradient_step import check_accumulation
from gta_jax.methods.options import Method
from gta_jax.methods.state import Optimizers, TrainState, init_state, make_optimizers
from gta_jax.models import pretrained, weights
from gta_jax.models.deeplab import make_deeplab
from gta_jax.ops.losses import SupervisedLoss
from gta_jax.ops.network import Network, Variables
from gta_jax.training import config_rules


@dataclasses.dataclass(frozen=True)
class Run:
  """A checked config, turned into values.

  Attributes:
    epoch_steps: steps of a pass over the unlabelled images.
    total_steps: of the whole run, warm-up included.
    warmup_steps: of the warm-up.
    handover_steps: see make_train_step.
    weights: file that the networks start from, or None.
    micro: how batches are cut into passes.
  """

  config: ml_collections.ConfigDict
  dataset: Dataset
  method: Method
  network: Network
  optimizers: Optimizers
  loss: SupervisedLoss
  epoch_steps: int
  total_steps: int
  warmup_steps: int
  handover_steps: int
  weights: Path | None
  micro: MicroBatches

  def initial_state(self) -> TrainState:
    """The state before the first step, on every device."""
    crop = self.config.data.crop
    key_weights, key_run = jax.random.split(jax.random.key(self.config.seed))
    variables = jax.jit(self.network.init, static_argnums=1)(key_weights, (crop, crop))
    if self.weights:
      variables = _load_weights(self.weights, self.config, variables)
    state = init_state(key_run, variables, self.method, self.optimizers)
    return sharding.replicate(state, sharding.make_mesh())


def make_run(config: ml_collections.ConfigDict) -> Run:
  """Reads and checks all that a run needs.

  Raises:
    ValueError: a bad value in the config, or a DataError about the data set's files.
  """
  config = config_rules.complete(config)
  method = make_method_of(config)
  _check_method(method, config)
  make_protocols(config.evaluate.get('protocols', ('whole',)), crop=config.data.crop)
  train = config.train
  sharding.check_batch('train.labelled_batch', train.labelled_batch)
  sharding.check_batch('train.unlabelled_batch', train.unlabelled_batch)
  _check_names('loss', config.loss, [field.name for field in dataclasses.fields(SupervisedLoss)])
  loss = SupervisedLoss(**config.loss)
  micro = _make_micro(config, method, loss)
  model = config.model
  # Before the data, which may have to be downloaded; so many classes only then.
  make_network(config, num_classes=1)
  weights.check(model.weights, depth=model.depth, stem=model.stem, width=model.width)
  dataset = make_dataset(config)
  if method.uses_unlabelled and not dataset.unlabelled:  # Else only the end of the warm-up tells.
    raise ValueError(
      f'{dataset.name} has no unlabelled images; add some, or train with method=sup_only.')
  if loss.class_weights and len(loss.class_weights) != len(dataset.classes):
    raise ValueError(
      f'loss.class_weights has {len(loss.class_weights)} values for {len(dataset.classes)} '
      'classes; give one for each class, or () for none.')
  network = make_network(config, len(dataset.classes))
  sources.check(dataset)
  if config.data.cache:
    reader = sources.CachedReader(dataset.reader, config.data.cache)
    dataset = dataclasses.replace(dataset, reader=reader)
  epoch_steps = pipeline.steps_per_epoch(dataset, train.unlabelled_batch)
  total_steps = max(1, round(train.epochs * epoch_steps))
  optimizers = make_optimizers(
    method, rate=config.optim.rate, total_steps=total_steps, power=config.optim.power,
    decoder_multiplier=config.optim.decoder_multiplier, momentum=config.optim.momentum,
    weight_decay=config.optim.weight_decay)
  return Run(
    config=config, dataset=dataset, method=method, network=network, optimizers=optimizers,
    loss=loss, epoch_steps=epoch_steps, total_steps=total_steps,
    warmup_steps=round(method.warmup_epochs * epoch_steps),
    handover_steps=round(method.handover_epochs * epoch_steps),
    weights=weights.fetch(model.weights) if model.weights else None, micro=micro)


def _check_method(method: Method, config: ml_collections.ConfigDict) -> None:
  """Refuses what the network and the batches do not allow."""
  if 'auxiliary' in method.transmitted + method.shared and not config.model.auxiliary:
    raise ValueError(
      'method.transmitted or method.shared holds auxiliary, a head that the network does not have; '
      'take it out, or set model.auxiliary=True.')
  batch = config.train.unlabelled_batch
  group = method.threshold_images or batch
  if batch % group:
    raise ValueError(
      f'method.threshold_images={group} does not divide train.unlabelled_batch={batch}; use a '
      'divisor, or 0 for the whole batch.')


def _make_micro(
  config: ml_collections.ConfigDict, method: Method, loss: SupervisedLoss
) -> MicroBatches:
  """train.per_device_batch, checked; what fits whole is not cut."""
  train = config.train
  micro = MicroBatches(train.per_device_batch, jax.device_count())
  counts = [micro.count(batch) for batch in (train.labelled_batch, train.unlabelled_batch)]
  if method.batch_norm == 'joint' and counts[0] != counts[1]:
    raise ValueError(
      f'train.per_device_batch={train.per_device_batch} cuts {train.labelled_batch} labelled and '
      f'{train.unlabelled_batch} unlabelled images into {counts[0]} and {counts[1]} parts, which '
      'method.batch_norm=joint takes together; use batches of one size.')
  check_accumulation(loss, micro)
  return micro


def _load_weights(
  file: Path, config: ml_collections.ConfigDict, variables: Variables
) -> Variables:
  """The variables with what the file holds; the class layer stays for other classes."""
  model = config.model
  state_dict = pretrained.load_state_dict(file, item=model.weights_item or None)
  variables, _ = pretrained.convert(
    state_dict, variables, scope=model.weights_scope, allow_other_classes=True)
  return variables


def make_method_of(config: ml_collections.ConfigDict) -> Method:
  """The config's method; its name and recipe have already been turned into options."""
  options = {k: v for k, v in config.method.items() if k not in ('name', 'recipe')}
  known = [field.name for field in dataclasses.fields(Method)]
  _check_names('method', options, known)
  return Method(**options)


def make_dataset(config: ml_collections.ConfigDict) -> Dataset:
  """The data set that the config names, not yet checked."""
  data = config_rules.complete(config).data
  if data.source == 'shapes':
    if not (data.split.isdecimal() and len(data.split) <= 6):
      raise ValueError(
        f'split {data.split[:100]!r} is not a number below 1,000,000; use configs/shapes.py:24.')
    return shapes.make_shapes(
      labelled=int(data.split), unlabelled=data.unlabelled, validation=data.validation,
      size=data.size)
  if data.source == 'folder':
    if not data.dir:
      raise ValueError('data.dir is empty; add --config.data.dir=DIR, the folder with images/.')
    if not data.split:
      raise ValueError(
        'no split is named; write configs/folder.py:46 for splits/46/labeled.txt, or any number '
        'of labelled images to be drawn.')
    return sources.read_folder(data.dir, labelled=data.split, seed=config.seed)
  if data.source in published.NAMES:
    return published.read(
      data.source, split=data.split, folder=data.dir, store=data.store,
      split_source=data.split_source, split_lists=data.split_lists, mirror=data.mirror,
      seed=config.seed)
  raise ValueError(
    f'data.source={data.source!r} is unknown; use one of: folder, shapes, '
    f'{", ".join(published.NAMES)}.')


def make_network(config: ml_collections.ConfigDict, num_classes: int) -> Network:
  """The config's network for so many classes."""
  model = {k: v for k, v in config.model.items() if not k.startswith('weights')}
  for name, value in weights.statistics(config.model.weights).items():
    model[name] = model.get(name) or value
  model['multi_grid'] = model['multi_grid'] or None
  _check_names('model', model, list(inspect.signature(make_deeplab).parameters))
  return make_deeplab(num_classes=num_classes, **model)


def _check_names(section: str, fields: Iterable[str], known: Sequence[str]) -> None:
  if unknown := sorted(set(fields) - set(known)):
    raise ValueError(
      f'{section} has the unknown fields {unknown}; use some of: {", ".join(known)}.')


def to_json(config: ml_collections.ConfigDict) -> str:
  """The config as indented JSON; tuples become lists."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def from_json(path: Path) -> ml_collections.ConfigDict:
  """The config that to_json wrote.

  Raises:
    ValueError: no run lies there, or the file is damaged.
  """
  try:
    config = ml_collections.ConfigDict(_tuples(read_json(path)))
    config_rules.check(config)
    make_method_of(config)
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error} Restore the file, or train anew.') from error
  return config


def read_json(path: Path) -> dict[str, Any]:
  """What a JSON file of a run holds; its top level is an object.

  Raises:
    ValueError: no run lies there, or the file is damaged.
  """
  if not path.is_file():
    raise ValueError(f'{path} does not exist; give the --workdir of a run.')
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is damaged ({error}); restore it, or train anew.') from error
  if not isinstance(found, dict):
    raise ValueError(f'{path} is damaged: it holds no object; restore it, or train anew.')
  return found


def _tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
