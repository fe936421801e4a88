"""Segmentation networks: a backbone and a decoder, chosen by name, with their heads."""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze

from gta_jax.models.backbones import BACKBONES, STAGES, Colour, Options, check_known
from gta_jax.models.deeplab import DeepLabDecoder
from gta_jax.models.dpt import DptDecoder
from gta_jax.models.heads import Head, MakeHead
from gta_jax.models.layers import scaled
from gta_jax.models.unet import UnetDecoder
from gta_jax.ops.network import Decoded, Logits, Network, Params, Stages, Variables, check_sides

Array = jax.Array

DTYPES = ('float32', 'bfloat16')
_CHANNELS = 256  # of DeepLab's branches


class DecoderOptions(NamedTuple):
  """Of make_segmenter, whatever decoders read; each reads its own."""

  width: float
  aspp_rates: tuple[int, ...]
  pool_norm: bool
  dropout: float
  remat: bool
  head: tuple[Any, ...]  # of DPT, see Backbone


# A decoder is a flax module with `stages` (images and the backbone's outputs -> what it reads),
# a call (stages -> [B,h,w,D]), `features`, the channels inside heads on it, and of its classifier
# `head_depth`, the number of 3x3 convolutions, and `head_norm`, whether BatchNorm follows each.
DECODERS: dict[str, Callable[[DecoderOptions], Any]] = {
  'deeplab': lambda o: DeepLabDecoder(
    scaled(_CHANNELS, o.width), o.aspp_rates, o.dropout, o.remat, o.pool_norm),
  'unet': lambda o: UnetDecoder(o.width, o.remat),
  'dpt': lambda o: DptDecoder(scaled(o.head[0], o.width), tuple(
    scaled(width, o.width) for width in o.head[1]), o.remat),
}


class Segmenter(nn.Module):
  """A backbone and a decoder; these and the heads, by name, are the methods' top-level keys.

  Attributes:
    num_classes: K.
    make_backbone, make_decoder: the two modules, see BACKBONES and DECODERS.
    dropout: probability that a channel is dropped in the classifier and the auxiliary head.
    has_auxiliary: whether a head reads the last stage but one.
    dtype: of the computation.
    heads: further ones, by name.
  """

  num_classes: int
  make_backbone: Callable[[], Any]
  make_decoder: Callable[[], Any]
  dropout: float
  has_auxiliary: bool
  dtype: str
  heads: Mapping[str, MakeHead]

  def setup(self):
    self.backbone = self.make_backbone()
    self.decoder = self.make_decoder()
    features = self.decoder.features
    head = {'channels': self.num_classes, 'features': features, 'dropout': self.dropout,
            'norm': self.decoder.head_norm}
    self.classifier = Head(**head, depth=self.decoder.head_depth)
    if self.has_auxiliary:
      self.auxiliary = Head(**head, depth=1)
    for name, make in self.heads.items():
      setattr(self, name, make(num_classes=self.num_classes, features=features))

  def __call__(self, images: Array) -> None:
    """Touches every parameter, for their shapes."""
    stages = self.encode(images, train=False)
    decoded = self.decode(stages, train=False)
    for name in self.heads:
      head = getattr(self, name)
      head(decoded.features if head.reads == 'decoder' else stages, train=False)

  def encode(self, images: Array, *, train: bool) -> Stages:
    images = images.astype(self.dtype)
    return self.decoder.stages(images, self.backbone(images, train=train), train=train)

  def decode(self, stages: Stages, *, train: bool) -> Decoded:
    features = self.decoder(stages, train=train)
    main = self.classifier(features, train=train)
    auxiliary = self.auxiliary(stages[-2], train=train) if self.has_auxiliary else None
    return Decoded(Logits(main, auxiliary), features)

  def head(self, name: str, inputs: Any, *, train: bool) -> Any:
    return getattr(self, name)(inputs, train=train)


def make_segmenter(
  *,
  num_classes: int,
  backbone: str = 'resnet',
  decoder: str = 'deeplab',
  depth: int = 101,
  stem: str = 'deep',
  output_stride: int = 8,
  multi_grid: tuple[int, ...] | None = None,
  width: float = 1.0,
  frozen_stages: int = 0,
  aspp_rates: tuple[int, ...] = (12, 24, 36),
  pool_norm: bool = True,
  dropout: float = 0.1,
  auxiliary: bool = False,
  dtype: str = 'float32',
  remat: bool = False,
  heads: Mapping[str, MakeHead] = types.MappingProxyType({}),
  mean: Colour | tuple[()] = (),
  std: Colour | tuple[()] = (),
) -> Network:
  """A network from a backbone and a decoder.

  Args:
    num_classes: K of the logits.
    backbone: a key of backbones.BACKBONES.
    decoder: a key of DECODERS.
    depth: of a ResNet: 10 (one basic block a stage), 18, 34, 50, 101 or 152.
    stem: of a ResNet: 'deep' (the published code, timm's resnet101s) or 'torchvision'.
    output_stride: 8, 16 or 32, of the last stage; a transformer has that of its patches.
    multi_grid: of a ResNet: dilation factor of each block of the last stage, e.g. (2, 2, 4); None
      for ones.
    width: multiplies the channel counts of a ResNet and of the decoder, rounded to multiples of 8.
    frozen_stages: the stem and so many of the backbone's four stages do not learn: no gradient is
      computed for them, and BatchNorm there takes its running statistics and leaves them.
    aspp_rates: of DeepLab's dilated branches; half of (12, 24, 36) is usual at output stride 16.
    pool_norm: whether DeepLab's image pooling has BatchNorm, as published. It sees one value an
      image: with few images in a pass evaluation goes another way than training.
    dropout: probability that a channel is dropped in DeepLab's decoder and in heads.
    auxiliary: whether a second head reads the last stage but one.
    dtype: of the computation; parameters, statistics and logits are float32.
    remat: whether gradients compute the inside of backbone blocks and of ASPP, U-Net's pairs of
      convolutions or DPT's fusions again instead of keeping it: less memory for a third of the
      time, the same results.
    heads: further heads of a method, by their top-level key; see models.heads.
    mean: RGB in [0,1] that the weights expect; () for the backbone's.
    std: the same of the deviation.
  Returns: the network. The main logits have the size of the decoder's finest stage, a quarter of
    the image with 'deeplab' and its own with 'unet', or, with 'dpt', 8/14 of the image.
  Raises: ValueError for an unknown choice, or for two that do not fit each other.
  """
  check_known('backbone', backbone, tuple(BACKBONES))
  check_known('decoder', decoder, tuple(DECODERS))
  check_known('dtype', dtype, DTYPES)
  if not 0 <= dropout < 1:
    raise ValueError(f'dropout={dropout} is no probability below 1; use e.g. 0.1, or 0 for none.')
  if num_classes < 1 or width <= 0:
    raise ValueError(f'num_classes={num_classes} and width={width} must both be positive.')
  check_known('frozen_stages', frozen_stages, tuple(range(STAGES + 1)))
  kind = BACKBONES[backbone]
  if decoder == 'unet' and kind.head:
    raise ValueError(f'decoder=unet joins stages of stride 2, 4, 8 and 16, but those of {backbone} '
                     'have one stride; use dpt or deeplab.')
  if decoder == 'dpt' and not kind.head:
    raise ValueError(f'decoder=dpt reads stages of one stride, but those of {backbone} have '
                     'several; use deeplab or unet, or a DINOv2 backbone.')
  options = Options(depth, stem, output_stride, multi_grid, width, frozen_stages, remat)
  frozen = kind.make(options).frozen_modules  # here, so that wrong options are refused
  make_decoder = functools.partial(
    DECODERS[decoder],
    DecoderOptions(width, tuple(aspp_rates), pool_norm, dropout, remat, kind.head))
  module = Segmenter(num_classes, functools.partial(kind.make, options), make_decoder, dropout,
                     auxiliary, dtype, heads)
  return make_network(
    module, mean=mean or kind.mean, std=std or kind.std, frozen=frozen, patch=kind.patch)


def make_network(
  module: nn.Module, *, mean: Colour, std: Colour, frozen: tuple[str, ...] = (), patch: int = 1
) -> Network:
  """A flax module with methods encode, decode and head as pure functions."""
  check = functools.partial(_check_images, patch)
  return Network(
    _make_init(module, patch), _make_function(module, 'encode', check),
    _make_function(module, 'decode'), _make_function(module, 'head'), (*mean,), (*std,), frozen,
    patch)


def _make_init(module: nn.Module, patch: int):
  @functools.partial(jax.jit, static_argnums=1)
  def init(key: Array, image_shape: tuple[int, int]) -> Variables:
    check_sides('side of images', image_shape, patch)
    # XLA drops the forward pass, which only tells flax the shapes.
    variables = unfreeze(module.init(key, jnp.zeros((1, *image_shape, 3))))
    params = _draw_kernels(key, variables['params'])
    without = {name: {} for name in params}  # statistics, where there is no BatchNorm
    return {'params': params, 'batch_stats': without | variables.get('batch_stats', {})}

  return init


def _draw_kernels(key: Array, params: Params) -> Params:
  """Params with normal kernels: Kaiming's variance 2 / fan_out in the backbone, as torchvision.

  fan_out is of one group, hence k^2 of a depthwise kernel.

  Elsewhere the variance is 1 / (3 fan_in), that of torch's default. A backbone's kernels of two
  axes, a transformer's, have its usual 0.02^2. All come from one draw, as a generator for each
  kernel would compile for many seconds.
  """
  leaves, tree = jax.tree_util.tree_flatten_with_path(params)

  is_drawn = [leaf.ndim == 4 or (leaf.ndim == 2 and path[0].key == 'backbone')
              for path, leaf in leaves]
  count = sum(leaf.size for (_, leaf), drawn in zip(leaves, is_drawn, strict=True) if drawn)
  normal = jax.random.normal(key, (count,))
  new, start = [], 0
  for (path, leaf), drawn in zip(leaves, is_drawn, strict=True):
    if not drawn:
      new.append(leaf)
      continue
    values = jax.lax.dynamic_slice_in_dim(normal, start, leaf.size).reshape(leaf.shape)
    new.append(values * _deviation(leaf.shape, path[0].key))
    start += leaf.size
  return tree.unflatten(new)


def _deviation(shape: tuple[int, ...], part: str) -> float:
  """Of a fresh kernel, see _draw_kernels."""
  if len(shape) == 2:
    return 0.02
  height, width, fan_in, fan_out = shape
  if fan_in == 1:  # depthwise: one output sees an input
    fan_out = 1
  variance = 2 / fan_out if part == 'backbone' else 1 / (3 * fan_in)
  return (variance / (height * width)) ** 0.5


def _make_function(
  module: nn.Module, method: str, check: Callable[..., None] = lambda *_: None
) -> Callable[..., tuple[Any, Params]]:
  """A method of the module as (variables, *inputs, train, dropout_key) -> (output, batch_stats)."""
  def function(
    variables: Variables, *inputs: Any, train: bool = False, dropout_key: Array | None = None
  ) -> tuple[Any, Params]:
    check(*inputs)
    if not train:
      return module.apply(variables, *inputs, train=False, method=method), variables['batch_stats']
    rngs = {} if dropout_key is None else {'dropout': dropout_key}
    output, state = module.apply(
      variables, *inputs, train=True, mutable=['batch_stats'], rngs=rngs, method=method)
    return output, {**variables['batch_stats'], **state['batch_stats']}

  return function


def _check_images(patch: int, images: Array) -> None:
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise TypeError(f'images are {images.dtype}, but a network reads normalised floats; '
                    'pass network.normalize(images).')
  check_sides('side of images', images.shape[1:3], patch)
