import pathlib

import cv2
import numpy as np
import pytest
from PIL import Image

from gta_jax.data import sources
from gta_jax.data.folder import read_folder
from gta_jax.data.sources import DataError, check
from tests.data.small_folder import jpeg, mask, write_list


def test_folder_gives_every_image_its_role(folder):
  dataset = read_folder(folder, labelled='2')
  check(dataset)
  assert dataset.labelled == ('a', 'b')
  assert dataset.unlabelled == ('d', 'e', 'f')
  assert dataset.validation == ('c', 'h')
  assert dataset.classes == ('road', 'traffic light', 'car')
  assert dataset.test == ('g',) and '3 images are in no list; they are used' in dataset.note
  assert dataset.palette[[0, 2]].tolist() == [[128, 64, 128], [64, 0, 128]]
  assert dataset.reader.has_mask('a') and not dataset.reader.has_mask('e')
  assert dataset.reader.size('a') == (12, 16) == dataset.reader.image('a').shape[:2]


def test_an_unlabelled_list_is_kept_to(folder):
  write_list(folder, '2/unlabeled.txt', 'fd')
  assert read_folder(folder, labelled='2').unlabelled == ('f', 'd')


def test_lists_may_have_extensions_blank_lines_and_crlf(folder):
  jpeg(folder / 'images' / 'city' / 'x.1.JPG')
  mask(folder / 'masks' / 'city' / 'x.1.png', [0])
  write_list(folder, '2/labeled.txt', ['\ufeffa.jpg', '', ' city/x.1 ', 'b.png', ''], end='\r\n')
  dataset = read_folder(folder, labelled='2')
  check(dataset)
  assert dataset.labelled == ('a', 'city/x.1', 'b')


def broken(folder, name, data):
  (folder / name).write_bytes(data)


def cut(path, end):
  path.write_bytes(path.read_bytes()[:end])


def deep_mask(folder):
  cv2.imwrite(str(folder / 'masks' / 'a.png'), np.full((12, 16), 256, np.uint16))


def one_bit_mask(folder):
  Image.new('1', (16, 12)).save(folder / 'masks' / 'a.png')


def half_a_validation_image(folder):
  Image.new('RGB', (16, 12)).save(folder / 'images' / 'c.jpg', 'BMP')  # no header tells of a cut
  cut(folder / 'images' / 'c.jpg', -200)


@pytest.mark.parametrize(('damage', 'message'), [
    (half_a_validation_image, r'c\.jpg (is damaged|cannot be decoded|is truncated)'),
    (lambda f: cut(f / 'images' / 'f.jpg', -40), r'f\.jpg is truncated.*copy'),
    (lambda f: cut(f / 'images' / 'f.jpg', 0), r'f\.jpg is empty; copy or download'),
    (lambda f: cut(f / 'masks' / 'a.png', -20), r'a\.png is truncated.*copy'),
    (lambda f: broken(f, 'images/e.jpg', b'hello'), r'e\.jpg is no JPEG.*convert'),
    (lambda f: broken(f, 'images/e.jpg', b'\xff\xd8\xff\xda\xff\xd9'), r'e\.jpg is damaged'),
    (lambda f: broken(f, 'masks/a.png', b'hello'), r'a\.png is no JPEG'),
    (lambda f: (f / 'images' / 'f.jpg').unlink(), r'f\.jpg cannot be read.*restore'),
    (lambda f: jpeg(f / 'images' / 'b.jpg', size=(11, 16)), r'b\.png has height.*export'),
    (lambda f: mask(f / 'masks' / 'c.png', [0, 3, 77]), r"'c' holds \[3, 77\].*0 to 2.*renumber"),
    (deep_mask, r'a\.png holds 256; a mask holds class ids'),
    (one_bit_mask, r'a\.png has one bit a pixel, .* there are 3.*export'),
])
def test_check_refuses_damaged_files(folder, damage, message):
  dataset = read_folder(folder, labelled='2')
  check(dataset)
  damage(folder)
  with pytest.raises(DataError, match=message):
    check(dataset)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda f: write_list(f, 'val.txt', ['c', 'a']), "'a'.*both labelled and validation.*remove"),
    (lambda f: write_list(f, '2/unlabeled.txt', 'bd'), "'b'.*both labelled and unlabelled"),
    (lambda f: write_list(f, '2/unlabeled.txt', 'dc'), "'c'.*both unlabelled and validation"),
    (lambda f: write_list(f, 'test.txt', 'c'), "'c'.*both validation and test"),
    (lambda f: write_list(f, '2/labeled.txt', ['', '']), 'labelled split.*is empty'),
    (lambda f: write_list(f, 'val.txt', []), 'validation split.*is empty'),
    (lambda f: write_list(f, '2/labeled.txt', 'ae'), r"'e'.*no mask; add masks/e\.png"),
])
def test_check_refuses_wrong_roles(folder, change, message):
  change(folder)
  with pytest.raises(DataError, match=message):
    check(read_folder(folder, labelled='2'))


def test_test_images_and_those_of_their_masks_that_exist_are_checked_as_well(folder):
  write_list(folder, 'test.txt', 'ef')
  check(read_folder(folder, labelled='2'))
  mask(folder / 'masks' / 'e.png', [0, 77])
  with pytest.raises(DataError, match=r"'e' holds \[77\]"):
    check(read_folder(folder, labelled='2'))
  (folder / 'masks' / 'e.png').unlink()
  cut(folder / 'images' / 'f.jpg', -40)
  with pytest.raises(DataError, match=r'f\.jpg is truncated'):
    check(read_folder(folder, labelled='2'))


def all_masks(folder, ids, of='abcdh'):
  for id in of:
    mask(folder / 'masks' / f'{id}.png', ids)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda f: all_masks(f, [255], of='ab'), r'All pixels of the 2 labelled masks.*255 \(ignore\)'),
    (lambda f: all_masks(f, [0, 255]), r"the 2 labelled masks of .* hold 'road' alone.*0 and 255"),
    (lambda f: all_masks(f, [0], of='ch'), r"the 2 validation masks of .* hold 'road' alone"),
    (lambda f: (f / 'classes.txt').write_text('crack\n'), "names crack alone, .* background"),
    (lambda f: all_masks(f, [0, 1]), r"No labelled or validation mask .* 'car' \(class 2\)"),
])
def test_masks_from_which_nothing_can_be_learnt_are_refused(folder, change, message):
  change(folder)
  dataset = read_folder(folder, labelled='2')
  with pytest.raises(DataError, match=message):
    sources.check_classes(dataset, check(dataset))


def test_masks_that_are_odd_and_possible_are_named(folder):
  dataset = read_folder(folder, labelled='2')
  assert sources.check_classes(dataset, check(dataset)) == []
  all_masks(folder, [255], of='a')
  all_masks(folder, [0, 1], of='b')
  all_masks(folder, [0, 2], of='ch')
  notes = sources.check_classes(dataset, check(dataset))
  assert [note.partition(' of ')[0] for note in notes] == [
    '1', "No validation mask holds 'traffic light': it is not scored, but counts as 0 in the mean",
    "No labelled mask holds 'car': it is never learnt."]
  assert "such as 'a'" in notes[0]


@pytest.mark.parametrize(('change', 'message'), [
    (lambda f: (f / 'splits' / '2' / 'labeled.txt').unlink(), r'labeled\.txt cannot be read'),
    (lambda f: (f / 'classes.txt').unlink(), r'classes\.txt cannot be read'),
    (lambda f: (f / 'images').rename(f / 'pictures'), r'images does not exist.*holds images/'),
    (lambda f: (f / 'masks').rename(f / 'labels'), r'masks does not exist'),
    (lambda f: write_list(f, 'val.txt', ['c', 'nobody']), r"val\.txt, line 2.*'nobody'.*remove"),
    (lambda f: write_list(f, 'val.txt', ['../images/c']), r"val\.txt, line 1: no image below"),
    (lambda f: write_list(f, 'val.txt', [str(f / 'images' / 'c.jpg')]), r'line 1: no image below'),
    (lambda f: write_list(f, 'val.txt', 'chc'), r"line 3: 'c' is on line 1 already"),
    (lambda f: broken(f, 'splits/val.txt', b'\xff\xfe\x00c'), r'val\.txt is not UTF-8'),
    (lambda f: jpeg(f / 'images' / 'c.jpeg'), r"c\.jpeg and .*c\.jpg have the same id 'c'"),
    (lambda f: broken(f, 'classes.txt', b''), 'names 0 classes'),
    (lambda f: broken(f, 'classes.txt', b'sky\nsky'), "line 2: 'sky' is named twice"),
    (lambda f: broken(f, 'classes.txt', b'sky 1 2 256'), 'colour above 255'),
    (lambda f: broken(f, 'classes.txt', b'# phases\nsky\ncar\n'), r"line 1: '# ph.* remove it"),
    (lambda f: broken(f, 'classes.txt', b'sky\ncar 20 80\n'), "2: 'car 20 80' ends in numbers"),
    (lambda f: broken(f, 'classes.txt', b'sky,1,1,1\ncar\n'), "'sky,1,1,1' ends in numbers"),
    (lambda f: broken(f, 'classes.txt', b'1: sky\n2: car 1 2 3\n'), "its lines, as in '1: sky'"),
    (lambda f: broken(f, 'splits/val.txt', b'sub\\a\n'), r"'sub.*' \(there is 'a'\); add"),
])
def test_reading_refuses_wrong_lists(folder, change, message):
  change(folder)
  with pytest.raises(DataError, match=message):
    read_folder(folder, labelled='2')


def test_unknown_split_names_the_known(folder):
  with pytest.raises(DataError, match=r'half does not exist; name one of.*\(2\)'):
    read_folder(folder, labelled='half')
  with pytest.raises(DataError, match='does not exist'):
    read_folder(folder, labelled='../splits/2')


def test_truncation_is_seen_while_training(folder):
  dataset = read_folder(folder, labelled='2')
  cut(folder / 'images' / 'a.jpg', -30)
  with pytest.raises(DataError, match=r'a\.jpg is truncated'):
    dataset.reader.image('a')


@pytest.fixture
def many(tmp_path):
  """Forty images; class 1 in five of them, class 2 in one, class 3 in none."""
  for index in range(40):
    jpeg(tmp_path / 'images' / f'{index:02}.jpg', size=(4, 4))
    ids = [0] + [1] * (index % 8 == 0) + [2] * (index == 17)
    mask(tmp_path / 'masks' / f'{index:02}.png', ids, size=(4, 4))
  (tmp_path / 'classes.txt').write_text('zero\none\ntwo\n')
  write_list(tmp_path, 'val.txt', ['38', '39'])
  return tmp_path


@pytest.mark.parametrize('seed', range(4))
def test_drawn_subset_covers_the_classes_and_says_so(many, seed):
  dataset = read_folder(many, labelled='3', seed=seed)
  check(dataset)
  assert len(dataset.labelled) == 3 and '17' in dataset.labelled
  assert any(int(id) % 8 == 0 for id in dataset.labelled)
  assert len(dataset.unlabelled) == 35 and dataset.validation == ('38', '39')
  assert 'Drew 3 of 38' in dataset.note and f'seed {seed}' in dataset.note
  assert 'not among them' not in dataset.note


def test_drawn_subsets_are_seeded_and_nested(many):
  draw = lambda count, seed: read_folder(many, labelled=count, seed=seed).labelled  # noqa: E731
  assert draw('10', 1) == draw('10', 1) != draw('10', 2)
  assert draw('10', 1)[:4] == draw('4', 1)


def test_drawing_names_what_it_cannot_cover_and_keeps_to_the_training_list(many):
  (many / 'classes.txt').write_text('zero\none\ntwo\nthree\n')
  assert 'not among them: three.' in read_folder(many, labelled='9').note
  write_list(many, 'train.txt', ['01', '02', '17', '39'])
  dataset = read_folder(many, labelled='2')
  assert set(dataset.labelled) <= {'01', '02', '17'} and '17' in dataset.labelled
  assert 'not among them: one, three.' in dataset.note
  with pytest.raises(DataError, match='4 labelled images are wanted, but 3'):
    read_folder(many, labelled='4')


def test_default_palette_is_vocs():
  assert sources.default_palette(5).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0],
                                                 [0, 0, 128]]
  assert sources.default_palette(20)[15].tolist() == [192, 128, 128]


def test_camvid_is_sound():
  camvid = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'camvid'
  if not camvid.exists():
    pytest.skip('CamVid is not at hand.')
  dataset = read_folder(camvid, labelled='46')
  check(dataset)
  assert [len(ids) for ids in (dataset.labelled, dataset.unlabelled, dataset.validation)] == [
      46, 321, 101]
  assert len(dataset.classes) == 11 and dataset.classes[3] == 'road'
