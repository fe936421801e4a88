"""From archives on a server to records, batches and a run; interruptions leave no half data set."""

import dataclasses
import os
import pickle
import subprocess

import numpy as np
import pytest

from configs import voc as voc_config
from gta_jax import command
from gta_jax.data import builders, pipeline, published, records, sources, voc
from gta_jax.data.downloads import RemoteFile, file_sha256
from gta_jax.data.files import DataError
from gta_jax.data.records import Example
from gta_jax.data.splits import Lists, ids_sha256
from gta_jax.inference import finished
from gta_jax.reporting import report
from gta_jax.training import loop, setup
from tests import tiny_archives as tiny
from tests.loopback import Server

LABELLED = ('2007_000001', '2008_000003')


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  """Serves both archives of VOC and the list of split 2."""
  folder = tmp_path_factory.mktemp('served')
  tiny.write_tar(folder / 'VOCtrainval_11-May-2012.tar', tiny.voc_members())
  tiny.write_tar(folder / 'benchmark.tgz', tiny.sbd_members())
  tiny.write_tree(folder / 'splits/pascal/2', {'labeled.txt': '\n'.join(LABELLED).encode()})
  with Server(folder).running() as running:
    yield running


@pytest.fixture
def tiny_voc(server, monkeypatch):
  """The data set `voc` with the tiny archives' fingerprints."""
  files = [RemoteFile(name, (f'{server.url}/{name}',), file_sha256(server.folder / name))
           for name in ('VOCtrainval_11-May-2012.tar', 'benchmark.tgz')]
  source = voc.Source(*files, training=ids_sha256(tiny.AUGMENTED))
  monkeypatch.setattr(voc, 'Source', lambda: source)
  monkeypatch.setattr(voc, 'LISTS', Lists(('pascal', 'voc'), {'2': ids_sha256(LABELLED)},
                                          ids_sha256(tiny.AUGMENTED)))
  return source


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return tmp_path_factory.mktemp('store')


def read(store, server):
  return published.read('voc', split='2', store=str(store), mirror=server.url)


def test_from_a_download_to_batches(tiny_voc, server, store):
  dataset = read(store, server)
  sources.check(dataset)
  assert dataset.labelled == LABELLED and dataset.checked
  assert set(dataset.unlabelled) == set(tiny.AUGMENTED) - set(LABELLED)
  assert dataset.validation == tiny.VOC_VALIDATION
  reader = pickle.loads(pickle.dumps(dataset.reader))
  for id in (*tiny.AUGMENTED, *tiny.VOC_VALIDATION):
    expected = (tiny.voc_mask if id in tiny.VOC_TRAIN + tiny.VOC_VALIDATION else tiny.sbd_mask)(id)
    np.testing.assert_array_equal(reader.mask(id), expected)
    assert reader.size(id) == reader.image(id).shape[:2] == tiny.size_of(id)
    assert reader.has_mask(id) and not reader.has_mask('nothing')
  for stream, key in (('labelled', 'label'), ('unlabelled', 'valid')):
    batch = next(pipeline.training_stream(dataset, stream=stream, batch_size=3, crop_size=16,
                                          seed=0, threads=4))
    assert batch['image'].shape == (3, 16, 16, 3) and batch[key].shape == (3, 16, 16)


def test_an_unknown_split_is_refused_before_a_download(tiny_voc, server, tmp_path):
  asked = len(server.requests)
  for options in ({'split': '3'}, {'split': 'x', 'split_source': 'seeded'},
                  {'split': '2', 'split_lists': str(tmp_path)}):
    with pytest.raises(DataError, match=r'not published|not a number|2/labeled.txt exists'):
      published.read('voc', store=str(tmp_path / 'store'), mirror=server.url, **options)
  assert len(server.requests) == asked and not (tmp_path / 'store').exists()


def test_where_downloads_lie(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  monkeypatch.delenv('GTA_JAX_DATA', raising=False)
  assert str(published.store_folder('')) == '/home/me/gta_jax_data'
  monkeypatch.setenv('GTA_JAX_DATA', '/disk')
  assert [str(published.store_folder(given)) for given in ('', '~/x')] == ['/disk', '/home/me/x']


def test_prepared_records_are_not_prepared_again(tiny_voc, server, store, monkeypatch):
  read(store, server)
  asked = len(server.requests)
  monkeypatch.setattr(builders, 'write', None)
  assert read(store, server).labelled == LABELLED and len(server.requests) == asked


def test_an_interruption_halfway_is_repeated_cleanly(tiny_voc, server, tmp_path, monkeypatch):
  whole = type(tiny_voc).examples

  def broken(self, *archives):
    found = whole(self, *archives)

    def stop():
      yield next(found['clean'])
      raise KeyboardInterrupt

    return found | {'clean': stop()}

  with monkeypatch.context() as patch:
    patch.setattr(type(tiny_voc), 'examples', broken)
    with pytest.raises(KeyboardInterrupt):
      read(tmp_path, server)
  assert not (tmp_path / 'voc_aug/1.0.0').exists()
  killed = tmp_path / 'voc_aug/incomplete.ABCDEF_1.0.0'  # What SIGKILL leaves.
  killed.mkdir()
  asked = len(server.requests)
  assert len(read(tmp_path, server).unlabelled) == len(tiny.AUGMENTED) - 2
  assert not killed.exists()
  assert len(server.requests) == asked  # The list and the archives are here.


def test_an_interruption_before_the_index_is_repeated_and_a_lost_shard_is_named(
    tiny_voc, server, tmp_path):
  before = read(tmp_path, server)
  folder = tmp_path / 'voc_aug/1.0.0'
  (folder / 'index.json').unlink()
  assert read(tmp_path, server).reader == before.reader
  shard = next(folder.glob('*augmented*'))
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(DataError, match=r'a shard is missing or has another size; remove the folder'):
    read(tmp_path, server)
  (folder / 'index.json').write_text('{"entries": {')
  with pytest.raises(DataError, match=r'index.json is damaged; remove it'):
    read(tmp_path, server)


@pytest.mark.parametrize('example, message', [
  (Example('a', b'\xff\xd8', b''), 'a: the image is damaged'),
  (Example('a', tiny.jpeg('2007_000001'), tiny.grey_png(tiny.voc_mask('2008_000002'))),
   'the image has height and width'),
  (Example('a', tiny.jpeg('2007_000001'), tiny.grey_png(0 * tiny.voc_mask('2007_000001') + 21)),
   'The mask of a holds ids from 21 to 254'),
])
def test_examples_that_could_not_be_read_later_are_not_written(tmp_path, example, message):
  class Wrong(voc.Source):
    def archives(self, folder, *, mirror=''):
      return ()

    def examples(self, *archives):
      return {'clean': iter([example])}

  with pytest.raises(DataError, match=message):
    records.prepare(Wrong(), tmp_path)
  assert not list((tmp_path / 'voc_aug').glob('*'))


@pytest.mark.parametrize('ids, message', [
  (b'2007_000001\n' * 2, "voc_aug has '2007_000001' twice"),
  (b'2007_000033', "voc_aug has '2007_000033' twice"),  # It is a validation image.
  (b'', 'voc_aug has no clean images'),
  (b'\xff\xfe', 'a list of VOC or SBD is no text'),
])
def test_lists_in_archives_that_cannot_be(tiny_voc, server, tmp_path, ids, message):
  member = 'VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt'
  path = tiny.write_tar(tmp_path / 'x.tar', tiny.voc_members() | {member: ids})

  class Changed(type(tiny_voc)):
    def archives(self, folder, *, mirror=''):
      return path, server.folder / 'benchmark.tgz'

  with pytest.raises(DataError, match=message):
    records.prepare(Changed(training=''), tmp_path)
  assert not list((tmp_path / 'voc_aug').glob('*'))


@pytest.fixture
def small_disk(tmp_path):
  """A file system of half a megabyte."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', str(folder)]
  if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
    pytest.skip('mounting a small disk needs root')
  yield folder
  subprocess.run(['umount', '-l', str(folder)], check=False)


@dataclasses.dataclass(frozen=True)
class Noise(voc.Source):
  """Examples of 100 kB that need no archives."""

  def archives(self, folder, *, mirror=''):
    return ()

  def examples(self, *archives):
    def one(index):
      height = 150 + index
      pixels = np.random.default_rng(index).integers(0, 256, (height, 200, 3), np.uint8)
      mask = tiny.grey_png(np.zeros((height, 200), np.uint8))
      return Example(f'id{index}', tiny.grey_png(pixels), mask)

    return {'clean': map(one, range(8)), 'validation': map(one, range(8, 10))}


def test_a_full_disk_is_said_and_leaves_nothing_half(small_disk):
  with pytest.raises(DataError, match=f'{small_disk} cannot be written: make room.*No space left'):
    records.prepare(Noise(), small_disk)
  assert not (small_disk / 'voc_aug/1.0.0').exists()
  subprocess.run(['mount', '-o', 'remount,size=20m', str(small_disk)], check=True)
  splits, _ = records.read(Noise(), records.prepare(Noise(), small_disk))
  assert {split: len(ids) for split, ids in splits.items()} == {'clean': 8, 'validation': 2}


@pytest.mark.slow
def test_from_a_download_to_figures(tiny_voc, server, tmp_path, capsys):
  config = voc_config.get_config('2,method=sup_only')
  config.update_from_flattened_dict({
    'data.mirror': server.url, 'data.store': str(tmp_path / 'store'), 'data.crop': 24,
    'model.weights': '', 'model.depth': 10, 'model.width': 0.125, 'model.multi_grid': (),
    'train.labelled_batch': 2, 'train.unlabelled_batch': 2, 'train.epochs': 1,
    'evaluate.pictures': 1})
  command._prepare(config, None)
  assert 'voc_aug is ready: 2 labelled, 5 unlabelled, 2 validation' in capsys.readouterr().out
  results = loop.train(setup.make_run(config), tmp_path / 'run')
  assert results['last']['step'] == 2 and results['labelled_sha256'] == ids_sha256(LABELLED)
  evaluation = finished.evaluate_run(tmp_path / 'run', None, protocols=['whole'])
  found = evaluation['protocols']['whole']['teacher']['miou']
  assert found == pytest.approx(results['last']['teacher']['miou'], abs=1e-9)
  page = report.write_report([tmp_path / 'run'], tmp_path / 'report').read_text()
  assert 'sup_only' in page and f'{100 * found:.2f}' in page
