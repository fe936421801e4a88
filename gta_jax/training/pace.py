"""How long steps and evaluations of a run take, as measured, and what follows for the rest."""

import itertools
import resource
import time
from collections.abc import Sequence
from typing import Any

import jax

from gta_jax.methods.contract import Stage

_ENOUGH_SECONDS, _ENOUGH_STEPS = 3.0, 10
_MUCH_WAITING = 0.2  # of the time


class Pace:
  """Seconds a step by stage, and of an evaluation; compilation counts for neither.

  The first line of the log after a stage has begun, or after an evaluation, is where a measurement
  begins: by then the programs are compiled and the device is at work.
  """

  def __init__(self, stages: Sequence[Stage]):
    self._stages = tuple(stages)
    self._measured: dict[str, tuple[int, float]] = {}  # steps and seconds by stage
    self._waited: dict[str, float] = {}  # seconds by stage
    self._since: tuple[int, float] | None = None
    self._stage, self._told = '', set()
    self.evaluation: float | None = None  # seconds of the newest one; the first one compiles
    self._began = time.monotonic()

  def enter(self, stage: str) -> None:
    """A stage begins or continues; its next step may have to be compiled."""
    self._stage, self._since = stage, None

  def pause(self) -> None:
    """Something else than steps comes now."""
    self._since = None

  def observe(self, step: int) -> None:
    """The steps up to this one are done."""
    now = time.monotonic()
    if self._since is not None and step > self._since[0]:
      steps, seconds = self._measured.get(self._stage, (0, 0.0))
      self._measured[self._stage] = (
        steps + step - self._since[0], seconds + now - self._since[1])
    self._since = step, now

  def waited(self, seconds: float) -> None:
    """The device has been without work for so long or less, as its images were not there."""
    if self._since is not None:
      self._waited[self._stage] = self._waited.get(self._stage, 0.0) + seconds

  def waiting_share(self, stage: str) -> float:
    """The most of a stage's measured time that the device can have waited for images, 0 to 1."""
    seconds = self._measured.get(stage, (0, 0.0))[1]
    return min(1.0, self._waited.get(stage, 0.0) / seconds) if seconds else 0.0

  def step_seconds(self, stage: str) -> float | None:
    """Of a step; None before enough of them have been measured."""
    steps, seconds = self._measured.get(stage, (0, 0.0))
    return seconds / steps if steps >= _ENOUGH_STEPS and seconds >= _ENOUGH_SECONDS else None

  def estimate(self, step: int, evaluations: int) -> str:
    """How long the rest takes, once for what has been learnt newly; else ''.

    Args:
      step: the steps up to this one are done.
      evaluations: how many are to come.
    """
    known = (self._stage, self.evaluation is not None)
    seconds = self.step_seconds(self._stage)
    if seconds is None or known in self._told:
      return ''
    self._told.add(known)
    total, unknown = evaluations * (self.evaluation or 0), []
    for stage, left in self._steps_left(step):
      own = self.step_seconds(stage.name)
      total += left * (own or 0)
      if left and own is None:
        unknown.append(f'{stage.name} ({left} steps)')
    counted, number = '', f'{evaluations} evaluation{"s" * (evaluations != 1)}'
    if evaluations and self.evaluation is None:
      unknown.append(number)
    elif evaluations:
      counted = f', with {number} of {self.evaluation:.1f} s as the last one took'
    waiting = self.waiting_share(self._stage)
    return (f'{seconds:.3g} s a step of {self._stage}, measured on '
            f'{self._measured[self._stage][0]} of them: about {_minutes(total)} left{counted}'
            + (f'; not known yet and not counted: {", ".join(unknown)}' if unknown else '')
            + (f'; up to {waiting:.0%} of a step the device waits for images, which more '
               'data.threads or data.workers may shorten' if waiting > _MUCH_WAITING else ''))

  def seconds_left(self, step: int, evaluations: int) -> float | None:
    """The rest in one number: stages to come at the present one's pace until theirs is known.

    None before that is known. Args: see estimate.
    """
    seconds = self.step_seconds(self._stage)
    if seconds is None:
      return None
    return evaluations * (self.evaluation or 0) + sum(
      left * (self.step_seconds(stage.name) or seconds) for stage, left in self._steps_left(step))

  def _steps_left(self, step: int) -> list[tuple[Stage, int]]:
    ends = itertools.accumulate(stage.steps for stage in self._stages)
    return [(stage, min(stage.steps, max(0, end - step)))
            for stage, end in zip(self._stages, ends, strict=True)]

  def summary(self) -> dict[str, Any]:
    """Measurements as JSON: seconds, and the most memory used, in bytes."""
    device = jax.local_devices()[0]
    memory = {'host': 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    if peak := (device.memory_stats() or {}).get('peak_bytes_in_use'):
      memory['device'] = peak
    return {
      'seconds': round(time.monotonic() - self._began, 1),
      'step_seconds': {name: seconds / steps for name, (steps, seconds) in self._measured.items()},
      'waiting_share': {name: self.waiting_share(name) for name in self._measured},
      'evaluation_seconds': self.evaluation, 'peak_bytes': memory}


def _minutes(seconds: float) -> str:
  if seconds < 90:
    return f'{seconds:.0f} s'
  minutes = seconds / 60
  return f'{minutes:.0f} minutes' if minutes < 120 else f'{minutes / 60:.1f} hours'
