"""What the pickle of a torch file may name, and what becomes of it; all else is refused by name."""

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

SAVE_AGAIN = 'save its state dict alone with torch, or as .safetensors'
_MOST_AXES = 64  # of NumPy and of torch
_ENTRY_BYTES = 200  # of a dict or set, about
_SCALARS = (str, bytes, int, float, bool, type(None))


class Refusal(Exception):
  """What is wrong with a file and what helps, as words that follow 'FILE cannot be read: it'."""


def damaged(what: str) -> NoReturn:
  """Raises Refusal; `what` goes on after 'is damaged: its pickle'."""
  raise Refusal(f'is damaged: its pickle {what}; get the file again.')


def checked_key(key: Any) -> Any:
  """A dict's key or a set's member: no tuple of tuples, as hashing one may overflow C's stack."""
  parts = key if isinstance(key, tuple) else (key,)
  if not all(isinstance(part, _SCALARS) for part in parts):
    raise Refusal(f'holds a dict key or set member that is no text or number; {SAVE_AGAIN}.')
  return key


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
  """A storage of the file: its bytes, uint8 [count * itemsize], and what torch says they are."""

  raw: np.ndarray
  dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class StorageClass:
  """Stands for torch.FloatStorage and its like."""

  dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Function:
  """One of ours, in the place of one that a pickle names; called with Tensors before its own."""

  call: Callable[..., Any]


@dataclasses.dataclass
class Tensors:
  """Makes tensors, and keeps account of memory.

  Attributes:
    room: bytes that may still be used, each tensor counted as if it were copied: views may share a
      storage or repeat an element, so that a small file could claim tensors of any size.
    swap: storages are big-endian.
  """

  room: int
  swap: bool = False

  def charge(self, nbytes: int) -> None:
    """Counts memory; raises Refusal when there is no more room."""
    self.room -= nbytes
    if self.room < 0:
      raise Refusal('claims tensors that are many times as large as the file; save copies of '
                    'tensors that are expanded or share their storage.')

  def view(
    self, storage: Storage, offset: int, size: tuple, stride: tuple, dtype: np.dtype,
  ) -> np.ndarray:
    """A read-only view of a storage (a copy if `swap`); offset and stride count elements.

    Raises: Refusal beyond the storage's end or the room; ValueError and TypeError for arguments of
      other types.
    """
    if not (isinstance(storage, Storage) and isinstance(dtype, np.dtype)):
      raise ValueError('a tensor without a storage')
    numbers = (offset, *size, *stride)
    if len(size) > _MOST_AXES or not all(isinstance(n, int) and 0 <= n < 2**63 for n in numbers):
      raise ValueError('a size, stride or offset is out of range')
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and last >= storage.raw.size // dtype.itemsize:
      damaged(f'claims a tensor of shape {str(size)[:100]} beyond the end of its storage')
    self.charge(count * dtype.itemsize)
    if count:
      strides = [step * dtype.itemsize for step in stride]
      # NumPy compares with the buffer's bounds once more.
      values = np.ndarray(size, dtype, storage.raw, offset * dtype.itemsize, strides)
    else:
      values = np.empty(size, dtype)
    values = values.byteswap() if self.swap else values
    values.flags.writeable = False
    return values


def _tensor(
  tensors: Tensors, storage: Storage, offset: int, size: tuple, stride: tuple,
) -> np.ndarray:
  return _tensor_v2(tensors, storage, offset, size, stride, False, None)


def _tensor_v2(
  tensors: Tensors, storage: Storage, offset: int, size: tuple, stride: tuple,
  requires_grad: bool, hooks: Any, metadata: Any = None,
) -> np.ndarray:
  return _tensor_v3(
    tensors, storage, offset, size, stride, requires_grad, hooks, storage.dtype, metadata)


def _tensor_v3(
  tensors: Tensors, storage: Storage, offset: int, size: tuple, stride: tuple,
  _requires_grad: bool, _hooks: Any, dtype: np.dtype, metadata: Any = None,
) -> np.ndarray:
  if metadata:
    raise Refusal(f'holds a tensor that is to be conjugated or negated; {SAVE_AGAIN}.')
  return tensors.view(storage, offset, size, stride, dtype)


def _parameter(_: Tensors, data: np.ndarray, *_rest: Any) -> np.ndarray:
  if not isinstance(data, np.ndarray):
    raise ValueError('a parameter that is no tensor')
  return data


def _size(_: Tensors, numbers: tuple) -> tuple:
  if not isinstance(numbers, tuple):
    raise ValueError('a size that is no tuple')
  return numbers


def _dict(tensors: Tensors, items: Any = ()) -> dict[Any, Any]:
  tensors.charge(_ENTRY_BYTES * len(items))
  pairs = items.items() if isinstance(items, dict) else items  # Python 2 wrote pairs
  return collections.OrderedDict((checked_key(key), value) for key, value in pairs)


def _set(tensors: Tensors, items: list[Any]) -> set[Any]:
  tensors.charge(_ENTRY_BYTES * len(items))
  return set(map(checked_key, items))


def _complex(_: Tensors, real: float, imaginary: float) -> complex:
  return complex(real, imaginary)


def _bytes(tensors: Tensors, text: str, encoding: str) -> bytes:
  tensors.charge(len(text))
  if encoding not in ('latin1', 'latin-1'):
    raise ValueError('an encoding other than latin1')
  return text.encode('latin-1')


def _number_type(_: Tensors, name: str, *_flags: Any) -> np.dtype:
  if name not in _NUMBERS:
    raise Refusal(f'holds a NumPy value that is no plain number; {SAVE_AGAIN}.')
  return _NUMBERS[name]


def _number(_: Tensors, dtype: np.dtype, data: bytes) -> np.generic:
  if not (isinstance(dtype, np.dtype) and isinstance(data, bytes) and len(data) == dtype.itemsize):
    raise ValueError('a NumPy number of another size')
  return np.frombuffer(data, dtype)[0]


_STORAGES = {
  'Double': np.float64, 'Float': np.float32, 'Half': np.float16, 'BFloat16': ml_dtypes.bfloat16,
  'Long': np.int64, 'Int': np.int32, 'Short': np.int16, 'Char': np.int8, 'Byte': np.uint8,
  'Bool': np.bool_, 'ComplexFloat': np.complex64, 'ComplexDouble': np.complex128}
# These have no storage class: the storage is untyped, the dtype stands beside it.
_DTYPES = {
  'uint16': np.uint16, 'uint32': np.uint32, 'uint64': np.uint64,
  'float8_e4m3fn': ml_dtypes.float8_e4m3fn, 'float8_e5m2': ml_dtypes.float8_e5m2}
_NUMBERS = {name: np.dtype(f'<{name}') for name in
            ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'c8', 'c16')}

GLOBALS: dict[str, StorageClass | Function | np.dtype] = {
  **{f'torch.{name}Storage': StorageClass(np.dtype(kind)) for name, kind in _STORAGES.items()},
  'torch.storage.UntypedStorage': StorageClass(np.dtype(np.uint8)),
  **{f'torch.{name}': np.dtype(kind) for name, kind in _DTYPES.items()},
  **{name: Function(call) for name, call in {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor_v2,
    'torch._utils._rebuild_tensor_v3': _tensor_v3,
    'torch._utils._rebuild_parameter': _parameter,
    'torch.Size': _size,
    'collections.OrderedDict': _dict,
    'collections.Counter': _dict,
    'builtins.set': _set,
    'builtins.complex': _complex,
    '_codecs.encode': _bytes,
    'numpy.dtype': _number_type,
    'numpy.core.multiarray.scalar': _number,
    'numpy._core.multiarray.scalar': _number}.items()}}
