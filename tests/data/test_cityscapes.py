"""Cityscapes: label ids to train ids, the two archives, and the folders they unpack to."""

import pytest

from gta_jax.data import cityscapes
from gta_jax.data.files import DataError, decode_mask
from tests import tiny_archives as tiny

# The train ids of label ids 0 to 33, written out by hand.
EXPECTED = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12, 13,
                        14, 15, 255, 255, 16, 17, 18]


@pytest.fixture
def archives(tmp_path):
  images, masks = tiny.cityscapes_members()
  return (tiny.write_zip(tmp_path / 'leftImg8bit_trainvaltest.zip', images),
          tiny.write_zip(tmp_path / 'gtFine_trainvaltest.zip', masks))


def test_label_ids_become_train_ids():
  assert cityscapes.TRAIN_IDS[:34].tolist() == EXPECTED
  assert (cityscapes.TRAIN_IDS[34:] == 255).all()
  assert len(cityscapes.CLASSES) == len(cityscapes.PALETTE) == 19


def test_examples_are_the_images_as_they_are_and_masks_of_train_ids(archives):
  source = cityscapes.Source(training='')
  assert source.archives(archives[0].parent) == archives
  found = {split: list(examples) for split, examples in source.examples(*archives).items()}
  assert {split: tuple(sorted(example.id for example in examples))
          for split, examples in found.items()} == {
    'train': tuple(sorted(tiny.CITIES['train'])), 'validation': tiny.CITIES['val']}
  image = tiny.cityscapes_members()[0]['leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png']
  assert found['validation'][0].image == image
  assert decode_mask(found['train'][0].label, 'x')[3].tolist() == EXPECTED


def test_missing_archives_say_which_from_where_and_where_to(tmp_path, archives):
  archives[1].unlink()
  with pytest.raises(DataError) as error:
    cityscapes.Source().archives(tmp_path)
  for part in ('gtFine_trainvaltest.zip not found', 'https://www.cityscapes-dataset.com/downloads/',
               'log in', f'put them into {tmp_path}', '--config.data.dir=DIR'):
    assert part in str(error.value)


def test_archives_with_other_training_images_or_without_masks_are_refused(tmp_path, archives):
  with pytest.raises(DataError, match='3 training images, not the 2,975'):
    cityscapes.Source().examples(*archives)
  tiny.write_zip(archives[1], {'README': b''})
  with pytest.raises(DataError, match='gtFine_trainvaltest.zip has no member gtFine/train/jena/'):
    list(cityscapes.Source(training='').examples(*archives)['train'])


def test_the_unpacked_tree(tmp_path):
  for members in tiny.cityscapes_members():
    tiny.write_tree(tmp_path, members)
  catalogue = cityscapes.read_tree(tmp_path)
  assert set(catalogue.training) == set(tiny.CITIES['train'])
  assert catalogue.validation == tiny.CITIES['val']
  assert catalogue.reader.mask('ulm_000001_000019')[0].tolist() == EXPECTED
  assert catalogue.reader.size('ulm_000001_000019') == (17, 34)
  (tmp_path / 'gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png').unlink()
  with pytest.raises(DataError, match=r'000019_gtFine_labelIds.png. does.*unpack gtFine_tr'):
    cityscapes.read_tree(tmp_path)
  with pytest.raises(DataError, match='leftImg8bit/train holds no CITY'):
    cityscapes.read_tree(tmp_path / 'gtFine')
