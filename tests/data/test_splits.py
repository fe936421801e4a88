"""Splits: published lists fetched or from a folder, seeded draws, and the real lists' laws."""

import pathlib

import pytest

from gta_jax.data import cityscapes, voc
from gta_jax.data.files import DataError, FileReader
from gta_jax.data.sources import check
from gta_jax.data.splits import Catalogue, Lists, choose, ids_sha256, read_ids
from tests import tiny_archives as tiny
from tests.loopback import Server

REAL = pathlib.Path(__file__).parents[3] / 'shared/data/splits'
LABELLED, TRAINING = ('a', 'c'), ('a', 'b', 'c', 'd')
LISTS = Lists(('pascal', 'voc'), {'2': ids_sha256(LABELLED)}, ids_sha256(TRAINING))


@pytest.fixture
def catalogue(tmp_path):
  images, masks = {}, {}
  for id in 'abcdv':
    for files, name, data in ((images, f'{id}.jpg', tiny.jpeg('2007_000001')),
                              (masks, f'{id}.png', tiny.grey_png(tiny.sbd_mask('2007_000001')))):
      (tmp_path / name).write_bytes(data)
      files[id] = str(tmp_path / name)
  return Catalogue('tiny', voc.CLASSES, voc.PALETTE, TRAINING, ('a', 'b', 'c'), ('v',),
                   FileReader(images, masks), checked=False)


def write_lists(folder, labelled='a\nc', unlabelled='b\nd\n'):
  folder.mkdir(parents=True)
  (folder / 'labeled.txt').write_text(labelled)
  (folder / 'unlabeled.txt').write_text(unlabelled)
  return folder


def test_lines_may_be_ids_or_paths_of_image_and_mask(tmp_path):
  (tmp_path / 'x').write_text(
    '2007_000032\n/JPEGImages/2007_000039.jpg /SegmentationClassAug/2007_000039.png\n'
    'leftImg8bit/train/ulm/ulm_000085_000019_leftImg8bit.png\n\n')
  assert read_ids(tmp_path / 'x') == ('2007_000032', '2007_000039', 'ulm_000085_000019')
  for text in ('', 'a\na\n'):
    (tmp_path / 'x').write_text(text)
    with pytest.raises(DataError, match='x is empty or names an id twice'):
      read_ids(tmp_path / 'x')


def test_a_published_list_is_fetched_once_and_verified(tmp_path, catalogue):
  write_lists(tmp_path / 'served/splits/pascal/2')
  with Server(tmp_path / 'served').running() as server:
    for _ in range(2):
      dataset = choose(catalogue, LISTS, split='2', store=tmp_path / 'store', mirror=server.url)
    assert len(server.requests) == 1
    check(dataset)
    assert (dataset.labelled, dataset.unlabelled) == (LABELLED, ('b', 'd'))
    assert dataset.validation == ('v',) and dataset.note == ''
    # Without masks for them, the unlabelled ids come from their list.
    few = Catalogue(**vars(catalogue) | {'training': LABELLED, 'others': ('b', 'd', 'other')})
    dataset = choose(few, LISTS, split='2', store=tmp_path / 'store', mirror=server.url)
    assert dataset.unlabelled == ('b', 'd')
    (tmp_path / 'served/splits/pascal/2/labeled.txt').write_text('a\nb')
    with pytest.raises(DataError, match=r'SHA-256.*split_lists=DIR.*split_source=seeded'):
      choose(catalogue, LISTS, split='2', store=tmp_path / 'other', mirror=server.url)


def test_without_the_lists_the_run_stops_and_says_how_to_go_on(tmp_path, catalogue):
  with pytest.raises(DataError, match=r'cannot be had.*split_lists=DIR.*split_source=seeded'):
    choose(catalogue, LISTS, split='2', store=tmp_path, mirror='http://127.0.0.1:9')
  with pytest.raises(DataError, match=r"split '3' is not published; use one of: 2, or draw"):
    choose(catalogue, LISTS, split='3', store=tmp_path)


@pytest.mark.parametrize('below', ['2', 'pascal/2', 'voc/2'])
def test_lists_are_read_from_the_users_folder(tmp_path, catalogue, below):
  write_lists(tmp_path / 'lists' / below)
  dataset = choose(catalogue, LISTS, split='2', folder=str(tmp_path / 'lists'), store=tmp_path)
  assert dataset.labelled == LABELLED and not dataset.note


def test_other_lists_are_noted_and_unknown_ids_refused(tmp_path, catalogue):
  folder = write_lists(tmp_path / 'lists/2', 'a\nb')
  dataset = choose(catalogue, LISTS, split='2', folder=str(folder.parent), store=tmp_path)
  assert dataset.labelled == ('a', 'b') and 'not a published list' in dataset.note
  (folder / 'labeled.txt').write_text('a\nz')
  with pytest.raises(DataError, match=r"'z' of split 2 has no mask"):
    choose(catalogue, LISTS, split='2', folder=str(folder.parent), store=tmp_path)
  with pytest.raises(DataError, match='lists/4/labeled.txt.*data.split_lists'):
    choose(catalogue, LISTS, split='4', folder=str(folder.parent), store=tmp_path)


def test_the_users_unlabelled_list_is_followed(tmp_path, catalogue):
  folder = write_lists(tmp_path / 'lists/2', unlabelled='d\n')

  def chosen():
    return choose(catalogue, LISTS, split='2', folder=str(folder.parent), store=tmp_path)

  dataset = chosen()
  assert (dataset.labelled, dataset.unlabelled) == (LABELLED, ('d',))
  assert 'unlabeled.txt is not a published list' in dataset.note
  # The published lists of all images name each as both; labelled it is then.
  (folder / 'unlabeled.txt').write_text('a\nb\nc\nd\n')
  assert chosen().unlabelled == ('b', 'd') and not chosen().note
  (folder / 'unlabeled.txt').write_text('b\nz\n')
  with pytest.raises(DataError, match=r"'z' of split 2 has no image"):
    chosen()
  (folder / 'unlabeled.txt').write_text('')  # As a run writes it that has none.
  assert chosen().unlabelled == ()
  (folder / 'unlabeled.txt').unlink()
  assert chosen().unlabelled == ('b', 'd') and not chosen().note


def test_seeded_draws_take_the_careful_masks_first(tmp_path, catalogue):
  def draw(split, **options):
    return choose(catalogue, LISTS, split=split, source='seeded', store=tmp_path, **options)

  drawn = {draw('2', seed=seed).labelled for seed in range(8)}
  assert len(drawn) > 1 and {id for ids in drawn for id in ids} == {'a', 'b', 'c'}
  assert draw('2').unlabelled == tuple(sorted({*TRAINING} - {*draw('2').labelled}))
  assert 'seed 0' in draw('2').note and draw('4').labelled == TRAINING
  with pytest.raises(DataError, match="'x' is not a number"):
    draw('x')
  with pytest.raises(DataError, match="split_source='drawn' is unknown; use one of: published"):
    choose(catalogue, LISTS, split='2', source='drawn', store=tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason='the published lists are not here')
@pytest.mark.parametrize('name, lists, training, validation', [
  ('voc', voc.LISTS, 10_582, 1_449), ('cityscapes', cityscapes.LISTS, 2_975, 500)])
def test_the_real_lists(name, lists, training, validation):
  evaluated = set(read_ids(REAL / name / 'val.txt'))
  assert len(evaluated) == validation
  clean = set(read_ids(REAL / 'voc/1464/labeled.txt'))
  for split, fingerprint in lists.labelled.items():
    labelled, unlabelled = (set(read_ids(REAL / name / split / f'{which}.txt'))
                            for which in ('labeled', 'unlabeled'))
    assert len(labelled) == int(split) and ids_sha256(labelled) == fingerprint
    assert not labelled & unlabelled and not (labelled | unlabelled) & evaluated
    assert len(labelled | unlabelled) == training
    assert ids_sha256(labelled | unlabelled) == lists.training
    if name == 'voc' and int(split) <= 1464:
      assert labelled <= clean

