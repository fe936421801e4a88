"""A folder of images and a few masks, trained from scratch.

    python launch.py --config configs/folder.py:46 --config.data.dir=DIR --workdir runs/folder

Reads DIR/images, DIR/masks, DIR/classes.txt, DIR/splits/val.txt and DIR/splits/46/labeled.txt.
After the colon: the split, then method=NAME and recipe=NAME.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """A small ResNet for images of a few hundred pixels."""
  choice = common.parse(arg, split='', method='gta', recipe='scratch')
  c = common.base(choice['method'], choice['recipe'])
  c.data.source = 'folder'
  c.data.split = choice['split']
  c.data.crop = 96
  c.data.image_scale = 0.5
  c.data.threads = 2
  c.model.depth = 10
  c.model.width = 0.25
  c.model.aspp_rates = (3, 6, 9)
  c.optim.rate = 0.05
  c.optim.decoder_multiplier = 1.0
  c.train.epochs = 100
  c.train.evaluate_epochs = 10
  return c
