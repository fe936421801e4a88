"""Downloads that go on where they stopped and are taken only with the right checksum."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from gta_jax.data.files import DataError

_CHUNK = 1 << 20
_TIMEOUT_S = 60
_TRIES = 4


def file_sha256(path: Path) -> str:
  """The SHA-256 of a file's bytes, in hexadecimal."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


@dataclasses.dataclass(frozen=True)
class RemoteFile:
  """A file, the places it can be had from, and its fingerprint.

  Attributes:
    name: of the local file; below a mirror, of the remote one as well.
    urls: tried one after the other.
    sha256: the expected value of `fingerprint`, in hexadecimal.
    fingerprint: from a path to a hexadecimal digest; the SHA-256 of the bytes by default.
  """

  name: str
  urls: tuple[str, ...]
  sha256: str
  fingerprint: Callable[[Path], str] = file_sha256


def fetch(file: RemoteFile, folder: Path, *, mirror: str = '') -> Path:
  """Returns the file's path in `folder`; downloads what is missing of it.

  A file that lies there already, from an earlier call or put there by hand, is taken if its
  fingerprint is right. What has arrived of an interrupted download stays as NAME.part. Of several
  processes that ask at once, one downloads and the others wait.

  Args:
    mirror: a base URL that stands in for the file's own URLs: MIRROR/NAME.
  Raises:
    DataError: cannot be reached, remains incomplete, has the wrong checksum, or no room for it.
  """
  path = folder / file.name
  urls = (f'{mirror.rstrip("/")}/{file.name}',) if mirror else file.urls
  if not path.exists():
    with locked(folder):
      if not path.exists():  # Nobody else has got it meanwhile.
        return _fetch_missing(file, urls, path)
  try:
    _verify(file, path)
  except DataError as error:
    raise DataError(f'{path} is not the file of {urls[0]}: {error}; remove it.') from error
  return path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Lets one process at a time into the block; the folder is made if missing."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / '.lock').open('a')
  except OSError as error:
    raise DataError(f'{folder} cannot be written ({error.strerror}), and not all is there yet; '
                    'name a folder of yours with --config.data.store=DIR.') from error
  with lock as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX)  # The system lets go of it when the process ends.
    except OSError as error:
      raise DataError(
        f'{folder} cannot be locked against other processes ({error.strerror}), as on some shared '
        'file systems; name a folder of a local disk with --config.data.store=DIR.') from error
    yield


def _fetch_missing(file: RemoteFile, urls: tuple[str, ...], path: Path) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + '.part')
  failures = []
  for url in urls:
    try:
      _download(url, part)
    except (DataError, urllib.error.URLError, http.client.HTTPException, ConnectionError,
            TimeoutError, ValueError) as error:
      failures.append(f'{url}: {error}')
      continue
    except OSError as error:
      if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise _no_room(part, url) from error
      raise DataError(
        f'{part} cannot be written ({error}); make {part.parent} writable.') from error
    try:
      _verify(file, part)
    except DataError as error:
      part.unlink()
      failures.append(f'{url}: {error}')
      continue
    part.replace(path)
    return path
  raise DataError(
    f'{file.name} cannot be had. {"; ".join(failures)}. Try again, which goes on where it stopped; '
    f'or download it elsewhere and put it at {path}; or name another server with '
    '--config.data.mirror=URL.')


def _verify(file: RemoteFile, path: Path) -> None:
  found = file.fingerprint(path)
  if found != file.sha256:
    raise DataError(f'its SHA-256 is {found}, not {file.sha256}')


def _no_room(part: Path, url: str, needed: int = 0) -> DataError:
  free = shutil.disk_usage(part.parent).free
  needs = f' {needed / 1e9:.2f} GB more are needed,' if needed else ''
  return DataError(
    f'{part.parent} has no room for {url}:{needs} {free / 1e9:.2f} GB are free. Make room and '
    'try again, which goes on where it stopped, or use another folder: --config.data.store=DIR.')


def _download(url: str, part: Path) -> None:
  """Appends to `part` until it is whole; a connection that breaks off is opened again."""
  tries, size, total = 0, 0, None
  while tries < _TRIES:
    before = part.stat().st_size if part.exists() else 0
    total = _append(url, part)
    size = part.stat().st_size
    if total is None or size >= total:
      return
    tries = 0 if size - before > _CHUNK else tries + 1
  raise DataError(f'broke off {_TRIES} times, at last after {size} of {total} bytes')


def _append(url: str, part: Path) -> int | None:
  """Reads on from the end of `part` as far as the connection holds.

  Returns: the whole file's bytes, None where the server does not say.
  """
  start = part.stat().st_size if part.exists() else 0
  request = urllib.request.Request(url, headers={'User-Agent': 'gta_jax', **(
    {'Range': f'bytes={start}-'} if start else {})})
  try:
    response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
  except urllib.error.HTTPError as error:
    if error.code == 416 and start:  # Nothing lies after the end: whole, or the checksum tells.
      return start
    raise
  with response:
    if getattr(response, 'status', None) != 206:  # The server began at the beginning.
      start = 0
    length = response.headers.get('Content-Length')
    total = start + int(length) if length else None
    if total and total - start > shutil.disk_usage(part.parent).free:
      raise _no_room(part, url, total - start)
    with part.open('ab' if start else 'wb') as out, tqdm(
        total=total, initial=start, unit='B', unit_scale=True, desc=part.stem,
        mininterval=1) as progress:
      while chunk := _read(response):
        out.write(chunk)
        progress.update(len(chunk))
  return total


def _read(response: http.client.HTTPResponse) -> bytes:
  """The next bytes; none at the end, and where the connection breaks off, however it does."""
  try:
    return response.read(_CHUNK)
  except (http.client.HTTPException, OSError):
    return b''  # _download opens the connection again.
