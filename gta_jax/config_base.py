"""What every config has, and how the part after the colon of --config is read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from gta_jax.methods.registry import METHODS, make_method


def parse(arg: str | None, **defaults: str) -> dict[str, str]:
  """Reads `SPLIT,name=value,...`, the part of --config after the colon.

  A value without a name is the split. `defaults` holds the known names and their defaults.

  Raises:
    ValueError: an unknown name; the known ones are listed.
  """
  values = dict(defaults)
  for part in filter(None, (arg or '').split(',')):
    name, equals, value = part.partition('=')
    if not equals:
      name, value = 'split', part
    if name not in defaults:
      raise ValueError(
        f'{part!r} after the colon of --config is unknown; use some of: '
        f'{", ".join(f"{n}=..." for n in defaults)}.')
    values[name] = value
  return values


def base(
  method: str, recipe: str, *, scratch: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
  """The fields that a config file starts from; it sets what is its own.

  Args:
    method: a name of gta_jax.methods.registry.METHODS.
    recipe: a name of gta_jax.methods.registry.RECIPES.
    scratch: options that the config sets for recipe=scratch.
  Returns: a config in which every option of the method stands as method.NAME, so that each can
    be set from outside.
  """
  c = ml_collections.ConfigDict()
  c.seed = 0  # of the weights, the streams and the step
  changes = scratch if scratch and recipe == 'scratch' else {}
  chosen = make_method(method, recipe=recipe, recipe_changes=changes)
  c.method = ml_collections.ConfigDict(
    {'name': method, 'recipe': recipe, **dataclasses.asdict(chosen)})

  _data(c, recipe)
  _model(c)
  _optimisation(c)
  _training(c)
  return c


def _data(c: ml_collections.ConfigDict, recipe: str) -> None:
  c.data = ml_collections.ConfigDict()
  c.data.source = ''  # folder | shapes | voc | cityscapes
  c.data.dir = ''  # the data set's folder; '' for voc, cityscapes: records, made in data.store
  c.data.store = ''  # folder of downloads and records; '': GTA_JAX_DATA, else ~/gta_jax_data
  c.data.mirror = ''  # base URL that has the archives and lists; '': where they are published
  c.data.split = ''  # folder: name of splits/NAME, or how many images are labelled; others: 183
  c.data.split_source = 'published'  # voc, cityscapes: published | seeded, drawn with the seed
  # Folder of lists, with 183/labeled.txt. '': the published ones, fetched; of a folder, DIR/splits.
  c.data.split_lists = ''
  c.data.pixel_range = ()  # (black, white) of images of 16 bits, which become 8; (): there are none
  c.data.crop = 321  # pixels a side
  # Factor on every image, in training and in evaluation; to 1/8 and below, of means of blocks.
  c.data.image_scale = 1.0
  # Range of the random scale, on top of image_scale. With a value between, half of the images are
  # scaled below it and half above, as in the released recipe.
  c.data.scale = (0.5, 1.0, 2.0) if recipe == 'released' else (0.5, 2.0)
  c.data.flip = True
  # Largest change of brightness, contrast and saturation of labelled crops, as a share.
  c.data.jitter = 0.0
  # 255 where padding is ignored. 0 in the released recipe: background, and on unlabelled images a
  # pixel like any other.
  c.data.padding_label = 0 if recipe == 'released' else 255
  # reshuffled every epoch, or the list repeated and sampled once for the whole run
  c.data.label_sampling = 'once' if recipe == 'released' else 'reshuffled'
  c.data.threads = 16  # that read and decode
  c.data.workers = 0  # processes that read and decode; 0: threads of this one
  c.data.prefetch = 2  # batches ahead; at least one a thread: max(prefetch, threads)
  c.data.cache = 0.0  # megabytes of decoded images and masks to keep in memory
  c.data.skip_limit = 10  # files that may be unreadable in training; each is replaced by another
  c.data.oracle = False  # log the pseudo-labels' accuracy where unlabelled images have masks


def _model(c: ml_collections.ConfigDict) -> None:
  c.model = ml_collections.ConfigDict()
  c.model.backbone = 'resnet'  # names: gta_jax/models/backbones.py
  # deeplab | unet, which reaches the image's own resolution | dpt, for DINOv2 backbones
  c.model.decoder = 'deeplab'
  c.model.depth = 50  # of a ResNet: 10 | 18 | 34 | 50 | 101 | 152
  c.model.stem = 'deep'  # of a ResNet: deep | torchvision
  c.model.output_stride = 16  # 8 | 16 | 32; DINOv2 does not read it
  c.model.multi_grid = ()  # dilation factors in the last stage, () for none
  c.model.width = 1.0  # factor on the numbers of channels, of a ResNet and of the decoder
  c.model.frozen_stages = 0  # of the backbone's four; these and the stem do not learn
  c.model.aspp_rates = (6, 12, 18)
  c.model.pool_norm = True  # BatchNorm on deeplab's image pooling, which sees one value an image
  c.model.dropout = 0.1
  c.model.auxiliary = False  # head on stage 3
  c.model.dtype = 'float32'  # of the computation: float32 | bfloat16; parameters stay float32
  c.model.remat = False  # compute activations again in the backward pass instead of keeping them
  # Key of gta_jax.models.weights.KNOWN, downloaded; or a .safetensors or .pth file with torch's
  # names; '' is from scratch.
  c.model.weights = ''
  c.model.weights_item = ''  # which of several state dicts in the file: model_state, teacher_state
  c.model.weights_scope = 'backbone'  # what is loaded: backbone | all
  c.model.mean = ()  # RGB in [0,1] that the weights expect; () follows them
  c.model.std = ()


def _optimisation(c: ml_collections.ConfigDict) -> None:
  c.loss = ml_collections.ConfigDict()
  c.loss.ohem_threshold = config_dict.placeholder(float)  # None: no OHEM
  c.loss.ohem_min_kept = 100_000  # pixels of the global batch
  c.loss.auxiliary_weight = 0.4
  c.loss.class_weights = ()

  c.optim = ml_collections.ConfigDict()
  c.optim.rate = 0.01  # of the backbone at step 0
  c.optim.decoder_multiplier = 10.0  # on the rate of everything but the backbone
  c.optim.power = 0.9  # of the poly schedule
  c.optim.momentum = 0.9
  c.optim.weight_decay = 1e-4
  c.optim.name = 'sgd'  # sgd | adamw; momentum is sgd's
  c.optim.decay = 'all'  # what weight_decay is for: all | kernels, neither biases nor BatchNorm


def _training(c: ml_collections.ConfigDict) -> None:
  c.train = ml_collections.ConfigDict()
  c.train.epochs = 80.0  # passes over the unlabelled images, warm-up included
  c.train.labelled_batch = 8  # images of all devices together
  c.train.unlabelled_batch = 8
  # Images of one kind in a pass on one device; 0: all of them. Smaller passes take less memory and
  # are the same step, but for BatchNorm, which sees one pass (gta_jax/methods/gradient_step.py).
  c.train.per_device_batch = 0
  c.train.log_steps = 10  # steps between two lines of metrics.jsonl
  c.train.evaluate_epochs = 1.0  # epochs between two evaluations; the state is saved at each
  c.train.checkpoint_steps = 0  # steps between two saves besides those; 0: none
  # Workdir of a finished run whose networks this one starts from, by role; '' for drawn ones.
  c.train.init_from = ''
  c.train.deterministic = False  # steps of GPU kernels that give the same bits always; slower
  c.train.non_finite = 'stop'  # stop | skip: where a loss or the state after a step is not finite

  c.evaluate = ml_collections.ConfigDict()
  c.evaluate.batch = 8  # images, fewer of large ones
  c.evaluate.pictures = 4  # validation images in the picture, and in report.html
  c.evaluate.worst = 8  # further ones in report.html, those that score worst
  c.evaluate.protocols = ('whole',)  # names: gta_jax/evaluation/protocols.py


# Fields that may be None in a config of a folder, and the kinds of their values.
FROM_DATA = {
  'data.pixel_range': tuple, 'data.image_scale': float, 'data.crop': int, 'model.decoder': str,
  'model.output_stride': int, 'loss.class_weights': tuple, 'train.labelled_batch': int,
  'train.unlabelled_batch': int, 'train.epochs': float, 'train.evaluate_epochs': float,
  'method.warmup_epochs': float, 'method.jitter': float, 'method.greyscale': float}
OF_STRONG_VIEWS = ('method.jitter', 'method.greyscale')  # how they change colours


def leave_to_data(c: ml_collections.ConfigDict) -> None:
  """Sets FROM_DATA to None: the data of a folder say what they are (gta_jax/data/proposals.py).

  A recipe's or a named method's own warm-up stays, as it is in epochs of its own, and so do the
  colours of a method without strong views.
  """
  named, changed = METHODS[c.method.name], of_strong_views(c.method.name)
  for name, kind in FROM_DATA.items():
    section, field = name.split('.')
    fixed = section == 'method' and (c.method.recipe != 'scratch' or field in named.changes)
    fixed |= name in OF_STRONG_VIEWS and field not in changed
    if field in c[section] and not fixed:
      del c[section][field]  # A field that holds a number takes no None.
      c[section][field] = config_dict.placeholder(kind)


def of_strong_views(method: str) -> dict[str, float]:
  """Options of a method that change the colours of its strong views, as published; {} if none."""
  options = dataclasses.asdict(make_method(method))
  names = (name.removeprefix('method.') for name in OF_STRONG_VIEWS)
  return {name: options[name] for name in names if options.get(name)}


def publish(c: ml_collections.ConfigDict, data_set: str) -> None:
  """Sets what the config's method was published with on a data set, in the place of the file's."""
  c.update_from_flattened_dict(_published(c, data_set))


def _published(c: ml_collections.ConfigDict, data_set: str) -> dict[str, Any]:
  named = METHODS[c.method.name]
  return {**named.kind.published.get(data_set, {}), **named.published.get(data_set, {})}


def use_resnet101(c: ml_collections.ConfigDict) -> None:
  """Sets the paper's network: ResNet-101 at output stride 8, pretrained; the deep stem, grid and
  rates of ASPP are the published code's."""
  c.model.depth = 101
  c.model.stem = 'deep'
  c.model.output_stride = 8
  c.model.multi_grid = (2, 2, 4)
  c.model.aspp_rates = (12, 24, 36)
  c.model.weights = 'timm/resnet101s.gluon_in1k'


def use_dinov2(c: ml_collections.ConfigDict, name: str, data_set: str = '') -> None:
  """Sets a DINOv2 backbone with its DPT head, pretrained, and UniMatch V2's rates for it.

  Args:
    name: dinov2_s, dinov2_b or dinov2_l.
    data_set: voc or cityscapes, for crop, batches and epochs of UniMatch V2 there, whatever the
      method: nothing else is published for most, but for its own options, which are taken, and that
      it has no OHEM; '' leaves them as they are.
  Raises: ValueError for another name.
  """
  if name not in _DINOV2:
    raise ValueError(f'model={name} is unknown; use one of: resnet101, {", ".join(_DINOV2)}.')
  c.model.backbone = name
  c.model.decoder = 'dpt'
  c.model.weights = f'timm/vit_{_DINOV2[name]}_patch14_dinov2.lvd142m'
  c.model.dropout = 0.0
  published = METHODS['unimatch_v2'].kind.published
  c.update_from_flattened_dict(dict(
    published[f'{data_set}_dinov2'] if data_set else published['dinov2']))
  c.update_from_flattened_dict({
    field: value for field, value in _published(c, data_set).items()
    if field.startswith('method.') or (field == 'loss.ohem_threshold' and value is None)})


_DINOV2 = {'dinov2_s': 'small', 'dinov2_b': 'base', 'dinov2_l': 'large'}
