"""A folder of images and a few masks, trained from scratch.

    python launch.py --config configs/folder.py:46 --config.data.dir=DIR --workdir runs/folder

Reads DIR/images, DIR/masks, DIR/classes.txt, DIR/splits/val.txt and DIR/splits/46/labeled.txt.
After the colon: the split, then method=NAME and recipe=NAME. What is None follows from the data
(--mode inspect says what and why, gta_jax/data/proposals.py how) where it is not set. The network
is for a few hundred frames on a CPU; on a GPU set model.depth=50 model.width=1.0 (not run here). What it gives on CamVid, and when it does not help: docs/results.md.
"""

import ml_collections

from gta_jax import config_base


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """A small ResNet for images of a few hundred pixels."""
  choice = config_base.parse(arg, split='', method='gta', recipe='scratch')
  # Long averages: a step on labels moves the features for 1 / (1 - alpha) steps, and 1,000 is all
  # that a short run has.
  scratch = {'transmission_decay': 0.999, 'supervised_share': 0.3}
  c = config_base.base(choice['method'], choice['recipe'], scratch=scratch)
  c.data.source = 'folder'
  c.data.split = choice['split']
  config_base.leave_to_data(c)
  c.data.threads = 2
  c.data.cache = 1000.0
  c.model.depth = 10
  c.model.width = 0.25
  c.model.aspp_rates = (3, 6, 9)
  c.optim.rate = 0.02
  return c
