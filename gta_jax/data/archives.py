"""Members of archives, read into memory one at a time; nothing is ever extracted to disk.

Members are looked up by the exact names that a data set has, so that a path in an archive leads
nowhere. Links, devices and sparse members are refused, and sizes are bounded before a byte is read.
"""

import contextlib
import functools
import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from gta_jax.data.files import DataError
from gta_jax.data.listing import named

MAX_MEMBER_BYTES = 256 << 20
MAX_MEMBERS = 1_000_000
_MAX_TOTAL_BYTES = 64 << 30  # of a compressed tar, which has to be unpacked from its beginning


class _Member(NamedTuple):
  """What is asked of a member, be it a tar's or a zip's.

  Attributes:
    name: the path in the archive.
    size: in bytes, unpacked.
    plain: whether it is a file whose bytes stand in the archive, no link, device or sparse file.
    open: opens it for reading; None where tarfile knows of nothing to read.
  """

  name: str
  size: int
  plain: bool
  open: Callable[[], IO[bytes] | None]


class Archive:
  """A tar, tgz or zip opened for reading; a context manager.

  Raises: DataError, here and in all methods, for an archive that is damaged or not allowed.
  """

  def __init__(self, path: Path):
    self._path = path
    self._in_order: Callable[[], Iterable[_Member]]
    self._by_name: dict[str, _Member] | None = None  # None: listing would unpack it once more
    with self._errors(), contextlib.ExitStack() as opened:
      if zipfile.is_zipfile(path):
        self._open_zip(opened)
      else:
        self._open_tar(opened)
      self._opened = opened.pop_all()

  def _open_zip(self, opened: contextlib.ExitStack) -> None:
    archive = opened.enter_context(zipfile.ZipFile(self._path))
    members = {info.filename: _zip_member(archive, info) for info in archive.infolist()}
    self._by_name, self._in_order = members, members.values

  def _open_tar(self, opened: contextlib.ExitStack) -> None:
    with self._path.open('rb') as file:
      compressed = file.read(2) == b'\x1f\x8b'
    stream = gzip.open(self._path) if compressed else self._path.open('rb')  # noqa: SIM115
    bounded = opened.enter_context(_Bounded(stream))
    archive = opened.enter_context(tarfile.open(fileobj=bounded, mode='r:'))  # noqa: SIM115
    self._in_order = functools.partial(self._tar_members, archive)
    if not compressed:
      self._by_name = {member.name: member for member in self._in_order()}

  def __enter__(self) -> 'Archive':
    return self

  def __exit__(self, *_) -> None:
    self._opened.close()

  def names(self) -> Collection[str]:
    """All members of a tar or zip."""
    return self._listed().keys()

  def read(self, name: str) -> bytes:
    """The bytes of one member of a tar or zip."""
    with self._errors():
      members = self._listed()
      if name not in members:
        raise DataError(f'{self._path} has no member {name}; it is another archive, or incomplete.')
      return self._bytes(members[name])

  def _listed(self) -> dict[str, _Member]:
    if self._by_name is None:
      raise DataError(f'{self._path} is a compressed tar where a tar or zip is expected; get the '
                      'published archive.')
    return self._by_name

  def stream(self, names: Collection[str], *, complete: bool = True
             ) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the members that are among `names`, in the order of the archive.

    Args:
      complete: whether every name must occur.
    """
    missing = set(names)
    with self._errors():
      for member in self._in_order():
        if member.name in missing:
          missing.remove(member.name)
          yield member.name, self._bytes(member)
        if not missing:
          return
    if missing and complete:
      raise DataError(f'{self._path} has no member {named(sorted(missing))}; it is another '
                      'archive, or incomplete.')

  def _tar_members(self, archive: tarfile.TarFile) -> Iterator[_Member]:
    for count, info in enumerate(archive):
      if count >= MAX_MEMBERS or info.offset_data + info.size > _MAX_TOTAL_BYTES:
        raise DataError(f'{self._path} unpacks to more than {MAX_MEMBERS} members or '
                        f'{_MAX_TOTAL_BYTES >> 30} GiB; it is not the published archive.')
      yield _Member(info.name, info.size, info.isreg() and not info.issparse(),
                    functools.partial(archive.extractfile, info))

  def _bytes(self, member: _Member) -> bytes:
    name, size = member.name, member.size
    if not 0 <= size <= MAX_MEMBER_BYTES:
      raise DataError(f'{self._path}: {name} has {size} bytes, the most is {MAX_MEMBER_BYTES}; it '
                      'is not the published archive.')
    file = member.open() if member.plain else None
    if file is None:
      raise DataError(f'{self._path}: {name} is a link or no plain file; it is not the published '
                      'archive.')
    with file:
      data = file.read(size)
    if len(data) != size:
      raise EOFError(f'{name} ends after {len(data)} of {size} bytes')
    return data

  @contextlib.contextmanager
  def _errors(self):
    try:
      yield
    except DataError:
      raise
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError,
            NotImplementedError, ValueError) as error:
      raise DataError(f'{self._path} is damaged or no archive ({error}); remove it and get it '
                      'again.') from error


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
  # The upper half of a Unix entry's attributes is its mode; 0o12 is a link. Python unpacks the
  # rarer compressions without a bound on memory.
  plain = (info.external_attr >> 28 != 0o12
           and info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
  return _Member(info.filename, info.file_size, plain, functools.partial(archive.open, info))


class _Bounded(io.BufferedIOBase):
  """A file for tarfile that refuses to read a header of hundreds of megabytes at once."""

  def __init__(self, file: io.BufferedIOBase):
    self._file = file

  def read(self, size: int | None = -1, /) -> bytes:
    if size is None or not 0 <= size <= MAX_MEMBER_BYTES:
      raise DataError(f'a header of {size} bytes is asked for; it is not the published archive.')
    return self._file.read(size)

  def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
    return self._file.seek(offset, whence)

  def tell(self) -> int:
    return self._file.tell()

  def close(self) -> None:
    self._file.close()
    super().close()
