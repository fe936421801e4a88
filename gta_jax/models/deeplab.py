"""DeepLabV3+ of the published code: its feature ends at the 512 channels before the classifier."""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze

from gta_jax.models.heads import Head, MakeHead
from gta_jax.models.layers import BatchNorm, Conv, call, dropout
from gta_jax.models.resnet import DEPTHS, OUTPUT_STRIDES, STEMS, ResNet, scaled
from gta_jax.ops.network import Decoded, Logits, Network, Params, Stages, Variables
from gta_jax.ops.resizing import resize_bilinear

Array = jax.Array

DTYPES = ('float32', 'bfloat16')
_CHANNELS = 256


class Aspp(nn.Module):
  """Image pooling, a 1x1 and dilated 3x3 convolutions side by side: [B,h,w,C] -> 5 x features.

  Pooling comes first in the concatenation, as in the published code.
  """

  features: int
  rates: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    pooled = x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
    pooled = Conv(self.features, 1, name='conv1_1')(pooled)
    pooled = nn.relu(BatchNorm(name='conv1_2')(pooled, train=train))
    branches = [jnp.broadcast_to(pooled, (*x.shape[:3], self.features))]
    for number, (size, rate) in enumerate([(1, 1), *((3, rate) for rate in self.rates)], start=2):
      branch = Conv(self.features, size, dilation=rate, name=f'conv{number}_0')(x)
      branches.append(nn.relu(BatchNorm(name=f'conv{number}_1')(branch, train=train)))
    return jnp.concatenate(branches, axis=-1)


class Decoder(nn.Module):
  """Stages 1 and 4 -> [B,h,w,2 x features] at stage 1's size: low-level half, then ASPP's."""

  features: int
  rates: tuple[int, ...]
  dropout: float
  remat: bool

  @nn.compact
  def __call__(self, low: Array, high: Array, *, train: bool) -> Array:
    drop = self.has_rng('dropout')
    low = Conv(self.features, 1, bias=True, name='low_conv_0')(low)
    low = nn.relu(BatchNorm(name='low_conv_1')(low, train=train))
    aspp = Aspp(self.features, self.rates, name='aspp')
    high = call(aspp, high, train=train, remat=self.remat)
    high = Conv(self.features, name='head_0')(high)
    high = nn.relu(BatchNorm(name='head_1')(high, train=train))
    high = dropout(high, self.dropout, active=drop)
    return jnp.concatenate([low, resize_bilinear(high, (low.shape[1], low.shape[2]))], axis=-1)


class DeepLab(nn.Module):
  """The whole network; its parts, and further heads by name, are the methods' top-level keys."""

  num_classes: int
  resnet: dict[str, Any]
  width: float
  aspp_rates: tuple[int, ...]
  dropout: float
  has_auxiliary: bool
  dtype: str
  remat: bool
  heads: Mapping[str, MakeHead]

  def setup(self):
    features = scaled(_CHANNELS, self.width)
    head = {'channels': self.num_classes, 'features': features, 'dropout': self.dropout}
    self.backbone = ResNet(**self.resnet, width=self.width, remat=self.remat)
    self.decoder = Decoder(features, self.aspp_rates, self.dropout, self.remat)
    self.classifier = Head(**head, depth=2)
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
    return tuple(self.backbone(images.astype(self.dtype), train=train))

  def decode(self, stages: Stages, *, train: bool) -> Decoded:
    low, _, middle, high = stages
    fused = self.decoder(low, high, train=train)
    main = self.classifier(fused, train=train)
    auxiliary = self.auxiliary(middle, train=train) if self.has_auxiliary else None
    return Decoded(Logits(main, auxiliary), fused)

  def head(self, name: str, inputs: Any, *, train: bool) -> Any:
    return getattr(self, name)(inputs, train=train)


def make_deeplab(
  *,
  num_classes: int,
  depth: int = 101,
  stem: str = 'deep',
  output_stride: int = 8,
  multi_grid: tuple[int, ...] | None = None,
  width: float = 1.0,
  aspp_rates: tuple[int, ...] = (12, 24, 36),
  dropout: float = 0.1,
  auxiliary: bool = False,
  dtype: str = 'float32',
  remat: bool = False,
  heads: Mapping[str, MakeHead] = types.MappingProxyType({}),
  mean: tuple[float, float, float] = Network.mean,
  std: tuple[float, float, float] = Network.std,
) -> Network:
  """DeepLabV3+ on a ResNet.

  Args:
    num_classes: K of the logits.
    depth: 10 (one basic block a stage), 18, 34, 50, 101 or 152.
    stem: 'deep' (the published code, timm's resnet101s) or 'torchvision'.
    output_stride: 8, 16 or 32, of the last stage.
    multi_grid: dilation factor of each block of the last stage, e.g. (2, 2, 4); None for ones.
    width: multiplies every channel count, rounded to a multiple of 8.
    aspp_rates: of the dilated branches; half of (12, 24, 36) is usual at output stride 16.
    dropout: probability that a channel is dropped in decoder and heads.
    auxiliary: whether a second head reads stage 3.
    dtype: of the computation; parameters, statistics and logits are float32.
    remat: whether gradients compute the inside of residual blocks and ASPP again instead of keeping
      it: less memory for a third of the time, the same results.
    heads: further heads of a method, by their top-level key; see models.heads.
    mean: RGB in [0,1] that the weights expect.
    std: RGB in [0,1] that the weights expect.
  Returns: the network; the main logits have the size of stage 1, a quarter of the image.
  Raises: ValueError for an unknown choice.
  """
  _check_known('depth', depth, tuple(DEPTHS))
  _check_known('stem', stem, STEMS)
  _check_known('output_stride', output_stride, OUTPUT_STRIDES)
  _check_known('dtype', dtype, DTYPES)
  last = DEPTHS[depth][0][-1]
  if multi_grid is not None and len(multi_grid) != last:
    raise ValueError(f'multi_grid={multi_grid} has {len(multi_grid)} factors, but ResNet-{depth} '
                     f'has {last} blocks in its last stage; give {last} factors, or None for ones.')
  if not 0 <= dropout < 1:
    raise ValueError(f'dropout={dropout} is no probability below 1; use e.g. 0.1, or 0 for none.')
  if num_classes < 1 or width <= 0:
    raise ValueError(f'num_classes={num_classes} and width={width} must both be positive.')
  resnet = {'depth': depth, 'stem': stem, 'output_stride': output_stride,
            'multi_grid': None if multi_grid is None else tuple(multi_grid)}
  module = DeepLab(
    num_classes, resnet, width, tuple(aspp_rates), dropout, auxiliary, dtype, remat, heads)
  return make_network(module, mean=mean, std=std)


def make_network(
  module: nn.Module, *, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Network:
  """A flax module with methods encode, decode and head as pure functions."""
  return Network(
    _make_init(module), _make_function(module, 'encode', _check_images),
    _make_function(module, 'decode'), _make_function(module, 'head'), (*mean,), (*std,))


def _check_known(name: str, value: Any, known: tuple) -> None:
  if value not in known:
    raise ValueError(f'{name}={value!r} is unknown; use one of {", ".join(map(str, known))}.')


def _make_init(module: nn.Module):
  @functools.partial(jax.jit, static_argnums=1)
  def init(key: Array, image_shape: tuple[int, int]) -> Variables:
    # XLA drops the forward pass, which only tells flax the shapes.
    variables = unfreeze(module.init(key, jnp.zeros((1, *image_shape, 3))))
    return {**variables, 'params': _draw_kernels(key, variables['params'])}

  return init


def _draw_kernels(key: Array, params: Params) -> Params:
  """Params with normal kernels: Kaiming's variance 2 / fan_out in the backbone, as torchvision.

  Elsewhere the variance is 1 / (3 fan_in), that of torch's default. All come from one draw, as a
  generator for each kernel would compile for many seconds.
  """
  leaves, tree = jax.tree_util.tree_flatten_with_path(params)
  normal = jax.random.normal(key, (sum(leaf.size for _, leaf in leaves if leaf.ndim == 4),))
  drawn, start = [], 0
  for path, leaf in leaves:
    if leaf.ndim != 4:
      drawn.append(leaf)
      continue
    height, width, fan_in, fan_out = leaf.shape
    variance = 2 / fan_out if path[0].key == 'backbone' else 1 / (3 * fan_in)
    values = jax.lax.dynamic_slice_in_dim(normal, start, leaf.size)
    drawn.append(values.reshape(leaf.shape) * (variance / (height * width)) ** 0.5)
    start += leaf.size
  return tree.unflatten(drawn)


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


def _check_images(images: Array) -> None:
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise TypeError(f'images are {images.dtype}, but a network reads normalised floats; '
                    'pass network.normalize(images).')
