"""A run killed at random again and again, against the same run left alone: equal to the last bit?

    python benchmarks/soak.py --out runs/soak --minutes 30 --kills 50

Trains a tiny network on drawn shapes on the CPU, once alone and once killed --kills times with
SIGTERM or SIGKILL and started again by the same command. Then compares every leaf of the last and
of the best checkpoint, the lines of metrics.jsonl and the scores of results.json. When and how it
kills follows from --seed: after which step and how many seconds later, or how many seconds after a
start. Writes OUT/soak.log and OUT/soak.md; the exit status is 0 if nothing differs.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CONFIG = {
  'data.unlabelled': 64, 'data.validation': 4, 'data.size': 40, 'data.crop': 32, 'data.threads': 1,
  'data.cache': 10.0, 'model.width': 0.125, 'train.labelled_batch': 2, 'train.unlabelled_batch': 2,
  'train.evaluate_epochs': 1, 'train.log_steps': 4, 'train.checkpoint_steps': 7,
  'evaluate.batch': 2, 'evaluate.pictures': 2}
EPOCH_STEPS = 32  # of CONFIG
LONGEST_DELAY = 2.0  # seconds between reaching a step and the kill
STARTING = 0.15  # share of kills whose time counts from the start of the process
# 75: saved and left. Before its handlers are in place, a run ends by the signal itself.
STATUSES = {signal.SIGTERM: {75, -signal.SIGTERM}, signal.SIGKILL: {-signal.SIGKILL}}


class Kill(NamedTuple):
  """Strike `delay` seconds after the log has reached `step`, or after the start if that is None."""

  number: signal.Signals
  step: int | None
  delay: float


def plan(rng: random.Random, *, kills: int, steps: int, start_seconds: float) -> list[Kill]:
  """The kills in their order."""
  found = []
  for step in sorted(rng.randrange(1, steps) for _ in range(kills)):
    number = rng.choice((signal.SIGTERM, signal.SIGKILL))
    if rng.random() < STARTING:
      found.append(Kill(number, None, rng.uniform(0, start_seconds)))
    else:
      found.append(Kill(number, step, rng.uniform(0, LONGEST_DELAY)))
  return found


class Soak:
  """The commands, the clock and the log of one soak."""

  def __init__(self, out: Path, epochs: int):
    self.out = out
    self._log = (out / 'soak.log').open('a')
    self._began = time.monotonic()
    values = CONFIG | {'train.epochs': epochs, 'method.warmup_epochs': round(epochs / 4)}
    self._config = [f'--config.{name}={value}' for name, value in values.items()]

  def say(self, text: str) -> None:
    line = f'{time.monotonic() - self._began:7.1f} s  {text}'
    print(line, flush=True)
    self._log.write(line + '\n')
    self._log.flush()

  def start(self, workdir: Path) -> subprocess.Popen:
    """The same command every time."""
    environment = os.environ | {
      'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(self.out / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    command = [sys.executable, 'launch.py', '--config', 'configs/shapes.py:8', *self._config,
               '--workdir', str(workdir)]
    with (self.out / 'stderr.txt').open('a') as errors:
      return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors)

  def finish(self, workdir: Path) -> None:
    if status := self.start(workdir).wait():
      raise SystemExit(f'left alone, {workdir} ended with {status}; see {self.out}/stderr.txt')

  def strike(self, workdir: Path, kill: Kill) -> tuple[int, str] | None:
    """Starts the run and kills it; its status and what it was doing, None if it had finished."""
    before, begun_at, old = time.monotonic(), _last_step(workdir), _unfinished(workdir)
    process = self.start(workdir)
    while kill.step is not None and process.poll() is None and _last_step(workdir) < kill.step:
      time.sleep(0.01)
    time.sleep(kill.delay)
    at, saving = _last_step(workdir), _unfinished(workdir) - old
    process.send_signal(kill.number)
    status = process.wait()
    if status == 0:
      return None
    if status not in STATUSES[kill.number]:
      raise SystemExit(f'{kill} ended with status {status}; see {self.out}/stderr.txt')
    if kill.number == signal.SIGKILL:
      saving = _unfinished(workdir) - old
    doing = 'saving' if saving else 'starting' if at <= begun_at else 'training, scoring'
    self.say(f'{kill.number.name} at step {at}, {time.monotonic() - before:.1f} s after its start, '
             f'{doing}; status {status}')
    return status, doing


def _last_step(workdir: Path) -> int:
  """The step of the log's last line."""
  try:
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return json.loads(lines[-1])['step'] if lines else 0
  except (FileNotFoundError, json.JSONDecodeError):
    return 0


def _unfinished(workdir: Path) -> set[tuple[str, int]]:
  """Checkpoints that are being written or removed, by name and inode."""
  folder = workdir / 'checkpoints'
  try:
    found = {entry.name: entry.inode() for entry in os.scandir(folder)}
  except FileNotFoundError:
    return set()
  return {(name, inode) for name, inode in found.items()
          if (f'{name}.json' not in found if name.isdigit() else not name.endswith('.json'))}


def seconds_of(soak: Soak, workdir: Path) -> tuple[float, float]:
  """Seconds of a start with everything compiled, and of an epoch."""
  soak.finish(workdir)  # compiles
  (workdir / 'results.json').unlink()
  begun = time.monotonic()
  soak.finish(workdir)  # nothing is left to do but to start
  start = time.monotonic() - begun
  fresh, begun = workdir.with_name('calibrate-again'), time.monotonic()
  soak.finish(fresh)
  return start, max(0.1, (time.monotonic() - begun - start) / 4)


def differences(one: Path, other: Path) -> list[str]:
  """What differs between two finished runs."""
  import jax  # noqa: PLC0415  Not needed, and slow to import, for what comes before.
  import numpy as np  # noqa: PLC0415

  from gta_jax.training import setup  # noqa: PLC0415
  from gta_jax.training.checkpoint import Checkpoints  # noqa: PLC0415

  like = setup.make_run(setup.from_json(one / 'config.json')).abstract_state()
  found: list[str] = []

  def leaves(workdir: Path, which: str) -> dict[str, Any]:
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
      state = checkpoints.restore(getattr(checkpoints, f'{which}_step'), like)
    state = state.replace(key=jax.random.key_data(state.key))
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in paths}

  for which in ('last', 'best'):
    a, b = (leaves(workdir, which) for workdir in (one, other))
    found += [f'{which} checkpoint: {name}' for name in a.keys() | b.keys()
              if a.get(name) != b.get(name)]
  a, b = ((workdir / 'metrics.jsonl').read_text().splitlines() for workdir in (one, other))
  if len(a) != len(b):
    found.append(f'metrics.jsonl: {len(a)} lines and {len(b)}')
  found += [f'metrics.jsonl, line {i + 1}' for i, (x, y) in enumerate(zip(a, b, strict=False))
            if x != y]
  a, b = (json.loads((workdir / 'results.json').read_text()) for workdir in (one, other))
  found += [f'results.json: {key}' for key in a.keys() | b.keys()
            if not key.startswith('seconds') and a.get(key) != b.get(key)]
  return found


def report(soak: Soak, rows: list[tuple[Kill, int, str]], steps: int, found: list[str]) -> None:
  """Writes the table and the verdict."""
  counts = collections.Counter((kill.number.name, doing) for kill, _, doing in rows)
  places = ('starting', 'training, scoring', 'saving')
  lines = ['| killed while | ' + ' | '.join(places) + ' | all |', '|---|---|---|---|---|']
  for name in ('SIGTERM', 'SIGKILL'):
    numbers = [counts[name, place] for place in places]
    lines.append(f'| {name} | ' + ' | '.join(map(str, [*numbers, sum(numbers)])) + ' |')
  verdict = (f'{len(found)} differences: ' + '; '.join(found[:10])) if found else (
    'no difference: every leaf of the last and of the best checkpoint, every line of '
    'metrics.jsonl, every score')
  lines += ['', f'{steps} steps, killed {len(rows)} times; {verdict}.']
  (soak.out / 'soak.md').write_text('\n'.join(lines) + '\n')
  for line in lines:
    soak.say(line)


def main() -> int:
  """Calibrates, runs alone, kills, compares; 0 if nothing differs."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=Path, required=True, help='new folder')
  parser.add_argument('--minutes', type=float, default=30, help='of the killed run, about')
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  options.out = options.out.resolve()
  options.out.mkdir(parents=True)
  calibration = Soak(options.out, epochs=4)
  start_seconds, epoch_seconds = seconds_of(calibration, options.out / 'calibrate')
  left = 60 * options.minutes - options.kills * (start_seconds + LONGEST_DELAY)
  epochs = max(4, -(-options.kills // EPOCH_STEPS) * 4, round(left / epoch_seconds))
  steps = epochs * EPOCH_STEPS
  soak = Soak(options.out, epochs)
  soak.say(f'a start takes {start_seconds:.1f} s, an epoch {epoch_seconds:.1f} s: {steps} steps')
  soak.finish(options.out / 'alone')
  soak.say('the run left alone is done')
  kills = plan(random.Random(options.seed), kills=options.kills, steps=steps,
               start_seconds=start_seconds)
  workdir, rows = options.out / 'killed', []
  for kill in kills:
    if struck := soak.strike(workdir, kill):
      rows.append((kill, *struck))
  soak.finish(workdir)
  soak.say('the killed run is done')
  found = differences(options.out / 'alone', workdir)
  report(soak, rows, steps, found)
  return 1 if found or len(rows) < options.kills else 0


if __name__ == '__main__':
  sys.exit(main())
