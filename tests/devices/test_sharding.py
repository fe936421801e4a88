"""Any number of devices and processes gives what one device gives.

Two forced runs: a process with eight CPU devices, of which meshes of 1, 2, 4 and 8 are made; and
two processes of two devices each, whose run one process on one device then takes further.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from gta_jax.devices import sharding
from gta_jax.methods.accumulation import WHOLE, Accumulation, over_micro_batches
from gta_jax.methods.contract import TrainState
from gta_jax.methods.registry import make_method
from gta_jax.ops.pseudo_labels import confidence_threshold
from gta_jax.training import loop
from tests import processes, tiny

DEVICES = 8
STEPS = 5
# Those that differ in what is computed over the batch: no unlabelled images; no assistant; GTA;
# joint batch statistics, a threshold for each group of images, the teacher's own statistics.
METHODS = [('sup_only', 'paper'), ('mean_teacher', 'paper'), ('gta', 'paper'), ('gta', 'released')]
MICRO = Accumulation(per_device=1, devices=4)
# Sums in another order, through five steps of batch statistics: float32 has a precision of 6e-8.
TOLERANCE = {'rtol': 2e-4, 'atol': 2e-5}
ROOT = Path(__file__).parents[2]


def run_steps(name: str, recipe: str, devices: int, accumulation=WHOLE) -> list[np.ndarray]:
  """All leaves of the state after five steps on so many devices."""
  step, state, batches = prepare(name, recipe, devices, accumulation)
  for seed in range(STEPS):
    state, _ = step(state, batches(seed))
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state.replace(key=None))]


def prepare(
  name: str, recipe: str, devices: int, accumulation=WHOLE
) -> tuple[Callable, TrainState, Callable]:
  """A jitted step, its first state, and seed -> batches."""
  method = make_method(name, recipe=recipe)
  mesh = sharding.make_mesh(jax.devices()[:devices])
  tools = tiny.make_tools(
    tiny.conv_network(), total_steps=10, epoch_steps=0, batch=8, accumulation=accumulation)
  stage = method.stages(tools)[-1]

  def batches(seed: int) -> dict:
    found = dict(zip(('labelled', 'unlabelled'), tiny.make_batches(seed, batch=8), strict=True))
    return {name: sharding.global_batch(found[name], mesh) for name in stage.streams}

  # Of 14 seeds 3, 4 and 8 are none, on another processor 1 and 7: pixels whose few channels are all
  # dropped are equally confident but for rounding, and where the threshold falls among them,
  # rounding decides which are kept.
  state = sharding.replicate(tiny.first_state(method, tools, seed=2), mesh)
  return sharding.compile_step(stage.step, mesh), state, batches


def compare(methods: list[tuple[str, str]]) -> None:
  """What the process with eight devices runs."""
  assert jax.device_count() == DEVICES
  cases = [(*method, devices) for method in methods for devices in (1, 2, 8)]
  with ThreadPoolExecutor(2) as pool:
    found = dict(zip(cases, pool.map(lambda case: run_steps(*case), cases), strict=True))
  for name, recipe, devices in cases:
    for one, many in zip(found[name, recipe, 1], found[name, recipe, devices], strict=True):
      np.testing.assert_allclose(many, one, **TOLERANCE, err_msg=f'{name}, {recipe}, {devices}')
  for one, many in zip(*(run_steps('gta', 'released', n, MICRO) for n in (1, 4)), strict=True):
    np.testing.assert_allclose(many, one, **TOLERANCE)
  check_micro_batches()
  check_threshold()
  check_partner()
  check_joint()
  check_rows()


def check_rows() -> None:
  """Rows come from the devices that hold them, and from no other."""
  array = np.arange(32).reshape(16, 2)
  placed = sharding.place_locally(array)
  for rows in (1, 2, 3, 16):
    np.testing.assert_array_equal(sharding.first_rows(placed, rows), array[:rows])
    np.testing.assert_array_equal(
      sharding.first_rows(sharding.replicate(array, sharding.make_mesh()), rows), array[:rows])
  read = []
  shards = [mock.Mock(index=shard.index, data=mock.MagicMock(**{
    '__array__': lambda *_, number=number: read.append(number) or np.zeros((2, 2))}))
    for number, shard in enumerate(placed.addressable_shards)]
  sharding.first_rows(mock.Mock(addressable_shards=shards), 3)
  assert read == [0, 1], read


def check_micro_batches() -> None:
  """Cutting a batch moves no image from one device to another."""
  passes = jax.jit(
    lambda x: over_micro_batches(
      lambda x, key: (x[..., 0], x.sum()), x, MICRO, key=jax.random.key(0)),
    in_shardings=sharding.split(sharding.make_mesh(jax.devices()[:4])))
  text = passes.lower(np.zeros((8, 16, 16, 3), np.float32)).compile().as_text()
  assert not [name for name in ('all-gather', 'all-to-all', 'permute') if name in text], text


def check_threshold() -> None:
  """The threshold counts pixels of all devices, and gathers none."""
  rows = sharding.split(sharding.make_mesh())
  threshold = jax.jit(
    lambda c, v: confidence_threshold(c, v, drop_fraction=0.2), in_shardings=(rows, rows))
  confidence = np.random.default_rng(0).uniform(0.2, 1, (8, 16, 16)).astype(np.float32)
  valid = np.ones(confidence.shape, bool)
  dropped = (confidence <= threshold(confidence, valid)).sum()
  assert dropped == int(0.2 * confidence.size), dropped
  text = threshold.lower(confidence, valid).compile().as_text()
  assert 'all-reduce' in text and 'all-gather' not in text


def check_partner() -> None:
  """CutMix sends each device the next one's first image, what is known of it, and nothing else."""
  step, state, batches = prepare('gta', 'paper', 4)
  text = step.lower(state, batches(0)).compile().as_text()
  assert not re.findall(r' (?:all-gather|all-to-all)(?:-start)?\(', text)
  sent = re.findall(r' = (\S+) collective-permute\(', text)
  assert sent and all(re.match(r'\w+\[1,', shape) for shape in sent), sent


def check_joint() -> None:
  """Labelled and unlabelled images become one batch where they are: each device joins its own."""
  step, state, batches = prepare('gta', 'released', 4)
  text = step.lower(state, batches(0)).compile().as_text()
  # CutMix neither: its partners are of groups of two images.
  sent = re.findall(r'.* (?:all-gather|all-to-all|collective-permute)(?:-start)?\(', text)
  assert not sent, sent


def start(*arguments: str, devices: int) -> subprocess.Popen:
  """A process with so many CPU devices."""
  environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': str(devices), 'JAX_PLATFORMS': 'cpu'}
  return subprocess.Popen(
    [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
    stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
  """Its stderr, once it has ended well."""
  _, errors = process.communicate(timeout=900)
  assert process.returncode == 0, errors[-2000:]
  return errors


@pytest.mark.slow
def test_devices_agree_with_one():
  code = 'from tests.devices import test_sharding as t; t.compare(t.METHODS)'
  finish(start('-c', code, devices=DEVICES))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Folders: `stopped` by two processes, `resumed` from it by this one, `whole` by this one."""
  folder = tmp_path_factory.mktemp('processes')
  with socket.create_server(('localhost', 0)) as server:
    address = f'localhost:{server.getsockname()[1]}'
  both = [start('-m', 'tests.processes', address, '2', str(i), str(folder), devices=2)
          for i in (1, 0)]
  loop.train(processes.make_run(), folder / 'whole')
  errors = [finish(process) for process in both]
  loop.train(processes.make_run(), folder / 'resumed')
  return folder, errors


def lines(workdir: Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.slow  # three runs, two of them in processes of their own
@pytest.mark.parametrize('name', ['stopped', 'resumed'])
def test_two_processes_agree_with_one_device(runs, name):
  """In every step's losses, hence in the order of the data, in scores and in the last state."""
  folder, _ = runs
  ours, whole = lines(folder / name), lines(folder / 'whole')
  assert [m['step'] for m in ours] == [1, 2, 3, 3, 4, 5, 5]
  for mine, of_whole in zip(ours, whole, strict=True):
    assert mine == pytest.approx(of_whole, rel=1e-3, abs=1e-5)
  results = [json.loads((folder / n / 'results.json').read_text()) for n in (name, 'whole')]
  assert results[0]['seconds_from_step'] == (
    processes.STEPS if name == 'stopped' else processes.STOP)  # where it began the last time
  states = [read_state(folder / n) for n in (name, 'whole')]
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_allclose(a, b, **TOLERANCE)


def read_state(workdir: Path):
  with loop.Checkpoints(workdir / 'checkpoints') as checkpoints:
    assert checkpoints.last_step == processes.STEPS
    state = checkpoints.restore(checkpoints.last_step, processes.make_run().abstract_state())
  return state.replace(key=jax.random.key_data(state.key))


@pytest.mark.slow
def test_files_and_progress_come_from_one_process(runs):
  folder, (errors_of_second, errors_of_first) = runs
  workdir = folder / 'stopped'
  for name in ('config.json', 'dataset.json', 'results.json', 'picture.png'):
    assert (workdir / name).stat().st_size > 0
  assert len(list(workdir.glob('events.out.tfevents*'))) == 3  # of each of three starts
  assert 'step 5: mIoU' in errors_of_first and 'mIoU' not in errors_of_second


@pytest.mark.parametrize('deterministic', [True, False])
def test_deterministic_kernels_are_asked_for_step_by_step(monkeypatch, deterministic):
  mesh, asked, jit = sharding.make_mesh(jax.devices()[:1]), [], jax.jit
  monkeypatch.setattr(sharding.jax, 'jit', lambda step, **options: (
    asked.append(options['compiler_options']), jit(step, **options))[1])
  step = sharding.compile_step(
    lambda state, batches: (state + 1, {}), mesh, deterministic=deterministic)
  assert step(jax.numpy.float32(1), {})[0] == 2
  assert asked == [{'xla_gpu_deterministic_ops': True} if deterministic else None]


def test_each_result_takes_the_place_of_its_own_input():
  """Also where an input is not read: without a copy of those that follow."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  state = dict.fromkeys('abc', np.zeros(4, np.float32))
  step = sharding.compile_step(
    lambda state, batch: ({'a': state['b'] + 1, 'b': state['b'] + 2, 'c': state['c'] + batch}, {}),
    mesh)
  hlo = step.lower(state, np.ones(4, np.float32)).compile().as_text()
  aliases = re.search(r'input_output_alias=\{(.*?)\}, entry', hlo)[1]
  assert re.findall(r'\{(\d)\}: \((\d)', aliases) == [('0', '0'), ('1', '1'), ('2', '2')]


def test_a_batch_of_one_device_is_sent_once():
  assert isinstance(sharding.place_locally({'image': np.zeros(3)})['image'], jax.Array)


def test_a_batch_that_does_not_split_is_refused(monkeypatch):
  monkeypatch.setattr(sharding.jax, 'device_count', lambda: 3)
  sharding.check_batch('train.labelled_batch', 6)
  with pytest.raises(ValueError, match='train.labelled_batch=4 does not split over'):
    sharding.check_batch('train.labelled_batch', 4)
  with pytest.raises(ValueError, match='train.labelled_batch=0 does not split over'):
    sharding.check_batch('train.labelled_batch', 0)
