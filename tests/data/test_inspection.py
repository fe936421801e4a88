"""Drawn folders whose sizes, classes and looks are known."""

import dataclasses
import os

import cv2
import numpy as np
import pytest

import gta_jax
from gta_jax.data import inspection, proposals, voc
from gta_jax.data.files import DataError
from gta_jax.data.folder import read_folder
from gta_jax.data.inspection import inspect
from gta_jax.data.proposals import Machine, propose
from gta_jax.data.sources import Dataset, check
from gta_jax.reporting import inspection_table
from tests import tiny_archives

GIVEN = dict.fromkeys(proposals.RULES)
CPU, GPUS = Machine(), Machine(gpu=True, devices=3)


def write(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  cv2.imwrite(str(path), array)


def make(root, *, size=(64, 80), thickness=3, labelled_level=100, level=100, colour=False):
  """Two labelled images, two validation and 20 others: a vertical vein in rock."""
  ids = [f'{i:02}' for i in range(24)]
  for i, id in enumerate(ids):
    rng = np.random.default_rng(i)
    mask = np.zeros(size, np.uint8)
    mask[:, 10:10 + thickness] = 1
    base = labelled_level if i < 2 else level
    image = np.clip(base + 40 * mask + rng.normal(0, 5, size), 0, 255).astype(np.uint8)
    if colour:
      image = np.stack([image, image, image // 2], -1)
    write(root / 'images' / f'{id}.png', image)
    if i < 4:
      mask[0] = 255
      write(root / 'masks' / f'{id}.png', mask)
  (root / 'classes.txt').write_text('rock\nvein\n')
  (root / 'splits' / '2').mkdir(parents=True)
  (root / 'splits' / '2' / 'labeled.txt').write_text('\n'.join(ids[:2]))
  (root / 'splits' / 'val.txt').write_text('\n'.join(ids[2:4]))
  return root


def look_at(root):
  dataset = read_folder(root, labelled='2')
  check(dataset)
  return dataset, inspect(dataset)


def test_masks_of_two_classes_in_two_codes_are_said(tmp_path):
  root = make(tmp_path)
  assert not any('255 is no label' in text for text in look_at(root)[1].remarks)
  mask = np.zeros((64, 80), np.uint8)
  mask[:, 10:13] = 255
  write(root / 'masks' / '01.png', mask)
  found = look_at(root)[1]
  assert found.remarks[0].startswith('1 of 4 masks looked at hold 0 and 255 alone, 3 hold 1')


def test_empty_masks_are_described_and_nothing_is_proposed(tmp_path):
  root = make(tmp_path / 'data')
  for ids in (('00', '01'), ('02', '03')):  # first of the labelled ones, then of all
    for id in ids:
      write(root / 'masks' / f'{id}.png', np.full((64, 80), 255, np.uint8))
    config = gta_jax.load_config('folder:2', {'data.dir': str(root)})
    text = inspection_table.inspect_data(config, tmp_path)
    assert 'Training will refuse this: All pixels of the 2 labelled masks' in ' '.join(text.split())
    assert 'Proposed' not in text


def test_what_a_run_began_with_is_not_written_over(tmp_path):
  root, run = make(tmp_path / 'data'), tmp_path / 'run'
  config = gta_jax.load_config('folder:2', {'data.dir': str(root)})
  inspection_table.inspect_data(config, run)
  (run / 'checkpoints').mkdir()
  (run / 'checkpoints' / '4.json').touch()
  inspection_table.inspect_data(config, run)
  before = (run / 'inspection.json').read_bytes()
  write(root / 'masks' / '00.png', np.ones((64, 80), np.uint8))
  with pytest.raises(ValueError, match='what the run there began with, .*give another --workdir'):
    inspection_table.inspect_data(config, run)
  assert (run / 'inspection.json').read_bytes() == before


def test_a_folder_that_cannot_be_written_is_refused_before_any_file_is_read(tmp_path):
  (tmp_path / 'file').touch()
  config = gta_jax.load_config('folder:2', {'data.dir': str(tmp_path / 'none')})
  with pytest.raises(DataError, match='file/run cannot be written, .*give another --workdir'):
    inspection_table.inspect_data(config, tmp_path / 'file' / 'run')


def test_a_file_that_no_list_names_is_not_looked_at(tmp_path):
  root = make(tmp_path)
  (root / 'splits' / '2' / 'unlabeled.txt').write_text('04\n')
  (root / 'images' / '99.png').symlink_to('nowhere.png')
  dataset, found = look_at(root)
  assert '99' in dataset.reader.images and found.digest == inspection.digest(dataset)


def test_the_facts_are_those_of_the_files(tmp_path):
  dataset, found = look_at(make(tmp_path))
  assert found.images == {'labelled': 2, 'unlabelled': 20, 'validation': 2, 'test': 0}
  assert found.kinds == [{'format': 'PNG', 'bits': 8, 'height': 64, 'width': 80, 'images': 24}]
  assert found.size == (64, 80) and found.grey
  assert found.pixels['labelled'] == [2 * 63 * 77, 2 * 63 * 3]
  assert found.holding['validation'] == [2, 2]
  assert found.void['labelled'] == pytest.approx(1 / 64, abs=1e-4)
  assert found.widths[1] == pytest.approx(3.5) and found.widths[0] > 30
  brightness, _ = found.looks['labelled']['brightness']
  assert brightness == pytest.approx(101.5, abs=0.7)
  assert found.looked_at['unlabelled images'] == [20, 20]
  assert ["'rock' has 96.2 %" in remark for remark in found.remarks] == [True]
  assert found == inspection.Inspection(**dataclasses.asdict(found))
  assert found.digest == inspection.digest(dataset)
  os.utime(tmp_path / 'images' / '05.png', ns=(0, 0))  # a clock may be coarse
  assert found.digest != inspection.digest(dataset)


def test_an_inspection_of_a_tree_of_voc_is_outdated_by_a_new_mask(tmp_path):
  root = tiny_archives.write_tree(tmp_path, tiny_archives.voc_members())
  catalogue = voc.read_tree(root)
  dataset = Dataset(catalogue.name, catalogue.classes, catalogue.palette, catalogue.training, (),
                    catalogue.validation, catalogue.reader)
  before = inspection.digest(dataset)
  assert inspection.digest(dataset) == before
  os.utime(root / f'VOCdevkit/VOC2012/SegmentationClass/{catalogue.training[0]}.png', ns=(0, 0))
  assert inspection.digest(dataset) != before


def test_what_is_odd_is_said(tmp_path):
  root = make(tmp_path, labelled_level=150, colour=True)
  (root / 'classes.txt').write_text('rock\nvein\nwater\n')
  _, found = look_at(root)
  assert not found.grey
  remarks = '\n'.join(found.remarks)
  assert "'water' occurs in no labelled and no validation mask" in remarks
  assert 'Labelled images are brighter than unlabelled ones: brightness 1' in remarks
  assert 'Labelled images are brighter than validation ones' in remarks
  for id in ('00', '01'):
    for kind in ('images', 'masks'):
      array = cv2.imread(str(root / kind / f'{id}.png'), cv2.IMREAD_UNCHANGED)
      write(root / kind / f'{id}.png', array[:40])
  remarks = '\n'.join(look_at(root)[1].remarks)
  assert 'in the median 40 x 80 against 64 x 80 pixels' in remarks


def test_only_some_of_many_are_looked_at(tmp_path, monkeypatch):
  root = make(tmp_path)
  monkeypatch.setattr(inspection, '_LOOKS', 5)
  monkeypatch.setattr(inspection, '_MASKS', 1)
  _, found = look_at(root)
  assert found.looked_at['unlabelled images'] == [5, 20]
  assert found.looked_at['labelled masks'] == [1, 2]


def values(found, machine=CPU, **given):
  return {one.field: one.value for one in propose(found, machine, GIVEN | given)}


def test_fine_structures_get_the_fine_decoder_and_rare_classes_weights(tmp_path):
  _, found = look_at(make(tmp_path))
  proposed = values(found)
  assert proposed['data.image_scale'] == 1.0 and proposed['model.decoder'] == 'unet'
  assert proposed['data.crop'] == 64  # what fits
  weights = np.array(proposed['loss.class_weights'])
  shares = np.array(found.shares)
  assert (weights * shares).sum() == pytest.approx(1, abs=1e-3)
  assert weights[1] / weights[0] == pytest.approx((shares[0] / shares[1])**0.5, rel=1e-3)
  assert values(found, **{'loss.ohem_threshold': 0.7})['loss.class_weights'] == ()
  for pixels, weighted in (([24, 10], False), ([32, 10], True)):
    other = dataclasses.replace(found, pixels={'labelled': pixels})
    assert bool(values(other)['loss.class_weights']) == weighted
  assert all(one.reason and '\n' not in one.reason for one in propose(found, CPU, GIVEN))


def test_wide_structures_of_large_images_are_scaled_down(tmp_path):
  _, found = look_at(make(tmp_path, size=(400, 500), thickness=60))
  proposed = values(found)
  assert proposed['data.image_scale'] == 0.5 and proposed['model.decoder'] == 'deeplab'
  assert proposed['data.crop'] == 96
  assert values(found, GPUS)['data.crop'] == 192
  assert values(found, GPUS)['train.labelled_batch'] == 9  # three on each of three devices
  small = {'model.backbone': 'efficientnet_lite0'}
  assert values(found, **small)['train.labelled_batch'] == 4


@pytest.mark.parametrize('side, thickness, machine, scale', [
  (280, 4, CPU, 1.0), (320, 4, CPU, 0.5), (320, 4, GPUS, 1.0), (700, 9, CPU, 0.25),
  (700, 4, CPU, 0.5), (320, 2, CPU, 1.0),
  (700, 24, CPU, 0.25)])  # stays wide at a half, and goes on for the crop
def test_images_shrink_until_a_crop_shows_a_third_of_them_but_not_threads(
  tmp_path, side, thickness, machine, scale
):
  _, found = look_at(make(tmp_path, size=(side, side + 20), thickness=thickness))
  assert values(found, machine)['data.image_scale'] == scale
  assert scale == 1 or 'of the shorter side' in propose(found, machine, GIVEN)[0].reason


def test_photographs_of_a_camera_shrink_further_for_a_crop_alone(tmp_path):
  _, found = look_at(make(tmp_path))
  for width, of_cpu, of_gpu in ((40.0, 0.0625, 0.25), (16.0, 0.125, 0.25)):
    photographs = dataclasses.replace(
      found, sizes={'labelled': [3000, 4000]}, widths=[width] * len(found.classes))
    assert values(photographs)['data.image_scale'] == of_cpu
    assert values(photographs, GPUS)['data.image_scale'] == of_gpu


def test_a_transformer_gets_its_decoder_and_whole_patches(tmp_path):
  given = {'model.backbone': 'dinov2_b_reg'}
  _, small = look_at(make(tmp_path / 'small'))
  assert values(small, **given)['data.crop'] == 56  # what fits
  _, found = look_at(make(tmp_path / 'large', size=(800, 900), thickness=60))
  proposed = values(found, **given)
  assert proposed['model.decoder'] == 'dpt' and proposed['train.labelled_batch'] == 4
  assert proposed['data.crop'] == 84
  assert values(found, GPUS, **given, **{'data.image_scale': 0.5})['data.crop'] == 308


def test_proposals_follow_what_is_set(tmp_path):
  _, found = look_at(make(tmp_path, size=(400, 500), thickness=60))
  proposed = values(found, **{'data.image_scale': 0.1})
  assert proposed['model.decoder'] == 'unet' and proposed['data.crop'] == 32
  # 20 unlabelled images in batches of 8 are 2 steps an epoch; 1,000 is the least.
  assert values(found, **{'data.crop': 512})['train.epochs'] == 500
  assert values(found, **{'data.crop': 512})['method.warmup_epochs'] == 250
  # Every labelled pixel 120 times: 120 * 2 * 200 * 250 / (4 * 32**2) = 2,930 of 5 steps an epoch.
  small = {'data.crop': 32, 'data.image_scale': 0.5,
           'train.labelled_batch': 4, 'train.unlabelled_batch': 4}
  assert values(found, **small)['train.epochs'] == 586
  # A crop shows no more than an image: 1,000 steps of 8 show each of 2 images 4,000 times.
  epochs, = (one for one in propose(found, CPU, {
    **GIVEN, 'data.crop': 2048, 'data.image_scale': 1.0}) if one.field == 'train.epochs')
  assert 'each labelled pixel is seen 4000 times' in epochs.reason
  reasons = {name: one.reason for name in ('gta', 'sup_only') for one in propose(
    found, CPU, {**GIVEN, 'method.name': name}) if one.field == 'method.warmup_epochs'}
  assert 'labels alone' in reasons['gta'] and 'its average' in reasons['sup_only']


def test_strong_views_keep_the_colours_that_tell_the_classes(tmp_path):
  """Veins are 40 grey levels brighter than rock here, and noise has a deviation of 5."""
  _, found = look_at(make(tmp_path))
  assert found.grey and found.told_by_colour > 0.95
  published = {'published.jitter': 0.7, 'published.greyscale': 0.2}
  assert values(found)['method.jitter'] == values(found, **published)['method.jitter'] == 0
  for told in (None, 0.3):
    proposed = values(dataclasses.replace(found, told_by_colour=told), **published)
    assert (proposed['method.jitter'], proposed['method.greyscale']) == (0.7, 0.2)


def test_weights_of_classes_that_never_occur_are_those_of_the_rarest():
  assert proposals.root_weights([0.64, 0.36, 0.0]) == (0.8929, 1.19, 1.19)


def test_validation_masks_decide_nothing(tmp_path):
  root = make(tmp_path)
  before = look_at(root)[1]
  for id in ('02', '03'):  # of validation
    mask = np.zeros((64, 80), np.uint8)
    mask[:, 10] = 1
    write(root / 'masks' / f'{id}.png', mask)
  found = look_at(root)[1]
  assert found.widths == before.widths and propose(found, CPU, GIVEN) == propose(before, CPU, GIVEN)


def test_masks_without_a_label_are_passed_over_where_widths_are_measured(tmp_path, monkeypatch):
  root = make(tmp_path)
  monkeypatch.setattr(inspection, '_WIDTHS', 1)
  before = look_at(root)[1]
  write(root / 'masks' / '00.png', np.full((64, 80), 255, np.uint8))  # the one that was looked at
  found = look_at(root)[1]
  assert found.widths == before.widths and found.looked_at['masks for widths'] == [1, 2]
  unmeasured = dataclasses.replace(found, widths=[None, None])
  with pytest.raises(DataError, match='None of the 2 labelled masks looked at, of 2, holds a'):
    propose(unmeasured, CPU, GIVEN)
