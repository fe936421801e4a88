"""PASCAL VOC 2012: 10,582 training images, of which a published list of 92 to 5,291 is labelled.

    python launch.py --config configs/voc.py:183 --workdir runs/voc183

Downloads 3.4 GB and writes records, about 1.4 GB (estimated), first, once, below ~/gta_jax_data;
`--mode prepare` does this alone and fetches the weights. With --config.data.dir=VOCdevkit your own
folders are read instead.
After the colon: the split, then method=NAME, recipe=NAME (paper, released) and model=NAME
(resnet101, dinov2_s, dinov2_b, dinov2_l).

The paper's mIoU of the teacher, centre crops of 513 pixels, mean of seeds 0-2 (its Tables 1 and 2):

    split     92     183    366    732    1464       662    1323   2646   5291
    GTA-Seg   70.02  73.16  75.57  78.37  80.47      77.82  80.47  80.57  81.01
    SupOnly   45.77  54.92  65.88  71.69  72.50

The paper's: ResNet-101 and DeepLabV3+, rate 0.001 (decoder ten times) with power 0.9, weight decay
0.0001, 4 GPUs, the method's numbers, centre crops. It leaves the rest open, and the configuration
that its authors released decides: crop, scales, flip, 80 epochs, 3 images of a kind on a GPU,
momentum, stem, stride, grid, ASPP rates, neither OHEM nor an auxiliary head.

Never run here. Estimated: 10.5 hours on one A100, 2.6 on four (69,280 steps of 50.9 TFLOP, as
compiled for a GPU, at 30 % of 312 TFLOP/s; recipe=released takes 15/7 of it; evaluation not
counted). Memory: 15.5 GB for 12 + 12 images as compiled for a GPU, 7.7 GB with model.remat=True
(docs/performance.md). If it does not fit:
docs/how_to/fit_the_memory.md.

method=NAME takes the system's published rates, batch, crop and epochs (docs/methods.md). Two have
none for this network: unimatch_v2 is published with DINOv2 and takes UniMatch's, pc2seg is a
reconstruction, of which no official code exists, with PseudoSeg's crop, rate and
number of steps.

    python launch.py --config configs/voc.py:183,method=unimatch_v2,model=dinov2_b --workdir ...

is UniMatch V2 as published, but for bfloat16: DINOv2-B with a DPT head, AdamW with rate 5e-6 (head
40 times), 16 + 16 crops of 518, 60 epochs; reported 87.9 (its best epoch). Every method takes these
with model=dinov2_*; labels alone (method=sup_only) are reported at 82.1 with 183. Never run here.
"""

import ml_collections

from gta_jax import config_base


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """ResNet-101 with the deep stem at output stride 8, ImageNet weights, 80 epochs; or DINOv2."""
  choice = config_base.parse(arg, split='183', method='gta', recipe='paper', model='resnet101')
  c = config_base.base(choice['method'], choice['recipe'])
  c.data.source = 'voc'
  c.data.split = choice['split']
  c.data.crop = 513
  # Half the memory and a multiple of the speed of the paper's float32; parameters, statistics,
  # logits and losses stay float32.
  c.model.dtype = 'bfloat16'
  c.optim.rate = 0.001
  c.optim.decoder_multiplier = 10.0
  c.optim.weight_decay = 1e-4
  c.train.epochs = 80
  c.train.labelled_batch = 12  # 3 on each of 4 GPUs
  c.train.unlabelled_batch = 12
  # As the paper, as its released code counts padding, and as most other work; of one crop, whatever
  # a method trains on.
  c.evaluate.protocols = ('crop513', 'crop513_padding0', 'whole')
  if choice['model'] != 'resnet101':
    c.evaluate.protocols = ('crop518', 'crop518_padding0', 'whole')  # multiples of a patch
    config_base.use_dinov2(c, choice['model'], 'voc')
  else:
    config_base.use_resnet101(c)
    config_base.publish(c, 'voc')
  return c
