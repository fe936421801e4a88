import jax
import numpy as np
import pytest
from PIL import Image

from gta_jax.data.files import decode_mask
from gta_jax.data.masks import write_mask
from gta_jax.evaluation import pictures
from gta_jax.evaluation.windows import Prediction
from tests import tiny
from tests.arrays import random_dataset

PALETTE = np.array([[10, 20, 30], [200, 100, 0]], np.uint8)


def test_palette_png_gives_the_ids_back(tmp_path):
  labels = np.array([[0, 1, 255], [7, 1, 0]], np.uint8)
  write_mask(tmp_path / 'a.png', labels, PALETTE)
  with Image.open(tmp_path / 'a.png') as picture:
    assert picture.mode == 'P'
    np.testing.assert_array_equal(np.asarray(picture), labels)
    np.testing.assert_array_equal(np.asarray(picture.convert('RGB'))[0, :2], PALETTE)
  np.testing.assert_array_equal(decode_mask((tmp_path / 'a.png').read_bytes(), 'a.png'), labels)


def test_colours_and_overlay():
  labels = np.array([[0, 1, 255, 9]], np.uint8)
  colours = pictures.colourise(labels, PALETTE)[0]
  np.testing.assert_array_equal(colours[:2], PALETTE)
  assert colours[2].tolist() == [224, 224, 192]
  assert colours[3].tolist() == [0, 0, 0]
  image = np.full((1, 4, 3), 100, np.uint8)
  mixed = pictures.overlay(image, labels, PALETTE, opacity=0.25)
  assert mixed[0, 1].tolist() == [125, 100, 75]
  assert (image == 100).all()


def test_only_confidence_below_the_threshold_is_marked():
  colours = pictures.colour_confidence(np.array([[0.2, 0.5, 0.9]]), threshold=0.5)[0]
  free = pictures.colour_confidence(np.array([[0.2, 0.5, 0.9]]))[0]
  assert (colours == free).all(-1).tolist() == [False, True, True]
  assert free.sum(-1).tolist() == sorted(free.sum(-1).tolist())  # Brighter where more certain.


@pytest.mark.parametrize('width', [60, 480])
def test_legend_shows_every_colour(width):
  palette = np.array([[i, 0, 255 - i] for i in range(20)], np.uint8)
  pixels = pictures.legend([f'class {i}' for i in range(20)], palette, width=width)
  assert pixels.shape[1] == width
  seen = {tuple(p) for p in pixels.reshape(-1, 3).tolist()}
  assert {tuple(c) for c in palette.tolist()} <= seen


def test_grid_places_pictures_in_rows_and_columns():
  cells = [[np.full((10, 30, 3), 20 * (3 * r + c) + 5, np.uint8) for c in range(3)]
           for r in range(2)]
  pixels = pictures.grid(['', '', ''], cells)
  flat = [[x for x in line if x != 255] for line in pixels[:, :, 0].tolist()]
  rows = sorted({tuple(dict.fromkeys(line)) for line in flat if line})
  assert rows == [(5, 25, 45), (65, 85, 105)]


def test_picture_of_a_data_set_with_two_sizes(tmp_path):
  network = tiny.conv_network()
  variables = {name: network.init(jax.random.key(i), (8, 8))
               for i, name in enumerate(['teacher', 'student'])}
  data = random_dataset([(16, 24), (24, 16), (16, 24)])
  pictures.write_picture(tmp_path / 'a.png', network, variables, data, crop=32, count=5)
  with Image.open(tmp_path / 'a.png') as picture:
    # image, truth, two networks, confidence; heights of 200 / 1.5, 200 * 1.5 and 200 / 1.5
    assert picture.width == 6 + 5 * 206
    assert picture.height > 133 + 300 + 133
  pictures.write_picture(tmp_path / 'none.png', network, variables, data, crop=32, count=0)
  assert not (tmp_path / 'none.png').exists()


def test_a_strip_makes_no_endless_picture():
  data = random_dataset([(900, 2)])
  shown = Prediction(np.zeros((900, 2), np.uint8), np.ones((900, 2), np.float32))
  grid = pictures.prediction_grid(data, {data.validation[0]: {'teacher': shown}}, cell_width=50)
  assert grid.shape[0] < 400  # A cell has a height of 200.


def test_an_overlay_too_long_for_a_jpeg_is_written_smaller(tmp_path):
  pictures.write_image(tmp_path / 'x.jpg', np.full((66_000, 3, 3), 90, np.uint8))
  with Image.open(tmp_path / 'x.jpg') as image:
    assert image.size == (2, 65_500)
