"""Feeds generated bad input to everything that reads a user's files or command line.

    python benchmarks/fuzz.py --cases 2200 --seed 0

A case passes if it succeeds, or fails with a documented error that our own code raises: its message
is then a sentence of ours. Everything else is listed with the number that makes it again:
`--only NUMBER`. A case is a function of the seed and its number alone. `--kinds convert predict
load` runs so many cases of these alone.
"""

import argparse
import contextlib
import io
import itertools
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # before jax is imported
sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import fuzz_archives, fuzz_cases, fuzz_use
from benchmarks.fuzz_cases import ROOT, UndocumentedError
from gta_jax.devices import runtime

SECONDS = 60  # for a case; 20 were too few where seven programs share two cores

# How many of 26 cases; checkpoints and archives take longest.
KINDS: dict[Callable[[np.random.Generator, Path, Path], str | None], int] = {
  fuzz_cases.fuzz_images: 5, fuzz_cases.fuzz_masks: 3, fuzz_cases.fuzz_lists: 3,
  fuzz_cases.fuzz_classes: 1, fuzz_cases.fuzz_overrides: 4, fuzz_cases.fuzz_run_files: 2,
  fuzz_cases.fuzz_weights: 1, fuzz_cases.fuzz_checkpoints: 1,
  fuzz_archives.fuzz_archives: 2, fuzz_use.fuzz_convert: 2, fuzz_use.fuzz_predict: 1,
  fuzz_use.fuzz_load: 1}
ORDER = [kind for kind, count in KINDS.items() for _ in range(count)]


def outcome(kind: Callable, rng: np.random.Generator, base: Path) -> str:
  """'success' or 'refused'; raises UndocumentedError for everything else."""
  with tempfile.TemporaryDirectory() as work, time_limit(SECONDS), warnings.catch_warnings():
    warnings.simplefilter('ignore')
    try:
      return kind(rng, base, Path(work)) or 'success'
    except (OSError, ValueError) as error:
      last = traceback.extract_tb(error.__traceback__)[-1]
      ours = Path(last.filename).is_relative_to(ROOT) and 'fuzz' not in Path(last.filename).name
      ours = ours and not isinstance(error, UnicodeError)  # Python's own, however near.
      if ours or (isinstance(error, OSError) and error.filename):  # as launch.py tells them
        return 'refused'
      raise UndocumentedError(f'{last.filename}:{last.lineno}') from error
    except UndocumentedError:  # It took too long.
      raise
    except Exception as error:
      raise UndocumentedError('no documented class') from error


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
  """UndocumentedError in the main thread where its body takes longer."""
  def late(*_: object) -> None:
    raise UndocumentedError(f'took more than {seconds} s')

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def numbers_of(kinds: Collection[str]) -> Iterator[int]:
  """The numbers of all cases of some kinds, without end."""
  return (number for number in itertools.count() if kind_of(number) in kinds)


def kind_of(number: int) -> str:
  """'images', 'convert', ...: what a case feeds."""
  return ORDER[number % len(ORDER)].__name__.removeprefix('fuzz_')


def fuzz(numbers: Iterable[int], seed: int) -> tuple[Counter, dict[int, Exception]]:
  """Runs cases; the counts of (kind, outcome), and what failed by number."""
  counts, failed = Counter(), {}
  with tempfile.TemporaryDirectory() as base:
    fuzz_cases.make_base(Path(base))
    for number in numbers:
      kind = ORDER[number % len(ORDER)]
      try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
          result = outcome(kind, np.random.default_rng((seed, number)), Path(base))
      except UndocumentedError as error:
        result, failed[number] = 'FAILED', error
      counts[kind_of(number), result] += 1
  return counts, failed


def main() -> int:
  """Runs the cases and prints a row a kind; 1 if one of them failed."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--cases', type=int, default=2200)
  parser.add_argument('--seed', type=int, default=0)
  known = sorted({kind_of(number) for number in range(len(ORDER))})
  parser.add_argument('--kinds', nargs='+', choices=known, default=known)
  parser.add_argument('--only', type=int, help='one case, with its whole traceback')
  arguments = parser.parse_args()
  numbers = itertools.islice(numbers_of(arguments.kinds), arguments.cases)
  if arguments.only is not None:
    numbers = [arguments.only]
  began = time.monotonic()
  counts, failed = fuzz(numbers, arguments.seed)
  for number, error in failed.items():
    print(number, kind_of(number), error, repr(error.__cause__)[:300])
    if arguments.only is not None:
      traceback.print_exception(error)
  for (kind, result), count in sorted(counts.items()):
    print(f'{kind:12}{result:10}{count:6}')
  print(f'{counts.total()} cases, {len(failed)} failed, {time.monotonic() - began:.0f} s')
  return 1 if failed else 0


if __name__ == '__main__':
  runtime.disable_faulty_cpu_fusion()
  sys.exit(main())
