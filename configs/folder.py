"""A folder of images and a few masks, trained from scratch.

    python launch.py --config configs/folder.py:46 --config.data.dir=DIR --workdir runs/folder

Reads DIR/images, DIR/masks, DIR/classes.txt, DIR/splits/val.txt and DIR/splits/46/labeled.txt.
After the colon: the split, then method=NAME and recipe=NAME. The defaults are for a few hundred
frames on a CPU; on a GPU set model.depth=50 model.width=1.0 data.crop=321 data.image_scale=1.0 (not
run here). What it gives on CamVid, and when it does not help: docs/results.md.
"""

import ml_collections
from ml_collections import config_dict

from gta_jax import config_base


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """A small ResNet for images of a few hundred pixels."""
  choice = config_base.parse(arg, split='', method='gta', recipe='scratch')
  # Long averages: a step on labels moves the features for 1 / (1 - alpha) steps, and 1,000 is all
  # that a short run has.
  scratch = {'warmup_epochs': 25.0, 'transmission_decay': 0.999, 'supervised_share': 0.3}
  c = config_base.base(choice['method'], choice['recipe'], scratch=scratch)
  c.data.source = 'folder'
  c.data.split = choice['split']
  c.data.pixel_range = config_dict.placeholder(tuple)  # None: percentiles of the training images
  c.data.crop = 96
  c.data.image_scale = 0.5
  c.data.threads = 2
  c.data.cache = 1000.0
  c.model.depth = 10
  c.model.width = 0.25
  c.model.aspp_rates = (3, 6, 9)
  c.optim.rate = 0.02
  c.train.epochs = 50
  c.train.evaluate_epochs = 10
  return c
