"""The PyTorch twin against the published networks' numbers and against the NumPy oracle."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.oracles import gta as oracle

torch = pytest.importorskip('torch')
parts = pytest.importorskip('torch_method')
networks = pytest.importorskip('torch_networks')
twin = pytest.importorskip('torch_steps')
ROOT = Path(__file__).parents[2]
REFERENCE = ROOT.parent / 'shared' / 'reference'

WEIGHT_DECAY, EMA_DECAY, EPOCH, TOTAL = 0.01, 0.8, 2, 7
OPTIONS = parts.Options(
  total_steps=TOTAL, rate=0.05, weight_decay=WEIGHT_DECAY, warmup_steps=EPOCH, epoch_steps=EPOCH,
  ema_decay=EMA_DECAY, mean=(0.0,) * 3, std=(1.0,) * 3)
HYPER = {'decoder_multiplier': 10.0, 'momentum': 0.9, 'weight_decay': WEIGHT_DECAY}


def relative_error(value, reference):
  value = value.detach().double().numpy()
  value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
  return np.linalg.norm(value - reference) / np.linalg.norm(reference)


@pytest.fixture(scope='module')
def published():
  """(network with seeded weights, input, reference numbers) of the ResNet-50 case."""
  if not REFERENCE.is_dir():
    pytest.skip('the reference numbers are not here')
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(REFERENCE)
    seeded_array = importlib.import_module('seeded_weights').seeded_array
  case = 'r50_os16_city_aux'
  shapes = json.loads((REFERENCE / 'reference_state_dict_shapes.json').read_text())[case]
  network = networks.DeepLab(num_classes=19, depth=50, output_stride=16, aspp_rates=(6, 12, 18),
                             dropout=0.0, auxiliary=True, representation=True)
  assert {name: list(v.shape) for name, v in network.state_dict().items()} == shapes
  network.load_state_dict({
    name: torch.as_tensor(seeded_array(name, tuple(shape)) if shape else 0)
    for name, shape in shapes.items()})
  with np.load(REFERENCE / 'reference_networks.npz') as arrays:
    numbers = {k.removeprefix(f'{case}/'): v for k, v in arrays.items() if k.startswith(case)}
  return network, torch.tensor(numbers['input_nhwc']).permute(0, 3, 1, 2), numbers


@torch.no_grad()
def test_network_agrees_in_eval_mode(published):
  network, x, numbers = published
  network.float().eval()
  logits, auxiliary = network(x)
  assert relative_error(logits, numbers['eval_logits_nhwc']) < 1e-5
  assert relative_error(auxiliary, numbers['eval_aux_logits_nhwc']) < 1e-5
  full = networks.resize(logits, x.shape[-2:]).argmax(1).numpy()
  assert np.array_equal(full, numbers['eval_logits_fullres_argmax'])
  for i, stage in enumerate(network.encoder(x)):
    mean = numbers[f'eval_stage{i + 1}_mean_per_channel']
    assert relative_error(stage.mean((0, 2, 3)), mean) < 1e-5


@torch.no_grad()
def test_network_agrees_in_train_mode(published):
  network, x, numbers = published
  # In float64: with the statistics of two small images a relative error of the input grows
  # 800-fold (float32 ends at 3e-4), most of it in the pooled branch's two numbers a channel.
  logits, _ = network.double().train()(x.double())
  assert relative_error(logits, numbers['train_logits_nhwc']) < 1e-4
  state = network.state_dict()
  for name in (k for k in numbers if k.startswith('after_train/')):
    assert relative_error(state[name.removeprefix('after_train/')], numbers[name]) < 1e-5


class Linear(torch.nn.Module):
  """The oracle's model under the twin's names."""

  def __init__(self, params):
    super().__init__()
    self.encoder, projection, classifier = (self.layer(params[key]) for key in oracle.KEYS)
    self.decoder = torch.nn.ModuleDict({'projection': projection, 'classifier': classifier})

  @staticmethod
  def layer(values):
    kernel = torch.tensor(values['kernel'].T)
    conv = torch.nn.Conv2d(*kernel.shape[::-1], 1, dtype=torch.float64)
    conv.load_state_dict({'weight': kernel[..., None, None], 'bias': torch.tensor(values['bias'])})
    return conv

  def forward(self, x):
    return self.decoder['classifier'](self.decoder['projection'](self.encoder(x))), None


def check(network, params):
  layers = [network.encoder, *network.decoder.values()]
  for key, layer in zip(oracle.KEYS, layers, strict=True):
    kernel = layer.weight[..., 0, 0].detach().numpy().T
    np.testing.assert_allclose(kernel, params[key]['kernel'], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
      layer.bias.detach().numpy(), params[key]['bias'], rtol=1e-9, atol=1e-12)


def tensors(batch):
  return {name: torch.tensor(value) for name, value in batch.items()}


def boxes_of(step):
  """Mixes every other step."""
  return np.array([[0, 1, 3, 4], [2, 0, 5, 7]]) if step % 2 else np.zeros((2, 4), int)


def test_paper_step_is_algorithm_1():
  params, labelled, unlabelled = oracle.make_problem(0, steps=TOTAL)
  expected = oracle.run(
    params, labelled, unlabelled, lr_schedule=lambda t: 0.05 * (1 - t / TOTAL) ** 0.9,
    weight_decay=WEIGHT_DECAY, ema_decay=EMA_DECAY, warmup_steps=EPOCH, mixing=boxes_of)
  state = parts.make_state(lambda: Linear(params), OPTIONS, dtype=torch.float64)
  for step, after in enumerate(expected):
    if step < EPOCH:
      losses = twin.paper_warmup_step(state, tensors(labelled[step]), OPTIONS)
    else:
      losses = twin.paper_step(state, tensors(labelled[step]), tensors(unlabelled[step]), OPTIONS,
                               boxes=torch.tensor(boxes_of(step)))
    for name, loss in losses.items():
      assert loss.item() == pytest.approx(after['losses'][name], rel=1e-9), (step, name)
    for name in ('teacher', 'student', 'assistant'):
      check(getattr(state, name), after[name])


def released_gradient(teacher, assistant, batch, boxes):
  """Gradient of the release's unlabelled loss; without BatchNorm the joint batch plays no part."""
  image, shape = oracle.mix(batch['image'], boxes), batch['valid'].shape
  label, _, _ = oracle.pseudo_labels(teacher, batch['image'], batch['valid'], 0)
  label = np.where(batch['valid'], label.reshape(shape), oracle.IGNORE)
  label = oracle.mix(label, boxes).reshape(-1)
  confidence = oracle.forward(teacher, image)[1].max(1)
  usable = label != oracle.IGNORE
  kept = usable & (confidence > np.percentile(confidence[usable], 20))
  smoothed = np.where(kept, confidence, 0) + 1
  weight = np.where(kept, smoothed / smoothed.sum() * kept.sum(), 0)
  return oracle.loss_and_gradient(assistant, image, label, weight, kept.sum())[1]


def test_released_step_shares_the_classifier():
  params, labelled, unlabelled = oracle.make_problem(1, steps=TOTAL)
  state = parts.make_state(lambda: Linear(params), OPTIONS, dtype=torch.float64)
  student = teacher = assistant = params
  zeros = {k: {n: 0 * v for n, v in layer.items()} for k, layer in params.items()}
  buffer_s, buffer_a = zeros, zeros
  features = ('backbone', 'decoder')
  for step in range(TOTAL):
    batch, rate = unlabelled[step], 0.05 * (1 - step / TOTAL) ** 0.9
    if step < EPOCH:
      twin.released_warmup_step(state, tensors(labelled[step]), OPTIONS)
    else:
      twin.released_step(state, tensors(labelled[step]), tensors(batch), OPTIONS,
                         boxes=torch.tensor(boxes_of(step)))
      decay = min(1 - 1 / (step - EPOCH + 1), 0.999)
      if step < 2 * EPOCH:
        teacher = assistant = student
      gradient = released_gradient(teacher, assistant, batch, boxes_of(step))
      assistant, buffer_a = oracle.descend(assistant, buffer_a, gradient, 0.05, HYPER)
      if step < 2 * EPOCH:  # One memory: the assistant's step has moved all three.
        teacher = student = assistant
      student = oracle.average(student, assistant, decay, features)
      student = {**student, 'classifier': assistant['classifier']}
    gradient = oracle.supervised(student, labelled[step])[1]
    student, buffer_s = oracle.descend(student, buffer_s, gradient, rate, HYPER)
    if step >= EPOCH:
      assistant = {**assistant, 'classifier': student['classifier']}
      if step < 2 * EPOCH:
        teacher = {**teacher, 'classifier': student['classifier']}
      teacher = oracle.average(teacher, student, decay, oracle.KEYS)
    check(state.student, student)
    check(state.assistant, assistant)
    check(state.teacher, teacher)
  memory = [n.decoder['classifier'].weight.data_ptr()
            for n in (state.student, state.assistant, state.teacher)]
  assert memory[0] == memory[1] != memory[2]
