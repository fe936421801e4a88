"""Archives as they should be, and such that try to reach out of their folder or fill the memory."""

import io
import os
import tarfile
import zipfile

import pytest

from gta_jax.data import archives
from gta_jax.data.archives import Archive
from gta_jax.data.files import DataError

MEMBERS = {'d/a.txt': b'alpha', 'd/b.bin': bytes(3000), 'list.txt': b'a\nb\n'}


def write(path, members, links=()):
  """An archive of the kind of its suffix; `links` are (type, name, target) of tar members."""
  if path.suffix == '.zip':
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
      for name, data in members.items():
        archive.writestr(name, data)
    return path
  with tarfile.open(path, 'w:gz' if path.suffix == '.tgz' else 'w') as archive:
    for kind, name, target in links:
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, target
      archive.addfile(info)
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


@pytest.mark.parametrize('suffix', ['.tar', '.tgz', '.zip'])
def test_members_are_streamed_in_any_archive(tmp_path, suffix):
  path = write(tmp_path / f'x{suffix}', MEMBERS)
  with Archive(path) as archive:
    for _ in range(2):
      assert dict(archive.stream({'d/a.txt', 'list.txt'})) == {
        'd/a.txt': b'alpha', 'list.txt': b'a\nb\n'}
    with pytest.raises(DataError, match=r"x.* has no member 'nothing'; it is"):
      list(archive.stream({'d/a.txt', 'nothing'}))


@pytest.mark.parametrize('suffix', ['.tar', '.zip'])
def test_members_are_read_by_name(tmp_path, suffix):
  with Archive(write(tmp_path / f'x{suffix}', MEMBERS)) as archive:
    assert archive.read('d/b.bin') == MEMBERS['d/b.bin'] and set(archive.names()) == set(MEMBERS)
    with pytest.raises(DataError, match=f'x{suffix} has no member d/c'):
      archive.read('d/c')


def test_a_compressed_tar_in_the_place_of_a_zip_is_refused(tmp_path):
  (tmp_path / 'x.zip').write_bytes(write(tmp_path / 'x.tgz', MEMBERS).read_bytes())
  with Archive(tmp_path / 'x.zip') as archive:
    for ask in (archive.names, lambda: archive.read('d/a.txt')):
      with pytest.raises(DataError, match='x.zip is a compressed tar where a tar or zip'):
        ask()


@pytest.mark.parametrize('suffix', ['.tar', '.tgz', '.zip'])
def test_paths_out_of_the_folder_write_nothing(tmp_path, suffix):
  names = ['../evil', '/tmp/gta_jax_evil', 'd/../../evil']
  inner = tmp_path / 'inner'
  inner.mkdir()
  path = write(inner / f'x{suffix}', dict.fromkeys(names, b'evil') | MEMBERS)
  before = sorted(tmp_path.rglob('*'))
  with Archive(path) as archive:
    assert dict(archive.stream({'d/a.txt'})) == {'d/a.txt': b'alpha'}
  assert sorted(tmp_path.rglob('*')) == before and not os.path.exists('/tmp/gta_jax_evil')


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE,
                                  tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
  path = write(tmp_path / 'x.tar', {}, links=[(kind, 'a.jpg', '/etc/passwd')])
  with Archive(path) as archive, pytest.raises(DataError, match='a.jpg is a link or no plain file'):
    archive.read('a.jpg')


def test_links_in_a_zip_and_unbounded_compressions_are_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
    link = zipfile.ZipInfo('a.jpg')
    link.external_attr = 0o120777 << 16
    archive.writestr(link, '/etc/passwd')
    archive.writestr('b.jpg', bytes(100), zipfile.ZIP_LZMA)
  with Archive(tmp_path / 'x.zip') as archive:
    for name in ('a.jpg', 'b.jpg'):
      with pytest.raises(DataError, match=f'{name} is a link or no plain file'):
        archive.read(name)


@pytest.mark.parametrize('suffix', ['.tar', '.tgz', '.zip'])
def test_bombs_are_refused_before_they_are_read(tmp_path, suffix, monkeypatch):
  monkeypatch.setattr(archives, 'MAX_MEMBER_BYTES', 20_000)
  path = write(tmp_path / f'x{suffix}', {'a': bytes(20_001)})
  with Archive(path) as archive, pytest.raises(DataError, match='a has 20001 bytes, the most is'):
    list(archive.stream({'a'}))
  monkeypatch.setattr(archives, 'MAX_MEMBERS', 2)
  if suffix != '.zip':  # A zip lists no more members than it has bytes.
    path = write(tmp_path / f'x{suffix}', MEMBERS)
    with pytest.raises(DataError, match='more than 2 members'), Archive(path) as archive:
      list(archive.stream({'nothing'}))


def test_a_header_as_large_as_the_memory_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(archives, 'MAX_MEMBER_BYTES', 20_000)
  with tarfile.open(tmp_path / 'x.tgz', 'w:gz', format=tarfile.PAX_FORMAT) as archive:
    archive.addfile(tarfile.TarInfo('n' * 30_000))
  with pytest.raises(DataError, match='a header of'), Archive(tmp_path / 'x.tgz') as archive:
    list(archive.stream({'a'}))


@pytest.mark.parametrize('suffix', ['.tar', '.tgz', '.zip'])
def test_truncated_archives_are_named(tmp_path, suffix):
  path = write(tmp_path / f'x{suffix}', {'a': os.urandom(50_000), 'b': os.urandom(50_000)})
  path.write_bytes(path.read_bytes()[:70_000])
  with (pytest.raises(DataError, match=f'x{suffix} (is damaged|has no member)'),
        Archive(path) as archive):
    list(archive.stream({'a', 'b'}))


def test_a_flipped_byte_in_a_zip_is_found(tmp_path):
  path = write(tmp_path / 'x.zip', {'a': os.urandom(5000)})
  data = bytearray(path.read_bytes())
  data[2000] ^= 1
  path.write_bytes(data)
  with Archive(path) as archive, pytest.raises(DataError, match='x.zip is damaged'):
    archive.read('a')


def test_something_else_is_no_archive(tmp_path):
  (tmp_path / 'x.tar').write_bytes(b'<html>Not found</html>' * 100)
  with pytest.raises(DataError, match='x.tar is damaged or no archive'):
    Archive(tmp_path / 'x.tar')
