import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import gta_jax
from gta_jax.inference import model as inference_model
from gta_jax.inference.model import Model
from gta_jax.inference.tiles import tiles_of
from tests import tiny
from tests.test_launch import ROOT

NETWORK = tiny.linear_network()


def make(**options):
  return Model(
    NETWORK, {name: NETWORK.init(jax.random.key(i), (8, 8)) for i, name in enumerate('ab')},
    classes=('x', 'y', 'z'), palette=np.eye(3, dtype=np.uint8), batch_size=2, multiple=8, crop=8,
    **options)


MODEL = make()


def image(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_one_image_and_a_list_of_any_sizes():
  images = [image(9, 14, 3), image(5, 5, seed=1), image(17, 8, 4, seed=2), image(9, 14, 1, seed=3)]
  masks = MODEL.predict(images)
  assert [mask.shape for mask in masks] == [one.shape[:2] for one in images]
  for one, mask in zip(images, masks, strict=True):
    np.testing.assert_array_equal(MODEL.predict(one), mask)
    found = MODEL.probabilities(one)
    assert found.dtype == np.float32 and mask.dtype == np.uint8
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(-1), mask)
  grey = np.repeat(images[1][..., None], 3, -1)
  np.testing.assert_array_equal(MODEL.predict(grey), masks[1])
  assert MODEL.predict([]) == []


def test_networks_by_name():
  one = image(6, 6, 3)
  assert MODEL.names == ('a', 'b')
  np.testing.assert_array_equal(
    MODEL.probabilities(one), MODEL.probabilities(one, network='a'))
  assert (MODEL.probabilities(one) != MODEL.probabilities(one, network='b')).any()
  with pytest.raises(ValueError, match="network='c' is unknown; this run has a, b"):
    MODEL.predict(one, network='c')


def test_a_long_image_is_cut_as_a_large_one_is():
  assert not MODEL.is_tiled((2048, 2048)) and MODEL.is_tiled((2048, 2049))
  assert not MODEL.is_tiled((8, 4096)) and MODEL.is_tiled((8, 4097))
  assert MODEL.is_tiled((66_000, 8))


@pytest.mark.parametrize(('array', 'message'), [
  (np.zeros((4, 5), np.uint16), '16 bits'),
  (np.zeros((4, 5, 3)), 'float64'),
  (np.zeros((2, 4, 5, 3), np.uint8), 'as a list'),
  (np.zeros((4, 5, 2), np.uint8), r'\[4, 5, 2\]'),
  (np.zeros((0, 5, 3), np.uint8), r'\[0, 5, 3\]'),
  (None, 'object'),
  ('a.png', "the path 'a.png'; give its pixels"),
  (np.zeros((3, 4, 5), np.uint16), r'16 bits'),
])
def test_refuses_what_is_no_image(array, message):
  with pytest.raises(ValueError, match=message):
    MODEL.predict(array)


@pytest.mark.parametrize('mode', ['1', 'P', 'LA', 'CMYK', 'YCbCr', 'HSV', 'L', 'RGBA'])
def test_images_of_pillow_are_seen_in_their_colours_whatever_their_mode(mode):
  colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
  if mode in ('1', 'L', 'LA'):
    colours = np.where(colours.mean(1, keepdims=True) > 100, 255, 0).repeat(3, 1).astype(np.uint8)
  rgb = colours[np.random.default_rng(0).integers(0, 4, (9, 12))]
  of_pillow = Image.fromarray(rgb).convert(mode)
  seen = inference_model._as_rgb(of_pillow, 0, ())
  np.testing.assert_allclose(seen.astype(int), rgb, atol=1)  # YCbCr rounds


def test_16_bits_are_scaled_as_those_of_training_were():
  scaled = Model(MODEL.network, MODEL.variables, classes=MODEL.classes, palette=MODEL.palette,
                 crop=MODEL.crop, pixel_range=(1000, 1510))
  eight = image(6, 7, 3)
  sixteen = 1000 + 2 * eight.astype(np.uint16)
  np.testing.assert_array_equal(scaled.probabilities(sixteen), scaled.probabilities(eight))
  other = sixteen.astype('>u2'), sixteen.astype('<u2')
  assert all((scaled.predict(one) == scaled.predict(eight)).all() for one in other)


@pytest.mark.parametrize('size', [(10, 10), (11, 37), (25, 9), (40, 41)])
def test_tiles_cover_an_image_once_and_lie_far_from_their_borders(size):
  count = np.zeros(size, int)
  for tile in tiles_of(size, 10, 4):
    count[tile.kept] += 1
    for axis in (0, 1):
      seen, kept, inner = tile.seen[axis], tile.kept[axis], tile.inner[axis]
      assert (inner.start + seen.start, inner.stop + seen.start) == (kept.start, kept.stop)
      assert kept.start == 0 or inner.start >= 2
      assert kept.stop == size[axis] or seen.stop - kept.stop >= 2
      assert seen.stop <= size[axis]
  assert (count == 1).all()


def test_a_large_image_in_tiles_is_the_whole_image(monkeypatch):
  one = image(37, 61, 3)
  whole = MODEL.probabilities(one)
  monkeypatch.setattr(inference_model, '_WHOLE_PIXELS', 500)
  monkeypatch.setattr(inference_model, 'TILE', 16)
  monkeypatch.setattr(inference_model, 'OVERLAP', 4)
  small = image(8, 8, 3)
  # Of single pixels, this network sees no borders.
  tiled, other = MODEL.probabilities([one, small])
  np.testing.assert_allclose(tiled, whole, atol=1e-6)
  np.testing.assert_allclose(other, MODEL.probabilities(small), atol=1e-6)


@pytest.mark.parametrize('scale, tile, whole', [
  (2.0, 1024, 2048), (0.5, 2048, 2048), (0.3, 3413, 3413), (1 / 16, 4096, 4096)])
def test_a_tile_is_measured_in_pixels_that_the_network_sees(scale, tile, whole):
  """A photograph of 12 megapixels at a sixteenth is scored whole, and so it is predicted."""
  scaled = make(image_scale=scale)
  assert scaled.tile == tile
  assert not scaled.is_tiled((whole, whole)) and scaled.is_tiled((whole + 1, whole))


def test_an_image_that_fits_into_a_tile_is_predicted_as_it_is_scored(monkeypatch):
  scaled, one = make(image_scale=1 / 4), image(37, 61, 3)
  whole = scaled.probabilities(one)
  for name, value in (('_WHOLE_PIXELS', 500), ('TILE', 16), ('OVERLAP', 4)):
    monkeypatch.setattr(inference_model, name, value)
  np.testing.assert_array_equal(scaled.probabilities(one), whole)


def test_the_package_imports_nothing_heavy():
  code = "import gta_jax, sys; print({'jax', 'numpy', 'cv2'} & {*sys.modules}, gta_jax.__all__)"
  found = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert found.stdout.strip() == "set() ['__version__', 'load', 'load_config']"


def test_load_refuses_what_is_no_run(tmp_path):
  with pytest.raises(ValueError, match='nowhere does not exist'):
    gta_jax.load(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='holds no run'):
    gta_jax.load(str(tmp_path))
  with pytest.raises(ValueError, match="use 'last' or 'best'"):
    gta_jax.load(tmp_path, checkpoint='first')
