"""Cityscapes: 2,975 training images, of which a published list of 100 to 1,488 is labelled.

    python launch.py --config configs/cityscapes.py:186 --workdir runs/cityscapes186

Needs leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from cityscapes-dataset.com, put into
~/gta_jax_data/downloads (the first start says so), or --config.data.dir=DIR for the folder that
holds leftImg8bit and gtFine. After the colon: the split, then method=NAME, recipe=NAME and
model=NAME (resnet101, dinov2_s, dinov2_b, dinov2_l).

The paper evaluates with sliding windows and states GTA-Seg's mIoU on splits 100, 186, 372 and 744
in its Table 3, 1.80, 1.64, 1.57 and 2.19 above the best earlier method of each.

The paper's: ResNet-101 and DeepLabV3+, rate 0.01 with power 0.9, weight decay 0.0005, 8 GPUs, the
method's numbers, sliding windows. The authors released no configuration for Cityscapes; what the
paper leaves open is from U2PL, on whose code the release is built: crop, 200 epochs, 2 images of a
kind on a GPU, OHEM, the auxiliary head and its weight. Stem, stride, grid, ASPP rates, momentum and
augmentation are those of VOC. recipe=released takes U2PL's decoder rate as well, one time the
backbone's; the paper's sentence (ten times) names no data set and is taken for both.

Never run here. Estimated: 16 hours on one A100, 2 on eight (34,800 steps of 154.7 TFLOP, as
compiled for a GPU, at 30 % of 312 TFLOP/s; evaluation not counted). Memory: 46 GB for 16 + 16
images on one H100, as compiled (docs/performance.md). If it does not fit: model.remat, see
docs/how_to/fit_the_memory.md.

method=NAME takes the system's published rates, batch, crop and epochs (docs/methods.md);
unimatch_v2, published with DINOv2, those of UniMatch, and with model=dinov2_* its own, as all other
methods do: crop 798, 8 + 8 images, 180 epochs, OHEM. Where nothing is published, as for pc2seg, a
reconstruction of which no official code exists, this file's stay.
"""

import ml_collections

from gta_jax import config_base


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """ResNet-101 with the deep stem at output stride 8, OHEM, an auxiliary head, 200 epochs."""
  choice = config_base.parse(arg, split='186', method='gta', recipe='paper', model='resnet101')
  c = config_base.base(choice['method'], choice['recipe'])
  if choice['recipe'] == 'released':
    for name in ('threshold_images', 'labelled_images', 'mixing_images'):
      if name in c.method:
        c.method[name] = 2  # those of one of 8 GPUs
  c.data.source = 'cityscapes'
  c.data.split = choice['split']
  c.data.crop = 769
  c.model.auxiliary = True
  c.model.dtype = 'bfloat16'  # see configs/voc.py
  c.loss.ohem_threshold = 0.7
  # U2PL keeps 100,000 of the pixels of 2 images on each GPU; here the count is over the global
  # batch, and so many times the GPUs is the same share.
  c.loss.ohem_min_kept = 8 * 100_000
  c.loss.auxiliary_weight = 0.4
  c.optim.rate = 0.01
  c.optim.decoder_multiplier = 1.0 if choice['recipe'] == 'released' else 10.0
  c.optim.weight_decay = 5e-4
  c.train.epochs = 200
  c.train.labelled_batch = 16  # 2 on each of 8 GPUs
  c.train.unlabelled_batch = 16
  c.evaluate.batch = 2  # of 1024x2048 pixels
  c.evaluate.protocols = ('sliding', 'whole')
  if choice['model'] != 'resnet101':
    config_base.use_dinov2(c, choice['model'], 'cityscapes')
  else:
    config_base.use_resnet101(c)
    config_base.publish(c, 'cityscapes')
  return c
