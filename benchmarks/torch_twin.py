"""Times our steps and the same steps in PyTorch side by side and prints ratios.

    python benchmarks/torch_twin.py --config configs/shapes.py --repeats 20
    python benchmarks/torch_twin.py --config configs/voc.py:183 --repeats 10 --out twin.json  # GPU
    python benchmarks/torch_twin.py --config configs/folder.py --set data.crop=96 \
      train.labelled_batch=4 train.unlabelled_batch=4 model.decoder='"unet"' \
      model.output_stride=16 loss.class_weights=[] train.epochs=30 optim.name='"sgd"'

Each framework has a process of its own, so that neither's threads nor memory pools are in the
other's way; they take steps in turn, on the same batch sizes, crop and network, on all visible
cores or on one GPU. Three kinds of contestant:

    jax            our step in the config's dtype
    torch          as people run it: eager, NCHW, float32 (TF32 on a GPU)
    torch tuned    channels last, the config's dtype by autocast, torch.compile

`released` is the published algorithm (two teacher passes, joint batches), `gta` the paper's. A
ratio compares the contestant with `jax gta` turn by turn: median, and the middle half.
The third command is as --mode inspect proposes, but for the optimiser: the twins have SGD alone.
Needs torch beside the package; a contestant that does not fit into memory is left out.
"""

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ml_collections
from cases import STEPS, make_case, num_classes, random_batches, read_config

REFERENCE = ('jax', 'gta')
TORCH_STEPS = {'gta': 'paper'}  # the twin's name where it differs
TUNED = ('supervised', 'gta')


def make_jax_run(config_file: str, name: str, overrides: list[str]) -> Callable[[], None]:
  """Our compiled step, timed to the end of the device's work."""
  return make_case(read_config(config_file, name, overrides)).run


def make_torch_network(config: ml_collections.ConfigDict) -> Callable:
  """What makes the twin of the config's network, with random weights.

  Raises: ValueError for a network or an optimiser that has no twin.
  """
  from torch_networks import DeepLab  # noqa: PLC0415
  from torch_unet import LiteUnet  # noqa: PLC0415

  twins = {
    ('resnet', 'deeplab'): (DeepLab, ('depth', 'stem', 'output_stride', 'multi_grid', 'width',
                                      'aspp_rates', 'dropout', 'auxiliary')),
    ('efficientnet_lite0', 'unet'): (LiteUnet, ('output_stride', 'frozen_stages', 'dropout')),
  }
  network = config.model.backbone, config.model.decoder
  if network not in twins:
    raise ValueError(f'{" with ".join(map(str, network))} has no twin in PyTorch; set '
                     f'model.backbone and model.decoder to {" or ".join(map(str, twins))}.')
  if config.optim.name != 'sgd':
    raise ValueError(f'optim.name={config.optim.name} has no twin in PyTorch; set it to sgd.')
  kind, fields = twins[network]
  return functools.partial(
    kind, num_classes=num_classes(config), **{field: config.model[field] for field in fields})


def make_torch_run(
  config_file: str, name: str, overrides: list[str], *, tuned: bool
) -> Callable[[], None]:
  """The twin's step past the release's hand-over."""
  import torch  # noqa: PLC0415
  from torch_method import Options, make_state  # noqa: PLC0415
  from torch_steps import STEPS as TWINS  # noqa: PLC0415

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
  torch.backends.cudnn.benchmark = True
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  config = read_config(config_file, name, overrides)
  half = tuned and config.model.dtype == 'bfloat16'
  options = Options(total_steps=10_000, channels_last=tuned,
                    autocast=torch.bfloat16 if half else None)
  state = make_state(make_torch_network(config), options, device=device, compiled=tuned,
                     fused=device == 'cuda')
  state.step = options.epoch_steps
  labelled, unlabelled = (
    {k: torch.as_tensor(v, device=device) for k, v in batch.items()}
    for batch in random_batches(config))
  step = TWINS[TORCH_STEPS.get(name, name)]

  def run() -> None:
    step(state, labelled, unlabelled, options)
    if device == 'cuda':
      torch.cuda.synchronize()

  return run


def serve(connection, config_file: str, overrides: list[str]) -> None:
  """A worker process: makes contestants as they are named and answers with milliseconds a step."""
  made: dict[tuple, Callable] = {}
  while (request := connection.recv()) is not None:
    contestant, steps = request
    framework, name = contestant
    try:
      if contestant not in made:
        made[contestant] = (
          make_jax_run(config_file, name, overrides) if framework == 'jax' else
          make_torch_run(config_file, name, overrides, tuned=framework == 'torch tuned'))
      started = time.perf_counter()
      for _ in range(steps):
        made[contestant]()
      connection.send(1000 * (time.perf_counter() - started) / steps)
    except Exception as error:  # Out of memory, a compiler that is missing: told.
      made[contestant] = None
      connection.send(f'{type(error).__name__}: {str(error).partition(chr(10))[0][:150]}')


def contest(contestants: list[tuple], flags: argparse.Namespace) -> tuple[dict, dict]:
  """Milliseconds by contestant, in turn, and what kept others from running."""
  os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # Two frameworks share a GPU's memory.
  context = multiprocessing.get_context('spawn')
  pipes = {}
  for process in {framework.split()[0] for framework, _ in contestants}:
    pipes[process], far = context.Pipe()
    context.Process(target=serve, args=(far, flags.config, flags.set), daemon=True).start()

  def ask(contestant: tuple, steps: int) -> float | str:
    pipe = pipes[contestant[0].split()[0]]
    pipe.send((contestant, steps))
    return pipe.recv()

  failures, times = {}, {}
  for contestant in contestants:  # Compilation, allocation, choice of algorithms.
    answer = ask(contestant, 3)
    if isinstance(answer, str):
      failures[contestant] = answer
    else:
      times[contestant] = []
    print(f'{" ".join(contestant)}: {answer if isinstance(answer, str) else "ready"}',
          file=sys.stderr)
  for _ in range(flags.repeats):
    for contestant, of_one in times.items():
      of_one.append(ask(contestant, flags.steps_per_turn))
  for pipe in pipes.values():
    pipe.send(None)
  return times, failures


def ratios(times: dict[tuple, list[float]]) -> dict[str, dict[str, float]]:
  """'FRAMEWORK, STEP' -> ms, and the ratio to REFERENCE turn by turn: median and middle half.

  Nothing where REFERENCE did not run.
  """
  rows = {}
  for (framework, name), of_one in times.items() if REFERENCE in times else ():
    found = [a / b for a, b in zip(of_one, times[REFERENCE], strict=True)]
    low, middle, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
    rows[f'{framework}, {name}'] = {
      'ms': statistics.median(of_one), 'ratio': middle, 'low': low, 'high': high}
  return rows


def main() -> None:
  """Lets them run and prints one table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='configs/shapes.py')
  parser.add_argument('--set', nargs='*', default=[], metavar='FIELD=JSON')
  parser.add_argument('--repeats', type=int, default=20, help='turns')
  parser.add_argument('--steps-per-turn', type=int, default=1)
  parser.add_argument('--out', type=Path, help='JSON file')
  flags = parser.parse_args()
  contestants = [(framework, name) for framework in ('jax', 'torch') for name in STEPS]
  contestants += [('torch tuned', name) for name in TUNED]
  times, failures = contest(contestants, flags)
  rows = ratios(times)
  print(f'{flags.config} {" ".join(flags.set)}, {len(os.sched_getaffinity(0))} cores')
  print('| contestant | ms a step | × jax, gta | middle half |\n|---|---|---|---|')
  for name, row in rows.items():
    print('| {name} | {ms:.0f} | {ratio:.2f} | {low:.2f} – {high:.2f} |'.format(name=name, **row))
  for (framework, name), reason in failures.items():
    print(f'| {framework}, {name} | {reason} | | |')
  if flags.out:
    flags.out.write_text(json.dumps({'config': flags.config, 'set': flags.set, 'rows': rows},
                                    indent=2) + '\n')


if __name__ == '__main__':
  main()
