"""Files that torch.save wrote, without torch: the zip format, and the one before torch 1.6.

    content = load('ckpt_best.pth')  # {'epoch': 80, 'model_state': {'encoder...': array, ...}, ...}

A zip file holds ROOT/data.pkl, a pickle that refers to storages by keys, each storage's bytes as
ROOT/data/KEY, and ROOT/byteorder and ROOT/version. The older format is five pickles (a number that
marks it, its version, facts about the machine, the content, the list of keys), and then the
storages in the order of the keys, each behind the number of its elements.
"""

import io
import mmap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from gta_jax.models.torch_objects import Refusal, Tensors
from gta_jax.models.torch_pickles import Interpreter

_MARK = 0x1950a86a20f9469cfc6c
_LEGACY_VERSION = 1001
_NEWEST_VERSION = 10  # that torch itself reads
_AGAIN = 'get the file again.'


def load(path: str | Path) -> Any:
  """Reads what torch.save wrote; nothing of it is executed.

  Args:
    path: a file of either format.
  Returns: what torch.load does, but read-only arrays for tensors and parameters (bfloat16 as
    ml_dtypes has it), views of storages that they share as in the file, tuples for torch.Size and
    dicts for counters. Memory is bounded by a multiple of the file's size.
  Raises: ValueError for a file that cannot be read, is damaged, or holds anything but tensors,
    containers, numbers and text. In the older format damage to a tensor's numbers goes unnoticed,
    as no checksum stands there.
  """
  path = Path(path)
  try:
    size = path.stat().st_size
    # Room for networks that share storages and for tensors that repeat elements.
    tensors = Tensors(room=16 * size + 2**20)
    with path.open('rb') as file:
      head = file.read(512)
      if head.startswith(b'PK\3\4'):
        with zipfile.ZipFile(file) as archive:
          return _Archive(archive, size).load(tensors)
      if head[257:262] == b'ustar':
        raise Refusal('is a tar archive, as the first versions of torch wrote; load it with torch '
                      'and save it again.')
      # A map, not the file: its `read` allocates no more than there is, whatever a pickle claims.
      with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Legacy(data, tensors).load()
  except Refusal as refusal:
    raise ValueError(f'{path} cannot be read: it {refusal}') from refusal
  except Exception as error:  # zipfile has a dozen kinds for damaged files
    cause = (str(error).strip() or repr(error)).splitlines()[0][:200].removesuffix('.')
    raise ValueError(f'{path} cannot be read: {cause}. Get the file again.') from error


class _Archive:
  """A zip archive of torch.save; `size` is the file's, in bytes."""

  def __init__(self, archive: zipfile.ZipFile, size: int):
    self._archive = archive
    self._left = size
    self._storages: dict[str, np.ndarray] = {}
    names = archive.namelist()
    roots = [name.removesuffix('data.pkl') for name in names
             if name.endswith('/data.pkl') and name.count('/') == 1]
    if len(roots) != 1 or f'{roots[0]}constants.pkl' in names:
      raise Refusal('is a zip archive that torch.save did not write, such as a TorchScript model; '
                    'save its state dict with torch.save.')
    self._root, = roots

  def load(self, tensors: Tensors) -> Any:
    """The content, with tensors made by `tensors`."""
    version = int(self._read('version'))
    if not 1 <= version <= _NEWEST_VERSION:
      raise Refusal(f'has the format of version {version}; save it with torch 2, whose format is '
                    'read here.')
    order = self._read('byteorder', missing=b'little')
    if order not in (b'little', b'big'):
      raise Refusal(f'is damaged: its byte order is {order[:20]!r}; {_AGAIN}')
    tensors.swap = order == b'big'
    return Interpreter(tensors, self._read_storage).run(io.BytesIO(self._read('data.pkl')))

  def _read(self, name: str, missing: bytes | None = None) -> bytes:
    try:
      info = self._archive.getinfo(self._root + name)
    except KeyError:
      if missing is not None:
        return missing
      raise Refusal(f'is damaged: the archive has no {name[:100]}; {_AGAIN}') from None
    # Compressed, a small file could hold gigabytes of zeros.
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
      raise Refusal(f'holds {name[:100]} compressed, which torch.save does not do; load it with '
                    'torch and save it again.')
    self._left -= info.file_size
    if self._left < 0:
      raise Refusal(f'is damaged: its members claim more bytes than it has; {_AGAIN}')
    return self._archive.read(info)  # compares the CRC

  def _read_storage(self, key: str, nbytes: int, _: int) -> np.ndarray:
    if key not in self._storages:
      self._storages[key] = np.frombuffer(self._read(f'data/{key}'), np.uint8)
    found = self._storages[key].size
    if found != nbytes:
      raise Refusal(f'is damaged: storage {key[:100]} has {found} bytes, not {nbytes}; {_AGAIN}')
    return self._storages[key]


class _Legacy:
  """A file of the older format, mapped into memory."""

  def __init__(self, data: mmap.mmap, tensors: Tensors):
    self._data = data
    self._tensors = tensors
    self._left = len(data)
    self._storages: dict[str, tuple[np.ndarray, int]] = {}  # and the size of an element

  def load(self) -> Any:
    """The content. Storages are little-endian whatever the machine was."""
    try:
      marks = self._evaluate(), self._evaluate()
    except Refusal:
      marks = None
    if marks != (_MARK, _LEGACY_VERSION):
      raise Refusal(f'is no file of torch.save, or its start is damaged; {_AGAIN}')
    _machine, content, keys = self._evaluate(), self._evaluate(), self._evaluate()
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)
            and set(keys) == self._storages.keys()):
      raise Refusal(f'is damaged: its list of storages is not that of its tensors; {_AGAIN}')
    for key in keys:
      self._fill(key)
    return content

  def _evaluate(self) -> Any:
    return Interpreter(self._tensors, self._make_storage).run(self._data)

  def _make_storage(self, key: str, nbytes: int, itemsize: int) -> np.ndarray:
    """Room for a storage, whose bytes stand behind the pickle that names it."""
    if key not in self._storages:
      self._left -= nbytes
      if self._left < 0:
        raise Refusal(f'is damaged: its storages claim more bytes than it has; {_AGAIN}')
      self._storages[key] = np.empty(nbytes, np.uint8), itemsize
    raw, _ = self._storages[key]
    if raw.size != nbytes:
      raise Refusal(f'is damaged: storage {key[:100]} has two sizes; {_AGAIN}')
    return raw

  def _fill(self, key: str) -> None:
    raw, itemsize = self._storages[key]
    count, found = int.from_bytes(self._data.read(8), 'little'), self._data.read(raw.size)
    if count * itemsize != raw.size or len(found) != raw.size:
      raise Refusal(f'is damaged: storage {key[:100]} is not whole; {_AGAIN}')
    raw[:] = np.frombuffer(found, np.uint8)
