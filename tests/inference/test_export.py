import re

import jax
import numpy as np
import pytest
from jax import export as jax_export

from gta_jax.inference.export import export, make_function
from gta_jax.inference.model import Model
from gta_jax.models.pretrained import convert, load_state_dict, to_state_dict
from gta_jax.models.segmenter import make_segmenter

SIZE = (20, 27)


@pytest.fixture(scope='module')
def model():
  network = make_segmenter(num_classes=3, depth=10, width=0.0625, aspp_rates=(1, 2, 3))
  return Model(network, {'teacher': network.init(jax.random.key(0), (17, 17))},
               classes=('a', 'b', 'c'), palette=np.eye(3, dtype=np.uint8), crop=17, multiple=16)


def test_stablehlo_gives_the_models_probabilities_without_the_model(model, tmp_path):
  path = tmp_path / 'deep' / 'm.stablehlo'
  said = export(model, path, layout='stablehlo', size=SIZE)
  assert re.search(r'same as JAX within .*, and as predict within (0.0e\+00|.*e-0[678]),', said)
  image = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
  found = jax_export.deserialize(bytearray(path.read_bytes())).call(image[None])
  np.testing.assert_allclose(found[0], model.probabilities(image), atol=1e-4)
  assert [one.name for one in path.parent.iterdir()] == ['m.stablehlo']


def test_image_scale_is_inside(model, tmp_path):
  half = Model(model.network, model.variables, classes=model.classes, palette=model.palette,
               crop=17, multiple=16, image_scale=0.5)
  image = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
  found = make_function(half, 'teacher', SIZE)(image[None])[0]
  expected = half.probabilities(image)
  np.testing.assert_allclose(found, expected, atol=1e-2)  # OpenCV rounds.
  said = export(half, tmp_path / 'm.stablehlo', layout='stablehlo', size=SIZE)
  assert float(said.split('predict within ')[1].split(',')[0]) > 1e-5


@pytest.mark.parametrize('name', ['m.safetensors', 'm.pth'])
def test_torch_state_dict_is_the_converters_inverse(model, tmp_path, name):
  assert 'every number is the same' in export(model, tmp_path / name, layout='torch')
  state = load_state_dict(tmp_path / name)
  assert state['encoder.conv1.0.weight'].shape[1:] == (3, 3, 3)
  other = model.network.init(jax.random.key(1), (17, 17))
  back, report = convert(state, other)
  jax.tree.map(np.testing.assert_array_equal, back, model.variables['teacher'])
  assert len(report.loaded) == len(state) == len(to_state_dict(other)[0])


def test_torch_reads_the_pth(model, tmp_path):
  torch = pytest.importorskip('torch')
  export(model, tmp_path / 'm.pth', layout='torch')
  state = torch.load(tmp_path / 'm.pth', weights_only=True)
  assert state['decoder.classifier.8.bias'].shape == (3,)


@pytest.mark.slow
def test_onnx_gives_the_models_probabilities(model, tmp_path):
  pytest.importorskip('jax2onnx')
  onnxruntime = pytest.importorskip('onnxruntime')
  export(model, tmp_path / 'm.onnx', layout='onnx', size=SIZE)
  session = onnxruntime.InferenceSession(tmp_path / 'm.onnx')
  image = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
  found, = session.run(None, {session.get_inputs()[0].name: image[None]})
  np.testing.assert_allclose(found[0], model.probabilities(image), atol=1e-4)


def test_refuses_before_any_work(model, tmp_path):
  with pytest.raises(ValueError, match=r'should end in \.onnx'):
    export(model, tmp_path / 'm.pth', layout='onnx')
  with pytest.raises(ValueError, match='is unknown'):
    export(model, tmp_path / 'm.pth', layout='keras')
  with pytest.raises(ValueError, match=r'size=20x27 has no effect with format=torch.*leave it out'):
    export(model, tmp_path / 'm.pth', layout='torch', size=SIZE)
  (tmp_path / 'm.pth').touch()
  with pytest.raises(ValueError, match='there already'):
    export(model, tmp_path / 'm.pth', layout='torch')
  export(model, tmp_path / 'm.pth', layout='torch', overwrite=True)
