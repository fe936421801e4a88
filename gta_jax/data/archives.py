"""Members of archives, read into memory one at a time; nothing is ever extracted to disk.

Members are looked up by the exact names that a data set has, so that a path in an archive leads
nowhere. Links, devices and sparse members are refused, and sizes are bounded before a byte is read.
"""

import contextlib
import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from gta_jax.data.files import DataError

MAX_MEMBER_BYTES = 256 << 20
MAX_MEMBERS = 1_000_000
_MAX_TOTAL_BYTES = 64 << 30  # of a compressed tar, which has to be unpacked from its beginning


class Archive:
  """A tar, tgz or zip opened for reading; a context manager.

  Raises: DataError, here and in all methods, for an archive that is damaged or not allowed.
  """

  def __init__(self, path: Path):
    self._path = path
    with self._errors():
      if zipfile.is_zipfile(path):
        self._zip, self._tar = zipfile.ZipFile(path), None
        infos = self._zip.infolist()
        self._infos = {info.filename: info for info in infos}
        return
      with path.open('rb') as file:
        compressed = file.read(2) == b'\x1f\x8b'
      self._zip = None
      stream = gzip.open(path) if compressed else path.open('rb')  # noqa: SIM115  see __exit__
      self._tar = tarfile.open(fileobj=_Bounded(stream), mode='r:')  # noqa: SIM115
      # Listing a compressed tar would unpack all of it once more.
      self._infos = None if compressed else {info.name: info for info in self._tar_infos()}

  def __enter__(self) -> 'Archive':
    return self

  def __exit__(self, *_) -> None:
    archive = self._zip or self._tar
    if self._tar:
      self._tar.fileobj.close()
    archive.close()

  def names(self) -> Collection[str]:
    """All members of a tar or zip."""
    return self._listed().keys()

  def read(self, name: str) -> bytes:
    """The bytes of one member of a tar or zip."""
    with self._errors():
      if name not in self._listed():
        raise DataError(f'{self._path} has no member {name}; it is another archive, or incomplete.')
      return self._bytes(self._infos[name])

  def _listed(self) -> dict[str, tarfile.TarInfo | zipfile.ZipInfo]:
    if self._infos is None:
      raise DataError(f'{self._path} is a compressed tar where a tar or zip is expected; get the '
                      'published archive.')
    return self._infos

  def stream(self, names: Collection[str], *, complete: bool = True
             ) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the members that are among `names`, in the order of the archive.

    Args:
      complete: whether every name must occur.
    """
    missing = set(names)
    with self._errors():
      for info in (self._tar_infos() if self._tar else self._infos.values()):
        name = info.name if self._tar else info.filename
        if name in missing:
          missing.remove(name)
          yield name, self._bytes(info)
        if not missing:
          return
    if missing and complete:
      raise DataError(f'{self._path} has no member {min(missing)} (and {len(missing) - 1} more are '
                      'missing); it is another archive, or incomplete.')

  def _tar_infos(self) -> Iterator[tarfile.TarInfo]:
    for count, info in enumerate(self._tar):
      if count >= MAX_MEMBERS or info.offset_data + info.size > _MAX_TOTAL_BYTES:
        raise DataError(f'{self._path} unpacks to more than {MAX_MEMBERS} members or '
                        f'{_MAX_TOTAL_BYTES >> 30} GiB; it is not the published archive.')
      yield info

  def _bytes(self, info: tarfile.TarInfo | zipfile.ZipInfo) -> bytes:
    if self._tar:
      name, size, plain = info.name, info.size, info.isreg() and not info.issparse()
    else:
      # The upper half of a Unix entry's attributes is its mode; 0o12 is a link. Python unpacks the
      # rarer compressions without a bound on memory.
      plain = (info.external_attr >> 28 != 0o12
               and info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
      name, size = info.filename, info.file_size
    if not plain:
      raise DataError(f'{self._path}: {name} is a link or no plain file; it is not the published '
                      'archive.')
    if not 0 <= size <= MAX_MEMBER_BYTES:
      raise DataError(f'{self._path}: {name} has {size} bytes, the most is {MAX_MEMBER_BYTES}; it '
                      'is not the published archive.')
    with (self._tar.extractfile(info) if self._tar else self._zip.open(info)) as file:
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


class _Bounded:
  """A file for tarfile that refuses to read a header of hundreds of megabytes at once."""

  def __init__(self, file: IO[bytes]):
    self._file = file
    self.seek, self.tell, self.close = file.seek, file.tell, file.close

  def read(self, size: int = -1) -> bytes:
    if not 0 <= size <= MAX_MEMBER_BYTES:
      raise DataError(f'a header of {size} bytes is asked for; it is not the published archive.')
    return self._file.read(size)
