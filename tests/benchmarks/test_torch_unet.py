"""The PyTorch twin of `model=small` is that network, and has its frozen stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gta_jax.models.pretrained import convert
from gta_jax.models.segmenter import make_segmenter

torch = pytest.importorskip('torch')
twin = pytest.importorskip('torch_twin')
cases = pytest.importorskip('cases')

SIZE = (45, 64)
IMAGES = np.random.default_rng(0).normal(size=(3, *SIZE, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def networks():
  """The twin with running statistics that fit its weights, and ours with all of its weights."""
  config = cases.read_config('configs/folder.py', 'supervised', [
    'model.decoder="unet"', 'model.output_stride=16', 'model.dropout=0.0', 'optim.name="sgd"'])
  torch.manual_seed(0)
  theirs = twin.make_torch_network(config)()
  with torch.no_grad():
    theirs.encoder.frozen.clear()  # so that these statistics fit as well
    for _ in range(40):
      theirs.train()(torch.as_tensor(IMAGES).permute(0, 3, 1, 2))
  torch.manual_seed(0)
  frozen = twin.make_torch_network(config)()
  frozen.load_state_dict(theirs.state_dict())
  ours = make_segmenter(
    num_classes=7, backbone='efficientnet_lite0', decoder='unet', output_stride=16, dropout=0.0,
    frozen_stages=1)
  template = jax.eval_shape(lambda: ours.init(jax.random.key(0), SIZE))
  state = {name: value.numpy() for name, value in frozen.state_dict().items()}
  return frozen, ours, convert(state, template)[0]


def run(networks, *, train):
  theirs, ours, variables = networks
  logits, statistics = jax.jit(ours.apply, static_argnames='train')(
    variables, jnp.asarray(IMAGES), train=train)
  of_torch, auxiliary = theirs.train(train)(torch.as_tensor(IMAGES).permute(0, 3, 1, 2))
  assert auxiliary is None
  of_torch = of_torch.permute(0, 2, 3, 1).detach().numpy()
  assert np.linalg.norm(logits.main - of_torch) < 1e-4 * np.linalg.norm(of_torch)
  return statistics


@pytest.mark.slow
def test_logits_are_ours(networks):
  run(networks, train=False)


@pytest.mark.slow
def test_a_training_pass_is_ours_and_leaves_frozen_statistics(networks):
  theirs, _, _ = networks
  before = {name: value.clone() for name, value in theirs.named_buffers()}
  run(networks, train=True)
  after = dict(theirs.named_buffers())
  moved = {name for name in before if not torch.equal(before[name], after[name])}
  frozen = {name for name in before if name.startswith((
    'encoder._bn0.', 'encoder._blocks.0.', 'encoder._blocks.1.', 'encoder._blocks.2.'))}
  assert moved == set(before) - frozen


@pytest.mark.slow
def test_frozen_parameters_have_no_gradient(networks):
  theirs, ours, variables = networks
  frozen = {name.split('.')[1] if 'blocks' not in name else '_'.join(name.split('.')[1:3])
            for name, value in theirs.named_parameters() if not value.requires_grad}
  assert frozen == set(ours.frozen) & set(variables['params']['backbone'])


def test_a_network_without_a_twin_is_named():
  with pytest.raises(ValueError, match='dinov2_b with dpt has no twin'):
    twin.make_torch_network(cases.read_config('configs/folder.py:,model=large', 'supervised', [
      'model.decoder="dpt"']))


def test_an_optimiser_without_a_twin_is_named():
  with pytest.raises(ValueError, match='optim.name=adamw has no twin'):
    twin.make_torch_network(cases.read_config('configs/folder.py', 'supervised', [
      'model.decoder="unet"']))
