"""From a config to everything that a run is made of; all that can be refused is refused here."""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import optax

from gta_jax.data import pipeline, sources
from gta_jax.data.sources import Dataset
from gta_jax.data.writing import is_of_data
from gta_jax.devices import sharding
from gta_jax.evaluation.protocols import make_protocols
from gta_jax.evaluation.windows import check_protocols
from gta_jax.methods.accumulation import Accumulation
from gta_jax.methods.contract import Method, Stage, Tools, TrainState
from gta_jax.methods.registry import METHODS, RECIPES, make_method, option_names
from gta_jax.models import weights
from gta_jax.models.segmenter import make_segmenter
from gta_jax.ops.losses import SupervisedLoss
from gta_jax.ops.network import Array, Network, Variables, check_sides
from gta_jax.ops.optim import Optimizer, make_adam, make_sgd, poly_schedule
from gta_jax.training import config_rules, from_data
from gta_jax.training.cautions import cautions
from gta_jax.training.datasets import checked_dataset
from gta_jax.training.workdir_files import has_checkpoint, read_json, tuples

_MANY_CLASSES = 255  # enough for every method
_CLASSIFIER = 'classifier'

Begin = Callable[[Variables], Variables]


@dataclasses.dataclass(frozen=True)
class Run:
  """A checked config, turned into values.

  Attributes:
    config: complete, with defaults.
    dataset: checked.
    method: its options.
    tools: what the method is given.
    stages: of the method; their steps add up to tools.total_steps.
    notes: sentences that the user should read when the run starts.
    inspection: what inspection.json holds; empty where the config left nothing to the data.
  """

  config: ml_collections.ConfigDict
  dataset: Dataset
  method: Method
  tools: Tools
  stages: tuple[Stage, ...]
  notes: tuple[str, ...]
  inspection: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def network(self) -> Network:
    return self.tools.network

  @property
  def total_steps(self) -> int:
    return self.tools.total_steps

  def drawn_state(self, begin: Begin = lambda drawn: drawn) -> TrainState:
    """The state before the first step, on every device.

    begin: what a drawn network begins as, such as pretrained; one that is drawn by itself keeps its
      classifier, or networks that are to differ would not.
    """
    return sharding.replicate(self._init(begin), sharding.make_mesh())

  def abstract_state(self) -> TrainState:
    """Shapes, dtypes and placement of the state; needs neither weights nor memory."""
    everywhere = sharding.replicated(sharding.make_mesh())
    state = jax.eval_shape(lambda: self._init(lambda drawn: drawn))
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state)

  def _init(self, begin: Begin) -> TrainState:
    seeded, key = jax.random.split(jax.random.key(self.config.seed))
    init, crop = jax.jit(self.network.init, static_argnums=1), (self.config.data.crop,) * 2

    def draw(key: Array | None = None) -> Variables:
      """Of a network of its own, or those that the seed gives."""
      drawn = init(seeded if key is None else key, crop)
      if key is None:
        return begin(drawn)
      return {kind: {**tree, _CLASSIFIER: drawn[kind][_CLASSIFIER]} if _CLASSIFIER in drawn[kind]
              else tree for kind, tree in begin(drawn).items()}

    return self.method.init(key, draw, self.tools)


def make_run(config: ml_collections.ConfigDict, *, workdir: Path | None = None) -> Run:
  """Reads and checks all that a run needs.

  Args:
    config: of the run.
    workdir: a run there that has a checkpoint goes on with what it began with, and needs pretrained
      weights no more; of another one the inspection alone is taken, if the files are the same.
  Raises:
    ValueError: a bad value in the config, or a DataError about the data set's files.
  """
  given = config_rules.complete(config)
  if workdir and given.data.source == 'folder' and is_of_data(workdir, Path(given.data.dir)):
    raise ValueError(f'{workdir} is the folder of the data, or one of its folders, where the lists '
                     'of the run would take the place of yours; give another --workdir.')
  begun = workdir if workdir and has_checkpoint(workdir) else None
  config = from_data.as_begun(given, begun)
  kept = from_data.kept(given, config, begun)
  # Before the data, which may have to be downloaded or take a while to look through.
  make_protocols(_protocols(config), crop=config.data.crop or 1)
  if not begun:
    _check_first_networks(config)
  checked, found, proposed = None, None, []
  if from_data.unset(config):
    checked = checked_dataset(config)
    found = from_data.inspect(checked[0], workdir)
    config, proposed = from_data.decide(config, checked[0], found)
    config_rules.check(config)
  method = make_method_of(config)
  _check_without_data(config, method)
  dataset, odd = checked or checked_dataset(config)
  if method.uses_unlabelled and not dataset.unlabelled:  # Else only the end of the warm-up tells.
    raise ValueError(
      f'{dataset.name} has no unlabelled images; add some, or train with method=sup_only.')
  classes = len(dataset.classes)
  _check_classes(config, classes)
  if config.data.cache:
    reader = sources.CachedReader(dataset.reader, config.data.cache)
    dataset = dataclasses.replace(dataset, reader=reader)
  epoch_steps = pipeline.steps_per_epoch(dataset, config.train.unlabelled_batch)
  tools = make_tools(config, num_classes=classes, epoch_steps=epoch_steps)
  tools = tools._replace(classes=tuple(dataset.classes))
  stages = method.stages(tools)
  remarks = [*found.remarks, *map(str, proposed)] if found else []
  of_data = [*dataset.note.splitlines(), *kept, *odd, *remarks]
  notes = tuple(filter(None, (
    *of_data, *config_rules.unread(config), *cautions(config, method, stages),
    *method.check(tools))))
  inspected = from_data.to_json(found, proposed) if found else {}
  return Run(config, dataset, method, tools, stages, notes, inspected)


def _protocols(config: ml_collections.ConfigDict) -> Sequence[str]:
  return config.evaluate.get('protocols', ('whole',))


def _check_first_networks(config: ml_collections.ConfigDict) -> None:
  """Refuses a run to start from, or weights, that are not there or not of the network."""
  if source := config.train.init_from:
    if not (path := Path(source) / 'config.json').is_file():
      raise ValueError(f'train.init_from={source} holds no run, as {path} does not exist; name the '
                       'workdir of a finished one.')
  else:
    weights.check(config.model.weights, config.model)


def _check_without_data(config: ml_collections.ConfigDict, method: Method) -> None:
  """Refuses what can be refused of a complete config before the data are known."""
  for field in ('labelled_batch', 'unlabelled_batch'):
    sharding.check_batch(f'train.{field}', config.train[field])
  tools = make_tools(config, num_classes=_MANY_CLASSES, epoch_steps=1)
  check_sides('data.crop', [tools.crop], tools.network.patch)
  check_protocols(tools.network, make_protocols(_protocols(config), crop=tools.crop))
  method.check(tools)


def make_tools(
  config: ml_collections.ConfigDict, *, num_classes: int, epoch_steps: int
) -> Tools:
  """What the config's method is given.

  Args:
    config: complete.
    num_classes: K.
    epoch_steps: steps of a pass over the unlabelled images.
  Raises: ValueError for fields of network or loss that do not fit each other.
  """
  _check_names('loss', config.loss, [field.name for field in dataclasses.fields(SupervisedLoss)])
  loss, train = SupervisedLoss(**config.loss), config.train
  total_steps = max(1, round(train.epochs * epoch_steps))
  network = make_network(config, num_classes)
  return Tools(
    network, loss,
    functools.partial(_make_optimizer, config.optim, total_steps, network.frozen), total_steps,
    epoch_steps, num_classes, config.data.crop, train.labelled_batch, train.unlabelled_batch,
    _accumulation(config, loss))


def _make_optimizer(
  optim: ml_collections.ConfigDict, total_steps: int, frozen: tuple[str, ...], *,
  schedule: str = 'poly', first_step: int = 0, steps: int | None = None,
  undecayed: tuple[str, ...] = (),
) -> Optimizer:
  """See Tools."""
  rate = optax.constant_schedule(optim.rate) if schedule == 'constant' else poly_schedule(
    optim.rate, total_steps=steps or total_steps, power=optim.power, first_step=first_step)
  options = {'multiplier': optim.decoder_multiplier, 'weight_decay': optim.weight_decay,
             'decay': optim.decay, 'undecayed': undecayed, 'frozen': frozen}
  if optim.name == 'adamw':
    return make_adam(rate, **options)
  return make_sgd(rate, momentum=optim.momentum, **options)


def _check_classes(config: ml_collections.ConfigDict, classes: int) -> None:
  """Refuses what the number of classes does not allow."""
  class_weights, padding = config.loss.class_weights, config.data.padding_label
  if class_weights and len(class_weights) != classes:
    raise ValueError(
      f'loss.class_weights has {len(class_weights)} values for {classes} classes; give one for '
      'each class, or () for none.')
  if classes <= padding < 255:
    raise ValueError(
      f'data.padding_label={padding} is none of the {classes} classes; use 0 to {classes - 1}, or '
      '255 for pixels that are ignored.')


def _accumulation(config: ml_collections.ConfigDict, loss: SupervisedLoss) -> Accumulation:
  """train.per_device_batch, checked; what fits whole is not cut."""
  train = config.train
  accumulation = Accumulation(train.per_device_batch, jax.device_count())
  cut = max(map(accumulation.count, (train.labelled_batch, train.unlabelled_batch))) > 1
  if cut and loss.ohem_threshold is not None:
    raise ValueError(
      f'train.per_device_batch={accumulation.per_device} and loss.ohem_threshold='
      f'{loss.ohem_threshold} do not go together, as the hard pixels are those of the whole batch; '
      'use model.remat=True and train.per_device_batch=0.')
  return accumulation


def make_method_of(config: ml_collections.ConfigDict) -> Method:
  """The config's method; its name and recipe have already been turned into options."""
  options = {k: v for k, v in config.method.items() if k not in ('name', 'recipe')}
  name = config.method.name
  _check_names('method', options, option_names(name))
  made = make_method(name, recipe=config.method.recipe, **options)
  of_recipe, plain = RECIPES[config.method.recipe], make_method(name)
  decided = [k for k in of_recipe if k in options and of_recipe[k] != getattr(plain, k)]
  if decided and all(getattr(made, k) == getattr(plain, k) for k in decided):
    raise ValueError(
      f'method.recipe={config.method.recipe!r} was set after the recipe had become options, and '
      f'changes nothing: give it with the name, as in shapes:24,method={name},recipe='
      f'{config.method.recipe}.')
  return made


def make_network(config: ml_collections.ConfigDict, num_classes: int) -> Network:
  """The config's network for so many classes, with the further heads of its method.

  A folder's config has values that are found in the data: make_run(config).network is its network.
  """
  model = {k: v for k, v in config.model.items() if not k.startswith('weights')}
  for name, value in weights.statistics(config.model.weights).items():
    model[name] = model.get(name) or value
  model['multi_grid'] = model['multi_grid'] or None
  _check_names('model', model, list(inspect.signature(make_segmenter).parameters))
  return make_segmenter(num_classes=num_classes, heads=make_method_of(config).heads, **model)


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
    ValueError: no run lies there, its method is not one of this installation, or the file is
      damaged.
  """
  try:
    config = ml_collections.ConfigDict(tuples(read_json(path)))
    config_rules.check(config)
    known = config.method.name in METHODS
    if known:
      make_method_of(config)
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error} Restore the file, or train anew.') from error
  if not known:
    raise ValueError(f'{path} names the method {config.method.name!r}, which this installation of '
                     'gta_jax lacks; use the clone or the version that the run was made with.')
  return config
