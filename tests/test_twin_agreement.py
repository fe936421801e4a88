"""Whole runs of both recipes on a small DeepLabV3+ against the PyTorch twin in float64.

Both sides start from the twin's weights and see the same batches and CutMix boxes, for two steps
of warm-up and three of the semi-supervised phase. The JAX side computes in float32.
"""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gta_jax.methods import make_method
from gta_jax.models.deeplab import make_deeplab
from gta_jax.models.pretrained import convert
from gta_jax.state import init_state, make_optimizers
from gta_jax.step import make_train_step, make_warmup_step
from tests.test_oracle_agreement import boxes_of_step

torch = pytest.importorskip('torch')
# The twin's modules are scripts that import one another by their bare names.
sys.path.append(str(Path(__file__).parents[1] / 'benchmarks'))
networks = importlib.import_module('torch_networks')
twin = importlib.import_module('torch_twin')

STEPS, WARMUP, HANDOVER = 5, 2, 2
# 3 x 35 x 35 is a multiple of five: there the release's interpolated 20th percentile drops as
# many pixels as our exact rank does. Elsewhere it may drop one more.
BATCH, SIZE, CLASSES = 3, (35, 35), 4
RATE, DECAY = 0.01, 1e-3
# Multiples of 1/255: a padded pixel of this colour is exactly the zero that our step puts there.
MEAN, STD = (0.2, 0.4, 0.6), (0.2, 0.25, 0.3)
SHAPE = {'num_classes': CLASSES, 'depth': 10, 'width': 0.125, 'output_stride': 16,
         'multi_grid': None, 'aspp_rates': (2, 4, 6), 'dropout': 0.0}


def make_batches(seed, *, padding):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (2, BATCH, *SIZE, 3), dtype=np.uint8)
  label = rng.integers(0, CLASSES, (BATCH, *SIZE), dtype=np.uint8)
  label[:, :3] = 255
  valid = np.ones((BATCH, *SIZE), bool)
  if padding:
    valid[0, :, -5:] = valid[1, -10:] = False
    images[1][~valid] = np.round(255 * np.array(MEAN))
  return {'image': images[0], 'label': label}, {'image': images[1], 'valid': valid}


def run_ours(recipe, initial, key, batches):
  """The networks' variables before the run and after each step, and the losses of each step."""
  method = make_method(recipe=recipe, mixing_probability=1.0)
  optimizers = make_optimizers(method, rate=RATE, total_steps=STEPS, weight_decay=DECAY)
  network = make_deeplab(**SHAPE, mean=MEAN, std=STD)
  state = init_state(key, initial, method, optimizers)
  warmup = jax.jit(make_warmup_step(network, method, optimizers))
  semi = jax.jit(make_train_step(
    network, method, optimizers, warmup_steps=WARMUP,
    handover_steps=HANDOVER if method.handover_epochs else 0))
  history, losses = [state.networks], []
  for step, batch in enumerate(batches):
    state, metrics = (warmup if step < WARMUP else semi)(state, *batch)
    history.append(state.networks)
    losses.append({name: float(metrics[ours]) for name, ours in (
      ('labelled', 'student_labelled_loss'), ('unlabelled', 'assistant_pseudo_loss'))
      if ours in metrics})
  return history, losses


def run_twin(recipe, make_network, template, key, batches):
  """The same of the twin, its state dicts converted to our variables."""
  options = twin.Options(
    total_steps=STEPS, rate=RATE, weight_decay=DECAY, warmup_steps=WARMUP, epoch_steps=HANDOVER,
    mean=MEAN, std=STD)
  state = twin.make_state(make_network, options, dtype=torch.float64)
  warmup, semi = {'paper': (twin.paper_warmup_step, twin.paper_step),
                  'released': (twin.released_warmup_step, twin.released_step)}[recipe]

  def variables():
    return {name: converted(getattr(state, name), template)
            for name in ('teacher', 'student', 'assistant')}

  history, losses = [variables()], []
  for step, batch in enumerate(batches):
    labelled, unlabelled = ({k: torch.tensor(v) for k, v in part.items()} for part in batch)
    if step < WARMUP:
      loss = warmup(state, labelled, options)
    else:
      boxes = torch.tensor(np.array(boxes_of_step(key, step, BATCH, SIZE)))
      loss = semi(state, labelled, unlabelled, options, boxes=boxes)
    history.append(variables())
    losses.append({name: value.item() for name, value in loss.items()})
  return history, losses


def converted(network, template):
  state = {name: value.numpy().copy() for name, value in network.state_dict().items()}
  return convert(state, template)[0]


def vectors(variables):
  """(collection, top-level key) -> all its numbers."""
  return {(kind, key): np.concatenate([np.ravel(x) for x in jax.tree.leaves(part)]).astype(float)
          for kind, parts in variables.items() for key, part in parts.items()}


def relative_error(ours, theirs):
  return np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30)


@pytest.fixture(scope='module', params=['paper', 'released'])
def runs(request):
  torch.manual_seed(0)
  start = networks.DeepLab(**SHAPE)
  template = jax.eval_shape(
    lambda key: make_deeplab(**SHAPE).init(key, SIZE), jax.random.key(0))
  key = jax.random.key(5)
  batches = [make_batches(step, padding=request.param == 'paper') for step in range(STEPS)]
  jax.config.update('jax_disable_most_optimizations', True)
  ours = run_ours(request.param, converted(start, template), key, batches)
  jax.config.update('jax_disable_most_optimizations', False)
  return ours, run_twin(request.param, lambda: start, template, key, batches)


def test_report(runs):
  (ours, l1), (theirs, l2) = runs
  for a, b in zip(l1, l2): print(a, b)
  for i in range(STEPS + 1):
    for name in theirs[i]:
      o, t = vectors(ours[i]['%s' % name]), vectors(theirs[i][name])
      print(i, name)
      for k in t:
        line = f'   {k} {relative_error(o[k], t[k]):.1e}'
        for ref in ([0, WARMUP, i - 1] if i else []):
          if ref < i:
            o0, t0 = vectors(ours[ref][name]), vectors(theirs[ref][name])
            line += f' | since {ref}: {np.linalg.norm(t[k]-t0[k])/np.linalg.norm(t0[k]):.1e} err {relative_error(o[k]-o0[k], t[k]-t0[k]):.1e}'
        print(line)
