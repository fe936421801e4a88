"""Files in the formats of torch, by torch and by hand."""

import struct
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip('torch')

FORMATS = pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])


def save(content, path, *, zipped=True, **options):
  torch.save(content, path, _use_new_zipfile_serialization=zipped, **options)
  return path


def assert_same(ours, theirs):
  """What torch.load returns, with arrays for tensors: types, numbers and bits."""
  if isinstance(theirs, torch.Tensor):
    theirs = theirs.detach()
    assert type(ours) is np.ndarray and ours.shape == tuple(theirs.shape)
    assert ours.dtype.name == str(theirs.dtype).removeprefix('torch.')
    assert ours.tobytes() == theirs.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
  elif isinstance(theirs, dict):
    assert isinstance(ours, dict) and list(ours) == list(theirs)
    assert [type(key) for key in ours] == [type(key) for key in theirs]
    for key, value in theirs.items():
      assert_same(ours[key], value)
  elif isinstance(theirs, list | tuple):
    assert isinstance(ours, tuple if isinstance(theirs, tuple) else list)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
      assert_same(one, other)
  else:
    assert type(ours) is type(theirs) and ours == theirs


def archive(path, pickled, **members):
  """A file in torch's zip format around bytes that torch did not write."""
  with zipfile.ZipFile(path, 'w') as file:
    for name, data in {'data.pkl': pickled, 'version': b'3\n', **members}.items():
      file.writestr(f'archive/{name.replace("__", "/")}', data)
  return path


def text(value):
  return b'X' + struct.pack('<I', len(value)) + value.encode()


def tensor_pickle(*, count=3, offset=b'K\0', size=b'K\3', stride=b'K\1', kind=b'FloatStorage'):
  storage = b'(' + text('storage') + b'ctorch\n' + kind + b'\n' + text('0') + text('cpu')
  storage += b'J' + struct.pack('<i', count) + b'tQ'
  return (b'\x80\x02ctorch._utils\n_rebuild_tensor\n(' + storage + offset + b'(' + size + b't('
          + stride + b'ttR.')
