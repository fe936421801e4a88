"""Many decoders of one shape on one feature, one of them at a time: CCT's auxiliary decoders.

Their parameters are stacked, so that a loop over decoders is one compiled body and its number picks
the parameters. Both classes are heads (gta_jax/models/heads.py) and are called as
decoders((number, features), train=...) -> [B,h',w',K] float32 logits.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

# Of a 1x1 convolution from so many channels: Kaiming's, and torch's default.
_KAIMING = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal', in_axis=-2, out_axis=-1,
                                            batch_axis=(0,))
_DEFAULT = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'normal', in_axis=-2, out_axis=-1,
                                            batch_axis=(0,))


class ShufflingDecoders(nn.Module):
  """1x1 to K channels without a bias, then three times {1x1 to 4K, ReLU, pixel shuffle}.

  They read the backbone's last stage, [B,h,w,C], and give logits >= 0 at eight times its size. The
  kernels before a shuffle start equal within each group of four (ICNR), as nearest neighbours.

  Attributes:
    num_classes: K.
    features: of the network's decoder; not used.
    count: J, the number of decoders.
  """

  num_classes: int
  features: int
  count: int
  reads: ClassVar[str] = 'stages'

  @nn.compact
  def __call__(self, inputs: Any, *, train: bool) -> Array:
    del train
    # While parameters are made, all stages are handed over, and no number.
    number, x = (0, inputs[-1]) if self.is_initializing() else inputs
    count, classes = self.count, self.num_classes
    x = x.astype(jnp.float32)
    x = x @ self.param('kernel', _KAIMING, (count, x.shape[-1], classes))[number]
    for layer in range(3):
      kernel = self.param(f'kernel_{layer}', _equal_in_fours, (count, classes, 4 * classes))
      x = x @ kernel[number] + _bias(self, f'bias_{layer}', count, 4 * classes)[number]
      x = pixel_shuffle(nn.relu(x))
    return x


class LinearDecoders(nn.Module):
  """1x1 with a bias from the network's decoded features, [B,h,w,D], to K logits of the same size.

  Attributes: as of ShufflingDecoders.
  """

  num_classes: int
  features: int
  count: int
  reads: ClassVar[str] = 'decoder'

  @nn.compact
  def __call__(self, inputs: Any, *, train: bool) -> Array:
    del train
    number, x = (0, inputs) if self.is_initializing() else inputs
    kernel = self.param('kernel', _DEFAULT, (self.count, x.shape[-1], self.num_classes))
    bias = _bias(self, 'bias', self.count, self.num_classes)
    return x.astype(jnp.float32) @ kernel[number] + bias[number]


def pixel_shuffle(x: Array) -> Array:
  """[B,h,w,4C] -> [B,2h,2w,C]: four channels side by side become two by two pixels."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height, width, channels // 4, 2, 2)
  return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, 2 * height, 2 * width, channels // 4)


def _bias(module: nn.Module, name: str, count: int, channels: int) -> Array:
  # Flat, as optim.decay='kernels' knows biases by their one axis.
  return module.param(name, nn.initializers.zeros, (count * channels,)).reshape(count, channels)


def _equal_in_fours(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
  return jnp.repeat(_KAIMING(key, (*shape[:-1], shape[-1] // 4), dtype), 4, axis=-1)
