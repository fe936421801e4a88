"""Downloads from a server on loopback that breaks off, lies and fills the disk."""

import errno
import hashlib
import http.client
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from gta_jax.data import downloads
from gta_jax.data.downloads import RemoteFile, fetch
from gta_jax.data.files import DataError
from tests.loopback import Server

DATA = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path):
  folder = tmp_path / 'served'
  folder.mkdir()
  (folder / 'a.tar').write_bytes(DATA)
  with Server(folder).running() as running:
    yield running


def remote(server, *, data=DATA, name='a.tar', urls=None):
  return RemoteFile(name, urls or (f'{server.url}/a.tar',), hashlib.sha256(data).hexdigest())


def test_a_file_is_downloaded_once(server, tmp_path):
  path = fetch(remote(server), tmp_path / 'store')
  assert path.read_bytes() == DATA and fetch(remote(server), tmp_path / 'store') == path
  assert server.requests == [('/a.tar', 0)]
  assert sorted(p.name for p in path.parent.iterdir()) == ['.lock', 'a.tar']


def test_of_several_at_once_one_downloads(server, tmp_path):
  # flock excludes threads too, as each opens the lock's file anew.
  with ThreadPoolExecutor(4) as pool:
    paths = list(pool.map(lambda _: fetch(remote(server), tmp_path), range(4)))
  assert paths[0].read_bytes() == DATA and set(paths) == {tmp_path / 'a.tar'}
  assert len(server.requests) == 1


def test_a_folder_that_cannot_be_locked_is_named(server, tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(downloads.fcntl, 'flock', refuse)
  with pytest.raises(DataError, match=r'cannot be locked .*No locks.*data.store=DIR'):
    fetch(remote(server), tmp_path)


def test_a_broken_connection_is_resumed_where_it_stopped(server, tmp_path):
  server.break_after = 4000
  assert fetch(remote(server), tmp_path).read_bytes() == DATA
  assert [start for _, start in server.requests] == [0, 4000, 8000]


@pytest.mark.parametrize('ranges', [True, False])
def test_an_interrupted_download_continues(server, tmp_path, ranges):
  server.ranges = ranges
  (tmp_path / 'a.tar.part').write_bytes(DATA[:5000])
  assert fetch(remote(server), tmp_path).read_bytes() == DATA
  assert server.requests == [('/a.tar', 5000 if ranges else 0)]


def test_a_part_that_is_already_whole_is_taken(server, tmp_path):
  (tmp_path / 'a.tar.part').write_bytes(DATA)
  assert fetch(remote(server), tmp_path).read_bytes() == DATA


def test_a_download_that_stays_truncated_is_named_and_kept(server, tmp_path):
  server.break_after = 100
  with pytest.raises(DataError, match=r'/a.tar: broke off .* after 400 of 10240 bytes'):
    fetch(remote(server), tmp_path)
  assert (tmp_path / 'a.tar.part').stat().st_size == 400 and not (tmp_path / 'a.tar').exists()
  server.break_after = None
  assert fetch(remote(server), tmp_path).read_bytes() == DATA


def test_a_wrong_checksum_is_refused_and_the_next_server_asked(server, tmp_path):
  (server.folder / 'bad.tar').write_bytes(DATA[::-1])
  bad = f'{server.url}/bad.tar'
  with pytest.raises(DataError, match=rf'{bad}: its SHA-256.*put it at .*a.tar.*data.mirror'):
    fetch(remote(server, urls=(bad,)), tmp_path)
  assert not list(tmp_path.glob('a.tar*'))
  assert fetch(remote(server, urls=(bad, f'{server.url}/a.tar')), tmp_path).read_bytes() == DATA


def test_a_file_put_there_by_hand_is_taken_only_if_it_is_the_right_one(server, tmp_path):
  (tmp_path / 'a.tar').write_bytes(DATA)
  assert fetch(remote(server), tmp_path).read_bytes() == DATA and not server.requests
  (tmp_path / 'a.tar').write_bytes(DATA[:-1])
  with pytest.raises(DataError, match=r'a.tar is not the file of .*SHA-256.*remove it'):
    fetch(remote(server), tmp_path)
  assert (tmp_path / 'a.tar').exists()


def test_a_missing_file_and_a_dead_server_are_named(server, tmp_path):
  urls = (f'{server.url}/none.tar', 'http://127.0.0.1:9/a.tar')
  with pytest.raises(DataError, match=r'none.tar.*404.*127.0.0.1:9.*refused.*put it at'):
    fetch(remote(server, urls=urls), tmp_path)


def test_a_mirror_stands_in_for_the_urls(server, tmp_path):
  file = remote(server, urls=('http://127.0.0.1:9/a.tar',))
  assert fetch(file, tmp_path, mirror=server.url + '/').read_bytes() == DATA


def test_a_full_disk_is_said_before_and_during_the_download(server, tmp_path, monkeypatch):
  usage = downloads.shutil.disk_usage(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(downloads.shutil, 'disk_usage', lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match=r'no room for .*a.tar.*more are needed.*data.store'):
      fetch(remote(server), tmp_path)

  (tmp_path / 'a.tar.part').symlink_to('/dev/full')
  with pytest.raises(DataError, match=r'no room for .*a.tar.*goes on where it stopped'):
    fetch(remote(server), tmp_path)


def test_however_a_connection_breaks_off_it_is_no_matter_of_the_disk(
  server, tmp_path, monkeypatch
):
  read, broken = http.client.HTTPResponse.read, []

  def fail_once(self, *size):
    if not broken:
      broken.append(self)
      raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
    return read(self, *size)

  monkeypatch.setattr(http.client.HTTPResponse, 'read', fail_once)
  assert fetch(remote(server), tmp_path).read_bytes() == DATA and broken


def test_a_store_of_another_user_is_named_with_the_remedy(server, tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

  monkeypatch.setattr(downloads.Path, 'open', refuse)
  with pytest.raises(DataError, match=r'cannot be written .*name a folder of yours'):
    fetch(remote(server), tmp_path / 'store')
