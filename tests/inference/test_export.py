import re

import jax
import numpy as np
import pytest
from jax import export as jax_export

from gta_jax.inference import export as exporting
from gta_jax.inference.export import export, make_function
from gta_jax.inference.model import Model
from gta_jax.models.pretrained import convert, load_state_dict, to_state_dict
from gta_jax.models.segmenter import make_segmenter
from tests.inference import in_memory

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


@pytest.mark.slow
def test_image_scale_is_inside(model, tmp_path):
  half = Model(model.network, model.variables, classes=model.classes, palette=model.palette,
               crop=17, multiple=16, image_scale=0.5)
  image = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
  found = make_function(half, 'teacher', SIZE)(image[None])[0]
  expected = half.probabilities(image)
  np.testing.assert_allclose(found, expected, atol=1e-2)  # OpenCV rounds.
  said = export(half, tmp_path / 'm.stablehlo', layout='stablehlo', size=SIZE)
  assert float(said.split('predict within ')[1].split(',')[0]) > 1e-5


def test_averages_are_inside():
  tenth = in_memory.model(image_scale=0.1)
  with pytest.raises(ValueError, match='size=20x27 is averaged in blocks of 2 x 2 .* multiples of'):
    make_function(tenth, 'one', SIZE)
  image = np.random.default_rng(2).integers(0, 256, (80, 108, 3), dtype=np.uint8)
  found = make_function(tenth, 'one', (80, 108))(image[None])[0]
  np.testing.assert_allclose(found, tenth.probabilities(image), atol=1e-2)


@pytest.mark.parametrize('size, scaled', [((37, 51), (18, 26)), ((75, 101), (52, 71)),
                                          ((9, 7), (18, 14)), ((5, 1), (1, 1))])
def test_images_are_resized_in_numbers_that_every_program_rounds_alike(size, scaled):
  image = np.random.default_rng(0).integers(0, 256, (1, *size, 3))
  expected = image * 2**5
  for axis, length, side in zip((2, 1), size[::-1], scaled[::-1], strict=True):
    places = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
    weights = np.zeros((side, length), int)
    shares = np.round(places % 1 * 2**11).astype(int)
    for row, place, share in zip(weights, places.astype(int), shares, strict=True):
      row[place] += 2**11 - share
      row[min(place + 1, length - 1)] += share
    expected = np.moveaxis(np.tensordot(weights, expected, (1, axis)), 0, axis)
    expected = np.round(expected / 2**11 / (1 if axis == 2 else 2**5)).astype(int)
  found = jax.jit(exporting._resize_image, static_argnums=1)(image.astype(np.float32), scaled)
  np.testing.assert_array_equal(found, expected)
  smooth = np.round(exporting._resize_centred(image.astype(np.float32), scaled))
  assert np.abs(found - smooth).max() <= 1 and (found != smooth).mean() < 0.03


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


@pytest.mark.slow
def test_onnx_resizes_to_the_same_numbers():
  jax2onnx = pytest.importorskip('jax2onnx')
  onnxruntime = pytest.importorskip('onnxruntime')
  image = np.random.default_rng(0).integers(0, 256, (1, 200, 301, 3)).astype(np.float32)
  shape = jax.ShapeDtypeStruct(image.shape, np.float32)
  proto = jax2onnx.to_onnx(lambda x: exporting._resize_image(x, (100, 150)), [shape])
  session = onnxruntime.InferenceSession(proto.SerializeToString())
  found, = session.run(None, {session.get_inputs()[0].name: image})
  np.testing.assert_array_equal(found, exporting._resize_image(image, (100, 150)))


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


@pytest.mark.parametrize(('name', 'layout', 'message'), [
  ('m.onnx', 'onnx', r'ONNX needs jax2onnx, onnx, .*; install with "pip install onnx '),
  ('m.pth', 'torch', r'\.pth needs torch: install it, or write \.safetensors')])
def test_a_missing_package_is_told_before_work(
  model, tmp_path, monkeypatch, name, layout, message
):
  monkeypatch.setattr(exporting.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=message):
    export(model, tmp_path / 'new' / name, layout=layout)
  assert not (tmp_path / 'new').exists()
