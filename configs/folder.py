"""A folder of images and a few masks.

    python launch.py --config configs/folder.py:46 --config.data.dir=DIR --workdir runs/folder

Reads DIR/images, DIR/masks, DIR/classes.txt, DIR/splits/val.txt and DIR/splits/46/labeled.txt.
After the colon: the split, then model=NAME, method=NAME and recipe=NAME. What is None follows from
the data where it is not set: --mode inspect says what and why, gta_jax/data/proposals.py how.

    model  | network                                           | weights             | for
    small  | EfficientNet-Lite0                                | ImageNet, installed | two CPU cores
    base   | ResNet-50                                         | ImageNet, fetched   | a GPU
    large  | DINOv2-B, patch 14, with a DPT head               | DINOv2's, fetched   | a large GPU
    tiny   | ResNet-10 of a quarter width, images of half size | random              | comparisons

Unless a method is named it is FixMatch with an average as the teacher (fixmatch_ema), UniMatch V2
with one strong view: with 5 drawn slices it ends 3.5 points ahead of labels alone, where grey level
is the class and 30 have masks by 0.5 ± 0.1, and on CamVid with 23 masks by 1.0 ± 0.9, while with
46 it is level with them (-0.3 ± 2.4, three seeds each). GTA-Seg (method=gta), whose student
learns from masks alone, ended about level with them where it was run (docs/results.md). With
model=large it is UniMatch V2 with the published threshold.

`small` is the default wherever it runs, also on a GPU: a config is read before jax looks for
devices, and the same command should mean the same run everywhere. Its rate lies between two that
did equally well on images held back (docs/experiments.md). `base` and `large` were never run here:
`base` has the paper's rate for VOC, `large` UniMatch V2's. Its authors' logs have 82.1 for it on
VOC with 183 masks and nothing else, more than any method here is reported with on ResNet-101 at
that split. It sees patches of 14 pixels: where structures are thinner, data.image_scale=2 may help
(untried).

`tiny`, which leaves to the data the range of 16-bit images, the warm-up and the colours of strong
views alone, is what docs/experiments.md has for CamVid from scratch, and when it does not help.
"""

import ml_collections

from gta_jax import config_base


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The config of one of the models, for images of a few hundred pixels."""
  choice = config_base.parse(arg, split='', model='small', method='', recipe='scratch')
  if choice['model'] not in _MODELS:
    raise ValueError(
      f'model={choice["model"]} is unknown; use one of: {", ".join(_MODELS)}.')
  set_model = _MODELS[choice['model']]
  method = choice['method'] or ('unimatch_v2' if choice['model'] == 'large' else 'fixmatch_ema')
  # Long averages: a step on labels moves the features for 1 / (1 - alpha) steps, and 1,000 is all
  # that a short run has. CCT's bootstrapped cross-entropy takes no class weights, which are worth
  # more here. GCT's flaw detector must leave a map of more than a few places of a crop of 96.
  scratch = {'warmup_epochs': 25.0, 'transmission_decay': 0.999, 'supervised_share': 0.3,
             'supervised': 'plain', 'detector_blocks': 3}
  c = config_base.base(method, choice['recipe'], scratch=scratch)
  c.data.source = 'folder'
  c.data.split = choice['split']
  c.data.threads = 2
  c.data.cache = 1000.0
  config_base.leave_to_data(c)
  set_model(c)
  return c


def _small(c: ml_collections.ConfigDict) -> None:
  c.model.backbone = 'efficientnet_lite0'
  c.model.weights = 'efficientnet_lite0'
  c.model.frozen_stages = 1  # saves a third of a supervised step
  c.model.pool_norm = False  # of deeplab, should it be chosen: batches are small
  # In a run as short as a CPU's AdamW is far ahead of SGD (docs/experiments.md).
  c.optim.name = 'adamw'
  c.optim.rate = 2e-4
  c.optim.weight_decay = 0.01
  if c.method.recipe == 'scratch' and c.method.name in _OF_THE_SURE:
    # So short a run is sure of half of the pixels, and of hardly one of a thin class, which the
    # student then forgets. So every label counts (docs/experiments.md; tried with V2 and
    # fixmatch_ema).
    c.method.threshold = 0.0


def _base(c: ml_collections.ConfigDict) -> None:
  c.model.stem = 'torchvision'
  c.model.weights = 'timm/resnet50.tv_in1k'
  c.optim.rate = 0.001


def _large(c: ml_collections.ConfigDict) -> None:
  config_base.use_dinov2(c, 'dinov2_b')
  c.model.output_stride = 14  # of its patches; nothing reads it
  c.model.dtype = 'bfloat16'


def _tiny(c: ml_collections.ConfigDict) -> None:
  c.data.crop = 96
  c.data.image_scale = 0.5
  c.loss.class_weights = ()
  c.model.decoder = 'deeplab'
  c.model.output_stride = 16
  c.model.depth = 10
  c.model.width = 0.25
  c.model.aspp_rates = (3, 6, 9)
  c.optim.rate = 0.02
  c.train.labelled_batch = 8
  c.train.unlabelled_batch = 8
  c.train.epochs = 50.0
  c.train.evaluate_epochs = 10.0


# Methods that learn from pseudo-labels above one confidence alone.
_OF_THE_SURE = ('fixmatch', 'fixmatch_ema', 'unimatch', 'unimatch_v2')
_MODELS = {'small': _small, 'base': _base, 'large': _large, 'tiny': _tiny}
