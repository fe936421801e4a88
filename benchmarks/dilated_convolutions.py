"""Are XLA's dilated convolutions, and their gradients, as fast as they could be?

    python benchmarks/dilated_convolutions.py      # a GPU: ResNet-101's sizes
    python benchmarks/dilated_convolutions.py --batch 1 --side 33 --channels 64 --dtype float32

For 3x3 kernels of several dilations: milliseconds of the forward pass, of the gradient by the input
and of that by the kernel (each with the forward pass), in three forms. `package` is
gta_jax.models.convolution, which takes the gradient by the kernel over phases on GPUs; `xla` has
XLA's own gradients, `products` adds up nine shifted matrix products. Where another form than
`package` wins on a device, that module is the place for it. Also says whether a compiled program
holds a kernel that was padded to its dilated size.
"""

import argparse
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cases  # noqa: F401  Finds the package and sets flags.
import jax
import jax.numpy as jnp

from gta_jax.models.convolution import convolution, convolve

Array = jax.Array


def products(x: Array, kernel: Array, dilation: int) -> Array:
  """The same as convolution: nine shifted matrix products, added in float32."""
  height, width = x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), (dilation,) * 2, (dilation,) * 2, (0, 0)))
  total = 0.0
  for row in range(3):
    for column in range(3):
      top, left = row * dilation, column * dilation
      tap = padded[:, top:top + height, left:left + width]
      total += jnp.einsum('bhwc,cd->bhwd', tap, kernel[row, column],
                          preferred_element_type=jnp.float32)
  return total.astype(x.dtype)


def passes(function: Callable, x: Array, kernel: Array) -> dict[str, Callable]:
  """The three programs of a convolution in training, jitted."""
  def loss(x: Array, kernel: Array) -> Array:
    # The cotangent depends on the result, as it does in a network.
    return 0.5 * jnp.sum(jnp.square(function(x, kernel).astype(jnp.float32)))

  programs = {'forward': function, 'by input': jax.grad(loss, 0), 'by kernel': jax.grad(loss, 1)}
  return {name: jax.jit(program).lower(x, kernel).compile() for name, program in programs.items()}


def milliseconds(program: Callable, *arguments: Array, repeats: int) -> float:
  """Median wall time of a call, to the end of the device's work."""
  jax.block_until_ready(program(*arguments))
  times = []
  for _ in range(repeats):
    started = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    times.append(1000 * (time.perf_counter() - started))
  return statistics.median(times)


def main() -> None:
  """Prints a row a dilation and form."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--dilations', type=int, nargs='+', default=[1, 2, 4, 8, 12, 24, 36])
  parser.add_argument('--batch', type=int, default=12)
  parser.add_argument('--side', type=int, default=65, help='513 / 8, rounded up')
  parser.add_argument('--channels', type=int, default=512, help='in and out')
  parser.add_argument('--dtype', default='bfloat16')
  parser.add_argument('--repeats', type=int, default=20)
  parser.add_argument('--hlo', type=Path, help='folder for the compiled programs')
  flags = parser.parse_args()
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (flags.batch, flags.side, flags.side, flags.channels), flags.dtype)
  kernel = jax.random.normal(keys[1], (3, 3, flags.channels, flags.channels), flags.dtype) / 100
  gflop = 2 * x.size * 9 * flags.channels / 1e9
  print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}, {x.shape} {flags.dtype}, '
        f'{gflop:.1f} GFLOP a pass')
  print('| dilation | form | forward ms | by input ms | by kernel ms | padded kernels |\n|' +
        '---|' * 6)
  for dilation in flags.dilations:
    for name, function in (('package', convolution), ('xla', convolve), ('products', products)):
      programs = passes(
        lambda x, k, f=function, d=dilation: f(x, k, d), x, kernel)
      texts = {which: program.as_text() for which, program in programs.items()}
      wide = {side for text in texts.values() for side in re.findall(r'window=\{size=(\d+)x', text)
              if 3 < int(side) <= 2 * dilation + 1}
      times = [milliseconds(p, x, kernel, repeats=flags.repeats) for p in programs.values()]
      cells = ' | '.join(f'{ms:.2f}' for ms in times)
      print(f'| {dilation} | {name} | {cells} | {", ".join(sorted(wide)) or "none"} |', flush=True)
      for which, text in texts.items() if flags.hlo else ():
        flags.hlo.mkdir(parents=True, exist_ok=True)
        (flags.hlo / f'{name}-{dilation}-{which.replace(" ", "-")}.txt').write_text(text)


if __name__ == '__main__':
  main()
