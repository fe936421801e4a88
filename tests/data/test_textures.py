"""Drawn slices: a function of seed and number, and a folder that reads as one."""

import numpy as np
import pytest

from gta_jax.data import textures
from gta_jax.data.files import DataError
from gta_jax.data.folder import read_folder
from gta_jax.data.sources import check
from gta_jax.data.structures import median_width, survivors


@pytest.mark.parametrize('drawing', textures.DRAWINGS)
def test_a_slice_is_a_function_of_seed_and_number(drawing):
  image, mask = textures.draw(0, 1, 96, drawing=drawing)
  again, _ = textures.draw(0, 1, 96, drawing=drawing)
  np.testing.assert_array_equal(image, again)
  assert image.dtype == mask.dtype == np.uint8 and image.shape == mask.shape == (96, 96)
  for other in ((0, 2), (1, 1)):
    assert np.any(image != textures.draw(*other, 96, drawing=drawing)[0])


def test_films_are_thin_and_every_phase_occurs():
  masks = [textures.draw(0, index)[1] for index in range(4)]
  shares = np.bincount(np.concatenate(masks, axis=None), minlength=4) / np.size(masks)
  assert len(shares) == len(textures.CLASSES) and shares.min() > 0.04
  assert median_width(sum(survivors(mask, textures.FILM) for mask in masks)) < 6


def test_levels_tell_the_phases_of_one_drawing_alone():
  def apart(drawing):
    image, mask = textures.draw(0, 1, drawing=drawing)
    matrix, mineral = (image[mask == of] for of in (textures.MATRIX, textures.MINERAL))
    return abs(matrix.mean() - mineral.mean()) / matrix.std()

  assert apart('levels') > 2 and apart('textures') < 0.5


def test_a_folder_of_slices_reads_as_one(tmp_path):
  folder = tmp_path / 'new'
  textures.write_folder(folder, labelled=2, unlabelled=3, validation=1, size=64)
  found = read_folder(folder, labelled='2')
  check(found)
  assert tuple(map(len, (found.labelled, found.unlabelled, found.validation))) == (2, 3, 1)
  assert found.classes == textures.CLASSES
  assert not found.reader.has_mask(found.unlabelled[0])
  np.testing.assert_array_equal(found.reader.mask('0005'), textures.draw(0, 5, 64)[1])
  with pytest.raises(DataError, match='is not empty; name a new folder'):
    textures.write_folder(folder)
