"""Times a step of every method in alternation with the supervised one: counted against measured.

    python benchmarks/method_cost.py --config shapes --out method_cost.json

The counted cost of a step (`--mode methods`) is in forward passes of a batch of one kind; here both
are ratios to sup_only's step, the measured one the median over pairs. Of methods with several
stages it is the last stage's step. Batches are random, without padding, and read nothing.
"""

import argparse
import json
import statistics
from pathlib import Path

import jax
from cases import make_case
from comparison import MARKS, SUPERVISED, check_settings, resolved, systems
from step_time import time_cases

from gta_jax.methods.registry import METHODS
from gta_jax.training import setup


def measure(config: str, name: str, fields: list[str], repeats: int) -> dict[str, float]:
  """Counted and measured ratio, and milliseconds; two programs at a time in memory, not all."""
  configs = {key: resolved(config, method, fields)
             for key, method in (('base', SUPERVISED), ('step', name))}
  cost = {key: setup.make_method_of(config).cost for key, config in configs.items()}
  times = time_cases({key: make_case(config) for key, config in configs.items()}, repeats)
  jax.clear_caches()
  return {
    'counted': cost['step'] / cost['base'],
    'measured': statistics.median(
      a / b for a, b in zip(times['step'], times['base'], strict=True)),
    'ms': statistics.median(times['step'])}


def main() -> None:
  """Measures what the file does not have yet, and prints all."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='shapes', help='shapes, folder:46: configs/NAME.py:SPLIT')
  parser.add_argument('--methods', nargs='+', default=systems(), choices=list(METHODS))
  parser.add_argument('--repeats', type=int, default=10)
  parser.add_argument('--out', type=Path, help='JSON file; what it holds is not measured again')
  flags, fields = parser.parse_known_args()
  if strange := [field for field in fields if not field.startswith('--config.')]:
    parser.error(f'{" ".join(strange)}: only --config.FIELD=VALUE is a field of the config')
  if flags.out:
    try:
      check_settings(flags.out.with_suffix('.settings.json'),
                     {'config': flags.config, 'fields': fields})
    except ValueError as error:
      parser.error(str(error))
  rows = json.loads(flags.out.read_text()) if flags.out and flags.out.exists() else {}
  print('| method | counted × supervised | measured | measured / counted | ms |')
  print('|---' * 5 + '|')
  for method in flags.methods:
    if method not in rows:
      rows[method] = measure(flags.config, method, fields, flags.repeats)
    row = rows[method]
    print(f'| {method}{MARKS.get(method, "")} | {row["counted"]:.2f} | {row["measured"]:.2f} | '
          f'{row["measured"] / row["counted"]:.2f} | {row["ms"]:.0f} |', flush=True)
    if flags.out:
      flags.out.write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  main()
