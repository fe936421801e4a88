"""From archives on a server to records, batches and a run; interruptions leave no half data set."""

import pickle
import subprocess

import numpy as np
import pytest

from gta_jax.data import builders, pipeline, published, records, sources, voc
from gta_jax.data.downloads import RemoteFile, file_sha256
from gta_jax.data.files import DataError
from gta_jax.data.records import Example
from gta_jax.data.splits import Lists, ids_sha256
from tests import tiny_archives as tiny
from tests.loopback import Server

LABELLED = ('2007_000001', '2008_000003')
CAN_MOUNT = subprocess.run(['true'], check=False).returncode == 0


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
  # The archives are here, only the list was still to be fetched.
  assert [path for path, _ in server.requests[asked:]] == ['/splits/pascal/2/labeled.txt']


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
