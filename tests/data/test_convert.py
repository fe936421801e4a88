import errno
import json
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from gta_jax.data import folder, sources
from gta_jax.data.convert import convert
from gta_jax.data.files import DataError, decode_mask
from gta_jax.data.masks import encode_mask

SIZE = (8, 10)
RNG = np.random.default_rng(0)


def save(path, array, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


def photo(path):
  save(path, RNG.integers(0, 256, (*SIZE, 3)))


def ids_of(out, id):
  return decode_mask((out / 'masks' / f'{id}.png').read_bytes(), id)


def test_voc_with_classes_of_its_own(tmp_path):
  root, out = tmp_path / 'voc', tmp_path / 'out'
  for name in 'abcd':
    photo(root / 'JPEGImages' / f'{name}.jpg')
  masks = {name: RNG.integers(0, 2, SIZE) for name in 'ab'}
  colours = np.array([[0, 0, 0], [250, 50, 0]])
  for name, mask in masks.items():
    save(root / 'SegmentationClass' / f'{name}.png', colours[mask])
  save(root / 'SegmentationClass' / 'c.png', np.zeros((3, 3, 3)))
  save(root / 'SegmentationClass' / 'z.png', np.zeros(SIZE))
  (root / 'JPEGImages' / 'e.gif').write_text('x')
  (root / 'JPEGImages' / 'f.jpg').write_text('x')
  (root / 'labelmap.txt').write_text('# label:color\nbackground:0,0,0::\nrust:250,50,0::\n')
  lists = root / 'ImageSets' / 'Segmentation'
  lists.mkdir(parents=True)
  (lists / 'train.txt').write_text('a\n')
  (lists / 'val.txt').write_text('b\ngone\n')
  before = sorted(root.rglob('*'))
  report = convert(root, out, layout='voc')
  assert sorted(root.rglob('*')) == before
  assert report.classes == ('background', 'rust') and (report.images, report.masks) == (4, 2)
  for name, mask in masks.items():
    np.testing.assert_array_equal(ids_of(out, name), mask)
  text = (out / 'conversion.txt').read_text()
  for part in ('e.gif', 'f.jpg', 'z.png: no image', 'gone of val.txt', 'mask of c: it has height'):
    assert part in text
  dataset = folder.read_folder(out, labelled='1')
  sources.check(dataset)
  assert (dataset.labelled, dataset.validation) == (('a',), ('b',))
  assert dataset.unlabelled == ('c', 'd') and (out / 'images' / 'a.jpg').is_symlink()


def test_a_class_called_ignore_stays_a_class(tmp_path):
  root, out = tmp_path / 'voc', tmp_path / 'out'
  colours = np.array([[0, 0, 0], [128, 128, 128], [0, 200, 0]])
  mask = RNG.integers(0, 3, SIZE)
  for name in 'ab':
    photo(root / 'JPEGImages' / f'{name}.jpg')
    save(root / 'SegmentationClass' / f'{name}.png', colours[mask])
  (root / 'labelmap.txt').write_text('rust:0,0,0::\nrust:0,200,0::\n')
  with pytest.raises(DataError, match="names the class 'rust' twice"):
    convert(root, out, layout='voc')
  (root / 'labelmap.txt').write_text('background:0,0,0::\nignore:128,128,128::\nrust:0,200,0::\n')
  assert convert(root, out, layout='voc').classes == ('background', 'ignore', 'rust')
  (out / 'splits' / 'val.txt').write_text('b\n')
  dataset = folder.read_folder(out, labelled='1')
  sources.check(dataset)
  assert dataset.classes == ('background', 'ignore', 'rust')
  np.testing.assert_array_equal(dataset.reader.mask('a'), mask)


def test_palettes_that_number_colours_as_they_come_are_told(tmp_path):
  root, out = tmp_path / 'pair', tmp_path / 'out'
  mask = np.resize([0, 1], SIZE)
  for name, palette in (('a', (0, 0, 0, 250, 50, 0)), ('b', (250, 50, 0, 0, 0, 0, 7, 7, 7))):
    photo(root / 'images' / f'{name}.jpg')
    (root / 'masks').mkdir(exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(palette)
    image.save(root / 'masks' / f'{name}.png')
  said = 'index 0 has the colour (0, 0, 0) in {0}a.png and (250, 50, 0) in {0}b.png'.format(
    f'{root / "masks"}/')
  assert said in convert(root, out, layout='masks').text()
  (root / 'splits').mkdir()
  (root / 'splits' / 'val.txt').write_text('b\n')
  (root / 'classes.txt').write_text('background\nrust\n')
  assert said in folder.read_folder(root, labelled='1').note
  (out / 'splits' / 'val.txt').write_text('b\n')
  assert 'has the colour' not in folder.read_folder(out, labelled='1').note
  (root / 'classes.txt').write_text('background 0 0 0\nrust 250 50 0\n')
  found = convert(root, tmp_path / 'by_colour', layout='masks')
  assert not found.notes and (ids_of(tmp_path / 'by_colour', 'b') == 1 - mask).all()


def test_masks_of_16_bits_hold_ids_and_transparent_ones_are_refused(tmp_path):
  root, ids = tmp_path / 'in', np.resize([0, 1, 2, 255], SIZE)
  photo(root / 'images' / 'a.jpg')
  save(root / 'masks' / 'a.png', ids)
  Image.fromarray(ids.astype(np.uint16)).save(root / 'masks' / 'a.png')
  convert(root, tmp_path / 'out', layout='masks')
  np.testing.assert_array_equal(ids_of(tmp_path / 'out', 'a'), ids)
  for pixels, message in ((np.full(SIZE, 300, np.uint16), 'a.png holds 300; a mask holds'),
                          (np.zeros((*SIZE, 4), np.uint8), 'a.png is transparent in places')):
    Image.fromarray(pixels).save(root / 'masks' / 'a.png')
    with pytest.raises(DataError, match=message):
      convert(root, tmp_path / 'none', layout='masks')


def test_masks_have_the_colours_of_written_predictions(tmp_path):
  root, ids = tmp_path / 'in', np.resize([0, 1, 255], SIZE).astype(np.uint8)
  photo(root / 'images' / 'a.png')
  save(root / 'masks' / 'a.png', ids)
  (root / 'classes.txt').write_text('sky 1 2 3\nroad 9 0 200\n')
  convert(root, tmp_path / 'out', layout='masks')
  written = (tmp_path / 'out' / 'masks' / 'a.png').read_bytes()
  assert written == encode_mask(ids, np.array([[1, 2, 3], [9, 0, 200]], np.uint8))
  with Image.open(tmp_path / 'out' / 'masks' / 'a.png') as mask:
    assert mask.convert('RGB').getpixel((2, 0)) == (224, 224, 192)


@pytest.mark.parametrize('kind', ['binary', 'colours', 'ids'])
def test_a_pair_of_folders(tmp_path, kind):
  truth = {'train/a': np.arange(80).reshape(SIZE) % 2, 'val/b': np.eye(*SIZE, dtype=int)}
  values = {'binary': np.array([0, 255]), 'ids': np.array([0, 1]),
            'colours': np.array([[0, 0, 0], [9, 0, 200]])}[kind]
  for id, ids in truth.items():
    photo(tmp_path / 'in' / 'images' / f'{id}.png')
    save(tmp_path / 'in' / 'masks' / f'{id}_mask.png', values[ids])
  report = convert(tmp_path / 'in', tmp_path / 'out', layout='masks', copy=True)
  assert report.lists == {'train': 1, 'val': 1} and report.classes == ('class0', 'class1')
  for id, ids in truth.items():
    np.testing.assert_array_equal(ids_of(tmp_path / 'out', id), ids)
  assert ('255 was taken' in report.text()) == (kind == 'binary')
  assert not (tmp_path / 'out' / 'images' / 'val' / 'b.png').is_symlink()


def test_folders_of_lists_have_many_names_and_images_of_no_list_are_counted(tmp_path):
  for id in ('Train/a', 'valid/b', 'testing/c', 'more/d'):
    photo(tmp_path / 'in' / 'images' / f'{id}.png')
    save(tmp_path / 'in' / 'masks' / f'{id}.png', np.eye(*SIZE))
  save(tmp_path / 'in' / 'masks' / 'more' / 'd_mask.png', np.eye(*SIZE))
  report = convert(tmp_path / 'in', tmp_path / 'out', layout='masks')
  assert report.lists == {'train': 1, 'val': 1, 'test': 1}
  assert '1 images are in no list' in report.text()
  assert 'd_mask.png: its image has a mask without _mask already' in report.text()


def coco(root, name, annotations):
  (root / 'annotations').mkdir(parents=True, exist_ok=True)
  photo(root / 'images' / f'{name}.jpg')
  content = {'images': [{'id': 1, 'file_name': f'{name}.jpg', 'height': 8, 'width': 10},
                        {'id': 2, 'file_name': 'gone.jpg', 'height': 8, 'width': 10}],
             'categories': [{'id': 7, 'name': 'cat'}, {'id': 3, 'name': 'dog'}],
             'annotations': annotations}
  (root / 'annotations' / f'instances_{name}.json').write_text(json.dumps(content))


def test_coco_instances(tmp_path):
  pytest.importorskip('pycocotools')
  box, rle = [2, 1, 6, 1, 6, 5, 2, 5], {'size': [8, 10], 'counts': [0, 80]}
  coco(tmp_path / 'in', 'train', [
    {'image_id': 1, 'category_id': 7, 'segmentation': [box]},
    {'image_id': 1, 'category_id': 3, 'segmentation': rle}])
  coco(tmp_path / 'in', 'val', [{'image_id': 1, 'category_id': 7, 'segmentation': [box]}])
  report = convert(tmp_path / 'in', tmp_path / 'out', layout='coco')
  assert report.classes == ('background', 'dog', 'cat')
  expected = np.full(SIZE, 1)
  expected[1:5, 2:6] = 2  # The smaller segment lies on top.
  np.testing.assert_array_equal(ids_of(tmp_path / 'out', 'train'), expected)
  np.testing.assert_array_equal(ids_of(tmp_path / 'out', 'val'), np.where(expected == 2, 2, 0))
  assert report.lists == {'train': 1, 'val': 1} and 'gone.jpg' in report.text()


def test_coco_annotations_beside_their_images_as_roboflow_has_them(tmp_path):
  pytest.importorskip('pycocotools')
  root, out = tmp_path / 'in', tmp_path / 'out'
  for number, name in enumerate(('train', 'valid', 'test')):
    photo(root / name / '1.jpg')
    box = [0, 0, 10, 0, 10, number, 0, number]
    (root / name / '_annotations.coco.json').write_text(json.dumps({
      'images': [{'id': 0, 'file_name': '1.jpg', 'height': 8, 'width': 10},
                 {'id': 1, 'file_name': 'gone.jpg', 'height': 8, 'width': 10}],
      'categories': [{'id': 0, 'name': 'pores'}, {'id': 1, 'name': 'pore'}],
      'annotations': [{'image_id': 0, 'category_id': 1, 'segmentation': [box]}]}))
  report = convert(root, out, layout='coco')
  assert report.classes == ('background', 'pore')
  assert report.lists == {'train': 1, 'val': 1, 'test': 1}
  for number, name in enumerate(('train', 'valid', 'test')):
    assert (out / 'images' / name / '1.jpg').resolve() == root / name / '1.jpg'
    assert ids_of(out, f'{name}/1').sum() == 10 * number
  assert sorted(report.left_out) == [
    f'gone.jpg of {name}/_annotations.coco.json' for name in ('test', 'train', 'valid')]


def test_coco_annotations_of_one_folder_are_no_list_by_its_name(tmp_path):
  root = tmp_path / 'valid'
  photo(root / '1.png')
  panoptic(root, '_annotations.coco', ['1.png'], below='')
  assert convert(root, tmp_path / 'out', layout='coco').lists == {'train': 1}


def test_coco_categories_that_make_no_class_of_their_own(tmp_path):
  pytest.importorskip('pycocotools')
  box = [2, 1, 6, 1, 6, 5, 2, 5]
  coco(tmp_path / 'in', 'train', [{'image_id': 1, 'category_id': 7, 'segmentation': [box]}])
  path = tmp_path / 'in' / 'annotations' / 'instances_train.json'
  content = json.loads(path.read_text())
  report = convert(tmp_path / 'in', tmp_path / 'out', layout='coco')
  # No annotation has the dog, and a class without a pixel is refused in training.
  assert report.classes == ('background', 'cat') and 'no classes: dog' in report.text()
  content['categories'][0]['name'] = ' Background '
  content['annotations'] += [{'image_id': 1, 'category_id': 3, 'segmentation': [box]}]
  path.write_text(json.dumps(content))
  report = convert(tmp_path / 'in', tmp_path / 'out2', layout='coco')
  assert report.classes == ('Background', 'dog')
  assert ids_of(tmp_path / 'out2', 'train').sum() == 16  # the dog's pixels
  content['categories'][0]['name'] = '#1'
  path.write_text(json.dumps(content))
  with pytest.raises(DataError, match="make no classes.txt; rename them.*'#1 "):
    convert(tmp_path / 'in', tmp_path / 'out3', layout='coco')
  assert not (tmp_path / 'out3').exists()


def test_coco_names_of_windows_and_boxes_without_outline(tmp_path):
  pytest.importorskip('pycocotools')
  box = {'image_id': 1, 'category_id': 7, 'id': 5}
  outline = {'segmentation': [[2, 1, 6, 1, 6, 5, 2, 5]]}
  coco(tmp_path / 'in', 'train', [box | outline])
  coco(tmp_path / 'in', 'val', [box | outline, box])
  path = tmp_path / 'in' / 'annotations' / 'instances_train.json'
  path.write_text(path.read_text().replace('"train.jpg"', r'"images\\train.jpg"'))
  report = convert(tmp_path / 'in', tmp_path / 'out', layout='coco')
  assert report.lists == {'train': 1}
  assert 'annotation 5 has no outline of three points or more' in report.left_out['mask of val']


def test_coco_annotations_that_cannot_be_drawn_or_belong_to_no_image_are_told(tmp_path):
  pytest.importorskip('pycocotools')
  box, line = [2, 1, 6, 1, 6, 5, 2, 5], [0, 0, 9, 7]
  coco(tmp_path / 'in', 'a', [  # Image 1 as text; a line has no area, and is no box either.
    {'image_id': '1', 'category_id': 7, 'segmentation': [line, box]},
    {'image_id': 99, 'category_id': 7, 'segmentation': [box]}])
  coco(tmp_path / 'in', 'b', [{'image_id': 1, 'category_id': 7, 'id': 4, 'segmentation': [line]}])
  coco(tmp_path / 'in', 'c', [{'image_id': 1, 'category_id': 8, 'id': 6, 'segmentation': [box]}])
  report = convert(tmp_path / 'in', tmp_path / 'out', layout='coco')
  expected = np.zeros(SIZE, int)
  expected[1:5, 2:6] = 1
  np.testing.assert_array_equal(ids_of(tmp_path / 'out', 'a'), expected)
  assert report.left_out['1 annotations of instances_a.json'] == (
    'it lists no image of their image_id')
  assert 'annotation 4 has no outline of three points' in report.left_out['mask of b']
  assert report.left_out['mask of c'] == (
    'its annotation 6 has the category 8, which instances_c.json does not list')


def test_coco_panoptic(tmp_path):
  segments = np.zeros((*SIZE, 3), np.uint8)
  segments[:4], segments[4:6] = (5, 0, 0), (0, 1, 0)  # ids 5 and 256
  save(tmp_path / 'in' / 'annotations' / 'instances_val' / 'val.png', segments)
  coco(tmp_path / 'in', 'val', [{'image_id': 1, 'file_name': 'val.png', 'segments_info': [
    {'id': 5, 'category_id': 7}, {'id': 256, 'category_id': 3}]}])
  assert convert(tmp_path / 'in', tmp_path / 'out', layout='coco').classes == ('dog', 'cat')
  expected = np.repeat([1, 0, 255], [4, 2, 2])[:, None] * np.ones(10, int)
  np.testing.assert_array_equal(ids_of(tmp_path / 'out', 'val'), expected)


def test_categories_of_coco_have_one_number_in_all_files(tmp_path):
  for name in ('train', 'val'):
    coco(tmp_path / 'in', name, [])
  path = tmp_path / 'in' / 'annotations' / 'instances_val.json'
  path.write_text(path.read_text().replace('"cat"', '"cow"'))
  with pytest.raises(DataError, match="val.json calls category 7 'cow'.* 'cat'; number them alike"):
    convert(tmp_path / 'in', tmp_path / 'out', layout='coco')


def panoptic(root, stem, file_names, category=0, below='annotations'):
  """Every pixel of these images is of the category, 0 or 1."""
  folder = root / below / stem
  segments = [{'id': 1, 'category_id': category}]
  annotations = []
  for i, name in enumerate(file_names):
    mask = f'{name.split("/")[-1][:-4]}.png'
    save(folder / mask, np.full((*SIZE, 3), (1, 0, 0)))
    annotations.append({'image_id': i, 'file_name': mask, 'segments_info': segments})
  (root / below / f'{stem}.json').write_text(json.dumps({
    'images': [{'id': i, 'file_name': name} for i, name in enumerate(file_names)],
    'categories': [{'id': 0, 'name': 'cat'}, {'id': 1, 'name': 'dog'}],
    'annotations': annotations}))


@pytest.mark.parametrize('above', ['', 'images/', 'JPEGImages/'])
def test_coco_images_of_one_name_keep_their_own_masks(tmp_path, above):
  root, out = tmp_path / 'in', tmp_path / 'out'
  for category, split in enumerate(('train2017', 'val2017')):
    photo(root / f'{above}{split}' / '1.png')
    panoptic(root, f'instances_{split}', ['1.png'], category)
  photo(root / f'{above}val2017' / '2.png')
  panoptic(root, 'panoptic_train2017', ['2.png'])  # The image of this name is not its own.
  report = convert(root, out, layout='coco')
  assert report.lists == {'train': 1, 'val': 1} and report.masks == 2
  for category, split in enumerate(('train2017', 'val2017')):
    id = f'{above}{split}/1'
    assert (out / 'images' / f'{id}.png').resolve() == root / f'{id}.png'
    assert (ids_of(out, id) == category).all()
  assert list(report.left_out) == ['2.png of panoptic_train2017.json']
  assert 'no such file' in report.text()


@pytest.mark.parametrize(('stem', 'name'), [
  ('latest', 'train'), ('instances_trainval2014', 'train'), ('valley', 'train'),
  ('instances_val2017', 'val'), ('Validation', 'val'), ('instances_minival2014', 'val'),
  ('image_info_test-dev2017', 'test'), ('my.test', 'test')])
def test_coco_lists_follow_the_words_of_a_files_name(tmp_path, stem, name):
  photo(tmp_path / 'in' / 'images' / '1.png')
  panoptic(tmp_path / 'in', stem, ['1.png'])
  assert convert(tmp_path / 'in', tmp_path / 'out', layout='coco').lists == {name: 1}


def test_coco_masks_are_no_images_where_annotations_have_no_folder(tmp_path):
  photo(tmp_path / 'in' / 'images' / '1.png')
  panoptic(tmp_path / 'in', 'train', ['1.png'], below='')
  convert(tmp_path / 'in', tmp_path / 'out', layout='coco')
  image = (tmp_path / 'out' / 'images' / '1.png').resolve()
  assert image == tmp_path / 'in' / 'images' / '1.png'


def test_coco_file_names_are_the_ends_of_paths_and_doubts_are_left_out(tmp_path):
  root, out = tmp_path / 'in', tmp_path / 'out'
  for path in ('a/1', 'b/1', 'a/2', 'b/2', 'a/3', 'a/4', 'a/5', 'a/6'):
    photo(root / f'{path}.png')
  panoptic(root, 'all', ['1.png', 'a/2.png', '/home/me/a/3.png', 'c/4.png', 'b/5.png', 'c/6.png',
                         'd/6.png'])
  report = convert(root, out, layout='coco')
  assert (out / 'splits' / 'train.txt').read_text().split() == ['2', '3', '4']
  assert (out / 'images' / '2.png').resolve() == root / 'a' / '2.png'
  assert {name.split()[0]: reason.split(';')[0] for name, reason in report.left_out.items()} == {
    '1.png': 'it may be a/1.png or b/1.png',
    'b/5.png': 'no such file below the folder, or in that of another annotation file alone',
    'c/6.png': 'another file_name may mean a/6.png as well',
    'd/6.png': 'another file_name may mean a/6.png as well'}


def test_refuses_and_leaves_nothing(tmp_path):
  root, out = tmp_path / 'in', tmp_path / 'out'
  with pytest.raises(DataError, match='is not a folder'):
    convert(root, out, layout='voc')
  photo(root / 'images' / 'a.png')
  with pytest.raises(DataError, match='JPEGImages does not exist'):
    convert(root, out, layout='voc')
  with pytest.raises(DataError, match='no folder of masks under a known name'):
    convert(root, out, layout='masks')
  with pytest.raises(DataError, match=r'no \.json'):
    convert(root, out, layout='coco')
  (root / 'masks').mkdir()
  with pytest.raises(DataError, match=r'No image with a mask could be .*: no image has a mask\.'):
    convert(root, out, layout='masks')
  (root / 'masks' / 'a.png').write_text('x')
  with pytest.raises(DataError, match=r'No image with a mask could be .*a\.png is no JPEG'):
    convert(root, out, layout='masks')
  with pytest.raises(DataError, match='lies in'):
    convert(root, root / 'out', layout='masks')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['in']
  out.mkdir()
  (out / 'mine').touch()
  with pytest.raises(DataError, match='there already'):
    convert(root, out, layout='masks')


def save_4_bits(path, ids):
  def chunk(kind, data):
    return (len(data).to_bytes(4, 'big') + kind + data
            + zlib.crc32(kind + data).to_bytes(4, 'big'))

  height, width = ids.shape
  rows = np.pad(ids[:, ::2] << 4 | ids[:, 1::2], ((0, 0), (1, 0)))
  path.write_bytes(
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + b'\4\0\0\0\0')
    + chunk(b'IDAT', zlib.compress(rows.astype(np.uint8).tobytes())) + chunk(b'IEND', b''))


def test_ignored_colours_and_grey_of_fewer_bits(tmp_path):
  for name in 'ab':
    photo(tmp_path / 'in' / 'images' / f'{name}.png')
  colours = np.array([[0, 0, 0], [250, 50, 0], [255, 255, 255]])
  mask = np.resize([0, 1, 2], SIZE)
  save(tmp_path / 'in' / 'masks' / 'a.png', colours[mask])
  save_4_bits(tmp_path / 'in' / 'masks' / 'b.png', np.resize(np.array([0, 1], np.uint8), SIZE))
  (tmp_path / 'in' / 'classes.txt').write_text('sky 0 0 0\ncar 250 50 0\nignore 255 255 255\n')
  convert(tmp_path / 'in', tmp_path / 'out', layout='masks')
  np.testing.assert_array_equal(ids_of(tmp_path / 'out', 'a'), np.where(mask == 2, 255, mask))
  assert 'b.png is grey with 4 bits' in (tmp_path / 'out' / 'conversion.txt').read_text()


def test_lists_of_a_data_folder_are_kept_and_what_cannot_be_scored_stays_out(tmp_path):
  root, out = tmp_path / 'in', tmp_path / 'out'
  for name in 'abcdefg':
    photo(root / 'images' / f'{name}.png')
  for name in 'abef':
    save(root / 'masks' / f'{name}.png', np.resize([0, 1], SIZE))
  (root / 'classes.txt').write_text('sky\ncar\nignore 9 9 9\n')
  for name, ids in {'train': 'abcd', 'val': 'eg', 'test': 'f', '2/labeled': 'abc'}.items():
    path = root / 'splits' / f'{name}.txt'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{id}.png\n' for id in ids))
  report = convert(root, out, layout='masks')
  assert report.lists == {'train': 4, 'val': 1, 'test': 1, '2/labeled': 2}
  assert report.images == 6 and not (out / 'images' / 'g.png').exists()
  assert 'g.png: val.txt or test.txt has it, but there is no mask' in report.text()
  assert report.left_out['c of 2/labeled.txt'] == 'it has no mask'
  assert (out / 'classes.txt').read_text().endswith('ignore 9 9 9\n')
  dataset = folder.read_folder(out, labelled='2')
  sources.check(dataset)
  assert (dataset.labelled, dataset.unlabelled) == (('a', 'b'), ('c', 'd'))
  assert (dataset.validation, dataset.test) == (('e',), ('f',))


@pytest.mark.parametrize('where', ['classes.txt', 'labelmap.txt', '--classes'])
def test_a_palette_in_another_order_than_the_classes_is_read_by_its_colours(tmp_path, where):
  root, ids = tmp_path / 'in', np.resize([0, 1, 2, 255], SIZE)
  photo(root / 'images' / 'a.png')
  picture = Image.fromarray(np.select([ids == 0, ids == 1], [1, 0], ids).astype(np.uint8))
  picture.putpalette([0, 200, 0, 200, 0, 0, 0, 0, 200, *[7] * 3 * 253])
  (root / 'masks').mkdir()
  picture.save(root / 'masks' / 'a.png')
  chosen = None
  if where == 'labelmap.txt':
    (root / where).write_text('red:200,0,0::\ngreen:0,200,0::\nblue:0,0,200::\n')
  else:
    path = root / 'classes.txt' if where == 'classes.txt' else tmp_path / 'mine.txt'
    path.write_text('red 200 0 0\ngreen 0 200 0\nblue 0 0 200\n')
    chosen = path if where == '--classes' else None
  convert(root, tmp_path / 'out', layout='masks', classes=chosen)
  np.testing.assert_array_equal(ids_of(tmp_path / 'out', 'a'), ids)


def test_coco_images_without_annotations_are_unlabelled_and_never_held_out(tmp_path):
  pytest.importorskip('pycocotools')
  box = [{'image_id': 1, 'category_id': 7, 'segmentation': [[2, 1, 6, 1, 6, 5, 2, 5]]}]
  for name in ('train_a', 'val_a'):
    coco(tmp_path / 'in', name, box)
  for name in ('train_b', 'val_b'):
    coco(tmp_path / 'in', name, [])
  report = convert(tmp_path / 'in', tmp_path / 'out', layout='coco')
  assert report.lists == {'train': 2, 'val': 1} and report.images == 3
  assert '1 training images have no annotation: they are unlabelled' in report.text()
  assert not (tmp_path / 'out' / 'images' / 'val_b.jpg').exists()
  with pytest.raises(DataError, match='leave --classes out'):
    convert(tmp_path / 'in', tmp_path / 'new', layout='coco',
            classes=tmp_path / 'out' / 'classes.txt')


def test_coco_images_that_no_file_names_are_unlabelled_beside_those_that_train(tmp_path):
  root, out = tmp_path / 'in', tmp_path / 'out'
  for path in ('a/1', 'a/more', 'v/2', 'v/kept', 'drawn/1_overlay'):
    photo(root / f'{path}.png')
  photo(root / 'a' / '1.jpg')
  panoptic(root, 'panoptic_train', ['a/1.png'])
  panoptic(root, 'panoptic_val', ['v/2.png'])
  for path in (root / 'annotations').glob('*.json'):
    path.write_text('\ufeff' + path.read_text())  # as some tools on Windows begin a file
  report = convert(root, out, layout='coco')
  assert report.lists == {'train': 2, 'val': 1} and report.images == 3
  assert (out / 'images' / 'more.png').exists() and not (out / 'masks' / 'more.png').exists()
  assert (out / 'images' / 'a' / '1.png').exists() and (out / 'masks' / 'a' / '1.png').exists()
  assert report.left_out == {
    'a/1.jpg': 'there is one of this name already',
    '1 files in v': 'no annotation file names them, and beside them only val or test images are '
                    'named',
    '1 files in drawn': 'no annotation file names them, and beside them no image is named'}
  assert '1 training images have no annotation' in report.text()


@pytest.mark.parametrize('wrong', ['testing.txt', 'Val.txt', '2/labelled.txt'])
def test_lists_under_a_name_that_is_not_read_are_refused(tmp_path, wrong):
  root = tmp_path / 'in'
  for id in 'ab':
    photo(root / 'images' / f'{id}.png')
    save(root / 'masks' / f'{id}.png', np.eye(*SIZE))
  path = root / 'splits' / wrong
  path.parent.mkdir(parents=True)
  path.write_text('a')
  with pytest.raises(DataError, match=f'{wrong} is no name of a list'):
    convert(root, tmp_path / 'out', layout='masks')
  path.unlink()
  (root / 'labels').mkdir()
  with pytest.raises(DataError, match='masks and .*labels may each be the folder of masks'):
    convert(root, tmp_path / 'out', layout='masks')


def test_lists_of_voc_under_a_name_that_is_not_read_are_refused(tmp_path):
  photo(tmp_path / 'in' / 'JPEGImages' / 'a.jpg')
  save(tmp_path / 'in' / 'SegmentationClass' / 'a.png', np.eye(*SIZE))
  (tmp_path / 'in' / 'ImageSets' / 'Segmentation').mkdir(parents=True)
  (tmp_path / 'in' / 'ImageSets' / 'Segmentation' / 'valid.txt').write_text('a')
  with pytest.raises(DataError, match='call it val.txt'):
    convert(tmp_path / 'in', tmp_path / 'out', layout='voc')


def test_a_disk_without_links_is_named_with_the_remedy(tmp_path, monkeypatch):
  photo(tmp_path / 'in' / 'images' / 'a.png')
  save(tmp_path / 'in' / 'masks' / 'a.png', np.eye(*SIZE))

  def refuse(source, target, *_, **__):
    raise OSError(errno.EPERM, 'Operation not permitted', str(source), None, str(target))

  monkeypatch.setattr(os, 'symlink', refuse)
  with pytest.raises(DataError, match='cannot hold symbolic links .*add --copy'):
    convert(tmp_path / 'in', tmp_path / 'out', layout='masks')
  convert(tmp_path / 'in', tmp_path / 'out', layout='masks', copy=True)


def test_coco_panoptic_void_is_no_second_class(tmp_path):
  photo(tmp_path / 'in' / 'images' / 'a.jpg')
  panoptic(tmp_path / 'in', 'panoptic_train', ['a.jpg'])
  mask = np.zeros((*SIZE, 3), np.uint8)
  mask[:3] = 1, 0, 0
  save(tmp_path / 'in' / 'annotations' / 'panoptic_train' / 'a.png', mask)
  convert(tmp_path / 'in', tmp_path / 'out', layout='coco')
  np.testing.assert_array_equal(
    ids_of(tmp_path / 'out', 'a'), np.repeat([0, 255], [3, 5])[:, None] * np.ones(10, int))


def test_names_of_an_archive_from_a_mac_are_those_of_lists_and_masks(tmp_path):
  root, out = tmp_path / 'in', tmp_path / 'out'
  decomposed, composed = 'e\N{COMBINING ACUTE ACCENT}', '\N{LATIN SMALL LETTER E WITH ACUTE}'
  for name in (f'{decomposed}1', f'{decomposed}2'):
    photo(root / 'images' / f'{name}.png')
  for name in (f'{composed}1', f'{composed}2'):
    save(root / 'masks' / f'{name}.png', np.resize([0, 1], SIZE))
  (root / 'splits').mkdir()
  (root / 'splits' / 'val.txt').write_text(f'{composed}1\n', encoding='utf-8')
  (root / 'classes.txt').write_text('sky\ncar\n')
  convert(root, out, layout='masks')
  for data in (root, out):
    dataset = folder.read_folder(data, labelled='1')
    sources.check(dataset)
    assert (dataset.labelled, dataset.validation) == ((f'{composed}2',), (f'{composed}1',))


def test_masks_of_one_bit_tell_two_classes(tmp_path):
  root, out, truth = tmp_path / 'in', tmp_path / 'out', np.resize([0, 1, 1], SIZE)
  for name in 'ab':
    photo(root / 'images' / f'{name}.png')
    (root / 'masks').mkdir(exist_ok=True)
    Image.fromarray(truth.astype(bool)).save(root / 'masks' / f'{name}.png')
  (root / 'classes.txt').write_text('sky\ncar\nbus\n')
  (root / 'splits').mkdir()
  (root / 'splits' / 'val.txt').write_text('a\n')
  for use in (lambda: sources.check(folder.read_folder(root, labelled='1')),
              lambda: convert(root, out, layout='masks')):
    with pytest.raises(DataError, match='one bit a pixel, which tells two classes'):
      use()
  (root / 'classes.txt').write_text('sky\ncar\n')
  convert(root, out, layout='masks')
  for data in (root, out):
    dataset = folder.read_folder(data, labelled='1')
    sources.check(dataset)
    np.testing.assert_array_equal(dataset.reader.mask('a'), truth)
    assert ("one bit a pixel: white is 'car'" in dataset.note) == (data == root)


def test_images_that_are_shown_turned_are_told(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  for id in 'abc':
    save(tmp_path / 'in' / 'images' / f'{id}.jpg', np.zeros((*SIZE, 3)), exif=exif)
    size = SIZE[::-1] if id == 'c' else SIZE
    save(tmp_path / 'in' / 'masks' / f'{id}.png', np.resize([0, 1], size))
  report = convert(tmp_path / 'in', tmp_path / 'out', layout='masks')
  assert report.masks == 2 and '2 of 2 images with masks are to be shown turned' in report.text()
  assert 'if EXIF data turn the image, which is not followed here, save' in report.text()


@pytest.mark.parametrize('listed', [True, False])
def test_masks_of_one_bit_may_lie_beside_others_of_black_and_white(tmp_path, listed):
  root, out, truth = tmp_path / 'in', tmp_path / 'out', np.resize([0, 1, 1], SIZE)
  for name in 'ab':
    photo(root / 'images' / f'{name}.png')
  save(root / 'masks' / 'a.png', 255 * truth)
  Image.fromarray(truth.astype(bool)).save(root / 'masks' / 'b.png')
  if listed:
    (root / 'classes.txt').write_text('sky\ncar\n')
  convert(root, out, layout='masks')
  for name in 'ab':
    np.testing.assert_array_equal(np.asarray(Image.open(out / 'masks' / f'{name}.png')), truth)


def test_a_jpeg_is_no_mask_under_any_name(tmp_path):
  root = tmp_path / 'in'
  for name in 'ab':
    photo(root / 'images' / f'{name}.png')
  (root / 'masks').mkdir()
  Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / 'masks' / 'a.png', format='JPEG')
  save(root / 'masks' / 'b.png', np.resize([0, 1], SIZE))
  (root / 'classes.txt').write_text('sky\ncar\n')
  (root / 'splits').mkdir()
  (root / 'splits' / 'val.txt').write_text('a\n')
  with pytest.raises(DataError, match=r'a\.png is a JPEG, which changes ids'):
    sources.check(folder.read_folder(root, labelled='1'))
  report = convert(root, tmp_path / 'out', layout='masks')
  assert 'a.png is a JPEG' in report.text()


def test_an_empty_list_of_unlabelled_images_stays_one(tmp_path):
  for name in 'abc':
    photo(tmp_path / 'in' / 'images' / f'{name}.png')
    save(tmp_path / 'in' / 'masks' / f'{name}.png', np.resize([0, 1], SIZE))
  (tmp_path / 'in' / 'classes.txt').write_text('sky\ncar\n')
  for name, ids in {'val': 'b', '1/labeled': 'a', '1/unlabeled': ''}.items():
    path = tmp_path / 'in' / 'splits' / f'{name}.txt'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ids)
  convert(tmp_path / 'in', tmp_path / 'out', layout='masks')
  for data in ('in', 'out'):
    assert folder.read_folder(tmp_path / data, labelled='1').unlabelled == ()


def test_the_present_folder_is_no_place_for_a_conversion(tmp_path, monkeypatch):
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  with pytest.raises(DataError, match='is the folder that you are in'):
    convert(tmp_path, '.', layout='masks')
