"""What every method guarantees, proved for each name of the registry on one tiny network.

    JAX_NUM_CPU_DEVICES=4 python -m tests.methods.every_method [NAME ...]

Prints a line {'method', 'proof', 'error'} of each, error empty where it holds.
"""

import functools
import json
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gta_jax.devices import sharding
from gta_jax.methods.accumulation import WHOLE, Accumulation
from gta_jax.methods.contract import Method, Stage, Tools, TrainState, same_state
from gta_jax.methods.registry import METHODS, make_method, option_names
from gta_jax.training.checkpoint import Checkpoints
from tests import tiny
from tests.methods.tiny_model import tiny_model
from tests.narrow_sums import narrow_sums

# Rows of ablation tables are other numbers of the same code.
NAMES = [name for name, named in METHODS.items() if not named.note.startswith('Table')]
BATCH, SIZE, STEPS = 4, (16, 16), 2
# Of each method those that it has: small sizes, and thresholds that a fresh network passes.
OPTIONS: dict[str, Any] = {
  'warmup_epochs': 2.0, 'handover_epochs': 2.0, 'detector_blocks': 1, 'low_rank': 1,
  'high_rank': 3, 'channels': 4, 'anchors': 8, 'candidates': 32, 'negatives': 6, 'queue_size': 40,
  'first_queue_size': 50, 'keys_per_step': 16, 'regions': 4, 'vat': 1, 'dropout': 1,
  'guided_cutout': 1, 'context_masking': 1, 'object_masking': 1, 'feature_drop': 1,
  'feature_noise': 1, 'rounds': 1, 'threshold_init': 0.4}
CONFIDENT = ('fixmatch', 'unimatch', 'unimatch_v2', 'fixmatch_ema')
# What each part draws anew or normalises by itself is left out where parts are to equal the whole.
CUT: dict[str, dict[str, Any]] = {
  'unimatch': {'features_weight': 0.0}, 'pseudo_seg': {'image_dropout': 0.0, 'version': 'v1'}}
# Their own tests cut batches in networks without statistics: here a head or D has BatchNorm.
HAVE_STATISTICS = ('u2pl', 'u2pl_released', 'gct', 'gct_torchsemiseg')
# What is chosen by data from a whole batch: numbers of pixels by their rank, AEL's donors; and
# numbers of CCT's objects, in images of 4 x 4 and 8 x 8 places, which XLA gathers to sort them.
_RANKS, _DONORS = {'s32[3,512]'}, {'f32[4,16,16]', 'pred[4,3]', 'u8[4,16,16,3]', 'u8[4,16,16]'}
GATHERED = {'u2pl': _RANKS, 'u2pl_released': _RANKS, 'pc2seg': {'s32[1,256]'}, 'ael': _DONORS,
            'ael_released': _DONORS, 'cct': {'s32[4,17]'}, 'cct_torchsemiseg': {'s32[4,65]'}}
# Sums in another order, through four steps of batch statistics: float32 has a precision of 6e-8.
TOLERANCE = {'rtol': 1e-3, 'atol': 1e-4}


def make(name: str, **options: Any) -> Method:
  """The method with the options above that it has."""
  known = option_names(name)
  small = {key: value for key, value in OPTIONS.items() if key in known}
  small |= {'threshold': 0.4} if name in CONFIDENT else {}
  return make_method(name, **small | options)


def make_tools(
  method: Method, accumulation: Accumulation = WHOLE, **network: Any
) -> Tools:
  return tiny.make_tools(
    tiny_model(method, **network), total_steps=16, epoch_steps=1, batch=BATCH, size=SIZE,
    accumulation=accumulation)._replace(classes=('background', 'one', 'two'))


def first_state(method: Method, tools: Tools) -> TrainState:
  key = jax.random.key(1)
  return method.init(
    key, lambda own=None: tools.network.init(key if own is None else own, SIZE), tools)


def batches(stage: Stage, seed: int) -> dict[str, dict[str, np.ndarray]]:
  """What the stage's step reads, with void and padding."""
  found = {}
  for number, stream in enumerate(stage.streams):
    size = stage.sizes.get(stream, BATCH)
    labelled, unlabelled = tiny.make_batches(10 * seed + number, batch=size, size=SIZE)
    rng = np.random.default_rng(seed)
    found[stream] = {
      'labelled': labelled, 'unlabelled': unlabelled,
      'pseudo_labelled': {
        **unlabelled, 'label': labelled['label'],
        'confidence': rng.integers(90, 256, (size, *SIZE), dtype=np.uint8)}}[stream]
  return found


class Runner:
  """A method on so many devices, whose programs are compiled once."""

  def __init__(self, method: Method, tools: Tools, devices: int = 1):
    self.first = functools.partial(first_state, method, tools)
    self.mesh = sharding.make_mesh(jax.devices()[:devices])
    self.stages = method.stages(tools)
    programs = {}  # Stages may share a step.
    self.steps = [programs.setdefault(stage.step, sharding.compile_step(stage.step, self.mesh))
                  for stage in self.stages]
    self.enters = [stage.enter if stage.enter is same_state else
                   sharding.compile_hand_over(stage.enter, self.mesh) for stage in self.stages]

  def run(
    self, state: TrainState | None = None, *, start: int = 0,
    inspect: Callable[[TrainState, int], None] = lambda state, number: None,
  ) -> tuple[TrainState, dict[str, Any]]:
    """The state after two steps of each stage, and all metrics.

    Args:
      state: after `start` steps, to go on from.
      inspect: is shown the state before each step, and the number of steps that are done.
    """
    state = sharding.replicate(state or self.first(), self.mesh)
    metrics, done = {}, 0
    for stage, enter, step in zip(self.stages, self.enters, self.steps, strict=True):
      for k in range(min(STEPS, stage.steps)):
        done += 1
        if done <= start:
          continue
        inspect(state, done - 1)
        state = enter(state) if k == 0 else state
        given = {stream: sharding.global_batch(batch, self.mesh)
                 for stream, batch in batches(stage, done).items()}
        state, found = step(sharding.replicate(state, self.mesh), given)
        metrics |= {f'{stage.name} {key}': np.asarray(value) for key, value in found.items()}
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    return state, metrics


def leaves(state: TrainState) -> list[np.ndarray]:
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state.replace(key=None))]


def assert_close(one: TrainState, other: TrainState, **tolerance: float) -> None:
  for a, b in zip(leaves(one), leaves(other), strict=True):
    np.testing.assert_allclose(b, a, **tolerance)


def assert_same_kind(one: TrainState, other: TrainState) -> None:
  """Tree, shapes and dtypes."""
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype), (a, b)


def assert_finite(state: TrainState, metrics: dict[str, Any]) -> None:
  assert all(np.isfinite(leaf).all() for leaf in leaves(state))
  assert not [key for key, value in metrics.items() if not np.isfinite(value).all()]


def prove_float32(name: str) -> None:
  """2 and 4 devices give the result of one. A state that was saved at any step, within and between
  stages, goes on to the same bits. Padding has no influence."""
  method = make(name)
  tools = make_tools(method)
  one = Runner(method, tools)
  with tempfile.TemporaryDirectory() as folder:
    def checkpoints(number: int) -> Checkpoints:
      return Checkpoints(Path(folder) / str(number))

    def save(state: TrainState, number: int) -> None:
      with checkpoints(number) as kept:
        kept.save(number, state)

    whole, metrics = one.run(inspect=save)
    assert_same_kind(one.first(), whole)
    assert_finite(whole, metrics)
    for network in whole.optimizers:
      params = (state.networks[network]['params'] for state in (one.first(), whole))
      assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), *params))), network
    for number in range(1, int(whole.step)):
      with checkpoints(number) as kept:
        state = kept.restore(number, one.first())
      assert_close(whole, one.run(state, start=number)[0], rtol=0, atol=0)
  check_padding(one)
  for devices in (2, 4):
    assert_close(whole, Runner(method, tools, devices).run()[0], **TOLERANCE)


def check_padding(runner: Runner) -> None:
  """What stands under padding has no influence; a batch of void and padding alone is finite."""
  rng = np.random.default_rng(0)

  def noise(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    hidden = ~batch['valid']
    return batch | {
      key: np.where(hidden[..., None] if key == 'image' else hidden,
                    rng.integers(0, tiny.CLASSES, value.shape), value).astype(value.dtype)
      for key, value in batch.items() if key != 'valid'}

  def nothing(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return batch | ({'valid': np.zeros_like(batch['valid'])} if 'valid' in batch else
                    {'label': np.full_like(batch['label'], 255)})

  for stage, enter, step in zip(runner.stages, runner.enters, runner.steps, strict=True):
    given = batches(stage, 3)
    noisy = {name: noise(batch) if 'valid' in batch else batch for name, batch in given.items()}
    plain, changed, (empty, metrics) = (
      step(sharding.replicate(enter(sharding.replicate(runner.first(), runner.mesh)), runner.mesh),
           {name: sharding.global_batch(batch, runner.mesh) for name, batch in found.items()})
      for found in (given, noisy, {name: nothing(batch) for name, batch in given.items()}))
    assert_close(plain[0], changed[0], rtol=0, atol=0)
    assert_finite(empty, jax.tree.map(np.asarray, metrics))


def prove_bfloat16(name: str) -> None:
  """Steps of each stage in bfloat16 are finite; the state keeps its dtypes; no sum is in it."""
  method = make(name)
  runner = Runner(method, make_tools(method, dtype='bfloat16'))
  for stage in runner.stages:
    program = jax.make_jaxpr(stage.step)(runner.first(), batches(stage, 1))
    assert not (found := [*narrow_sums(program.jaxpr)]), found
  state, metrics = runner.run()
  assert_same_kind(runner.first(), state)
  assert_finite(state, metrics)


def prove_parts(name: str) -> None:
  """A cut batch gives the step of the whole one, or is refused in words."""
  if name in HAVE_STATISTICS:
    return
  method = make(name, **CUT.get(name, {}))
  found = []
  for accumulation in (Accumulation(per_device=2), WHOLE):
    tools = make_tools(method, accumulation, norm=False, dropout=0.0)
    try:
      method.check(tools)
    except ValueError as error:
      assert 'train.per_device_batch=2' in str(error) and 'use' in str(error)
      return
    found.append(Runner(method, tools).run()[0])
  assert_close(*found, **TOLERANCE)


def prove_sent(name: str) -> None:
  """No device gathers images or what networks make of them, from whatever rule it is chosen."""
  method = make(name)
  tools = make_tools(method)
  stage = method.stages(tools)[-1]
  step = sharding.compile_step(stage.step, sharding.make_mesh())
  state = jax.eval_shape(lambda: first_state(method, tools))
  text = step.lower(state, batches(stage, 1)).compile().as_text()
  assert gathered(text) <= GATHERED.get(name, set()), gathered(text)


def gathered(text: str) -> set[str]:
  """The arrays that a program gathers, or shuffles among all devices: their dtypes and sides."""
  results = re.findall(r' = (.*?) all-(?:gather|to-all)(?:-start)?\(', text)
  return {shape for result in results for shape in re.findall(r'\w+\[[\d,]*\]', result)}


PROOFS = {'float32': prove_float32, 'bfloat16': prove_bfloat16, 'parts': prove_parts,
          'sent': prove_sent}


def prove(case: tuple[str, str]) -> dict[str, str]:
  """What comes of one proof."""
  name, proof = case
  error = ''
  try:
    PROOFS[proof](name)
  except Exception:
    error = traceback.format_exc(limit=-4)[-3000:]
  return {'method': name, 'proof': proof, 'error': error}


def main(names: list[str]) -> Iterator[dict[str, str]]:
  """All proofs of these methods, two at a time."""
  assert jax.device_count() == 4
  with ThreadPoolExecutor(2) as pool:
    yield from pool.map(prove, [(name, proof) for name in names for proof in PROOFS])


if __name__ == '__main__':
  for found in main(sys.argv[1:] or NAMES):
    print(json.dumps(found), flush=True)
