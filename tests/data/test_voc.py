"""VOC 2012 with SBD: tiny archives in the true layout, and the folders they unpack to."""

import numpy as np
import pytest

from gta_jax.data import voc
from gta_jax.data.files import DataError, decode_mask
from tests import tiny_archives as tiny


@pytest.fixture(scope='module')
def served(tmp_path_factory):
  """A folder with both archives."""
  folder = tmp_path_factory.mktemp('served')
  tiny.write_tar(folder / 'VOCtrainval_11-May-2012.tar', tiny.voc_members())
  tiny.write_tar(folder / 'benchmark.tgz', tiny.sbd_members())
  return folder


def archives(folder):
  return folder / 'VOCtrainval_11-May-2012.tar', folder / 'benchmark.tgz'


def test_the_augmented_set_is_the_union_without_validation(served):
  found = {split: list(examples) for split, examples
           in voc.Source(training='').examples(*archives(served)).items()}
  ids = {split: sorted(example.id for example in examples) for split, examples in found.items()}
  assert ids['clean'] == sorted(tiny.VOC_TRAIN)
  assert ids['validation'] == sorted(tiny.VOC_VALIDATION)
  assert sorted(ids['clean'] + ids['augmented']) == sorted(tiny.AUGMENTED)
  examples = {example.id: example for examples in found.values() for example in examples}
  for id, example in examples.items():
    assert example.image == tiny.jpeg(id)  # The bytes as they were.
    # VOC's own mask wherever there is one.
    expected = (tiny.voc_mask if id in tiny.VOC_TRAIN + tiny.VOC_VALIDATION else tiny.sbd_mask)(id)
    np.testing.assert_array_equal(decode_mask(example.label, id), expected)


def test_archives_with_other_training_images_are_refused(served):
  with pytest.raises(DataError, match='7 training images, not the 10,582'):
    voc.Source().examples(*archives(served))


def test_a_missing_member_is_named(served, tmp_path):
  members = tiny.voc_members()
  del members['VOCdevkit/VOC2012/JPEGImages/2008_000103.jpg']
  path = tiny.write_tar(tmp_path / 'x.tar', members)
  with pytest.raises(DataError, match=r'x.tar has no member .*JPEGImages/2008_000103.jpg'):
    list(voc.Source(training='').examples(path, archives(served)[1])['augmented'])
  members = tiny.sbd_members()
  del members['benchmark_RELEASE/dataset/cls/2008_000101.mat']
  path = tiny.write_tar(tmp_path / 'x.tgz', members)
  with pytest.raises(DataError, match=r'x.tgz has no member .*cls/2008_000101.mat'):
    list(voc.Source(training='').examples(archives(served)[0], path)['augmented'])


def test_a_damaged_mat_is_named():
  with pytest.raises(DataError, match='a.mat is damaged or not a mask of SBD'):
    voc.decode_sbd(b'MATLAB 5.0 MAT-file' * 20, 'a.mat')


@pytest.mark.parametrize('below', ['', 'VOCdevkit', 'VOCdevkit/VOC2012'])
def test_the_unpacked_tree_is_found_in_or_below_the_folder(tmp_path, below):
  tiny.write_tree(tmp_path, tiny.voc_members())
  catalogue = voc.read_tree(tmp_path / below)
  assert catalogue.training == tuple(sorted(tiny.VOC_TRAIN)) and not catalogue.checked
  assert set(catalogue.others) == {*tiny.AUGMENTED, '2009_000500'} - set(tiny.VOC_TRAIN)
  np.testing.assert_array_equal(catalogue.reader.mask('2007_000001'), tiny.voc_mask('2007_000001'))


def test_a_tree_with_augmented_masks_has_all_training_ids(tmp_path):
  tiny.write_tree(tmp_path, tiny.voc_members())
  for id in tiny.AUGMENTED + tiny.VOC_VALIDATION:
    path = tmp_path / f'VOCdevkit/VOC2012/SegmentationClassAug/{id}.png'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tiny.grey_png(tiny.sbd_mask(id)))
  catalogue = voc.read_tree(tmp_path)
  assert catalogue.training == tuple(sorted(tiny.AUGMENTED)) and not catalogue.others
  assert set(catalogue.clean) == set(tiny.VOC_TRAIN)
  for id in tiny.AUGMENTED:
    expected = (tiny.voc_mask if id in tiny.VOC_TRAIN else tiny.sbd_mask)(id)
    np.testing.assert_array_equal(catalogue.reader.mask(id), expected)
  (tmp_path / 'VOCdevkit/VOC2012/JPEGImages/2008_000103.jpg').unlink()
  with pytest.raises(DataError, match="lacks the image or the mask of '2008_000103'"):
    voc.read_tree(tmp_path)


def test_a_tree_without_images_says_what_to_give(tmp_path):
  with pytest.raises(DataError, match='no JPEGImages; give VOCdevkit or VOC2012'):
    voc.read_tree(tmp_path)
