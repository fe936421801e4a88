"""Files that are no plain torch files are refused, in little memory."""

import io
import os
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from gta_jax.models.pretrained import load_state_dict
from gta_jax.models.torch_files import load
from tests.models.torch_archives import FORMATS, archive, save, tensor_pickle, text, torch


class Calls:
  def __init__(self, function, *arguments):
    self.reduced = function, arguments

  def __reduce__(self):
    return self.reduced


@FORMATS
@pytest.mark.parametrize(('function', 'arguments', 'named'), [
  (os.system, ('touch {}',), 'posix.system'), (eval, ('open({!r}, "w")',), 'builtins.eval'),
  (getattr, (np, 'zeros'), 'builtins.getattr'), (bytearray, (10**12,), 'builtins.bytearray'),
  (torch.device, ('cpu',), 'torch.device'),
  (torch.nn.Conv2d, (1, 1, 1), 'torch.nn.modules.conv.Conv2d')])
def test_everything_else_is_refused_by_name(tmp_path, zipped, function, arguments, named):
  touched = str(tmp_path / 'ran')
  arguments = [a.format(touched) if isinstance(a, str) else a for a in arguments]
  content = {'a': torch.ones(2), 'b': Calls(function, *arguments)}
  if function is getattr:
    content['b'] = Calls(function, 'x', 'upper')
  path = save(content, tmp_path / 'evil.pth', zipped=zipped)
  with pytest.raises(ValueError, match=rf'evil\.pth cannot be read: it holds {named}, which is no '
                                       r'tensor.*, save its state dict'):
    load(path)
  assert not os.path.exists(touched)


@FORMATS
@pytest.mark.parametrize('tensor', [
  torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64).conj()],
  ids=['sparse', 'conjugated'])
def test_tensors_that_are_no_plain_ones_are_refused(tmp_path, zipped, tensor):
  with pytest.raises(ValueError, match='(sparse|conjugated).*; .*save its'):
    load(save({'a': tensor}, tmp_path / 'a.pth', zipped=zipped))


NESTED_KEY = b'\x80\x02}' + b')' + b'\x85' * 20_000 + b'K\x01s.'


@pytest.mark.parametrize(('pickled', 'message'), [
  (NESTED_KEY, 'no text or number'),
  (b'\x80\x02c__builtin__\nset\n])' + b'\x85' * 20_000 + b'a\x85R.', 'no text or number'),
  (b'\x80\x02]r\xff\xff\xff\x7f' + b'j\xfe\xff\xff\xff.', 'recalls object 4294967294'),
  (b'\x80\x02X\xff\xff\xff\xff.', 'cut or overwritten .*; get the file again'),
  (b'\x80\x05\x96' + struct.pack('<Q', 2**40) + b'.', 'cut or overwritten'),
  (b'\x80\x02\x8b\xff\xff\xff\x7f.', 'cut or overwritten'),
  (b'\x80\x02cos\nsystem\n.', 'holds os.system, which is no tensor'),
  (b'\x80\x04\x8c\x02os\x8c\x06system\x93.', 'holds os.system, which is no tensor'),
  (b'\x80\x02ctorch._utils\n_rebuild_tensor.call\n.', 'holds torch._utils._rebuild_tensor.call'),
  (b'\x80\x02ctorch\nSize\n}X\1\0\0\0aK\1sb.', 'lacks a OrderedDict'),
  (b"(S'a'\nI1\ntp0\n.", 'opcode STRING'),
  (b'\x80\x02(ios\nsystem\n.', 'opcode INST'),
  (b'\x80\x02\x82\x01.', 'opcode EXT1'),
  (b'\x80\x02ctorch\nSize\n)\x81.', 'opcode NEWOBJ'),
  (b'\x80\x02K\x01)R.', 'lacks a Function'),
  (b'\x80\x02tR.', 'lacks a mark'),
  (b'\x80\x02.', 'empty stack'),
  (b'\x80\x02U\x01\xff.', 'no UTF-8'),
  (b'\x80\x02U\x07storageQ.', 'no storage'),
  (b'\x80\x02}(K\x01u.', 'without a value'),
  (b'\x80\x02cnumpy\ndtype\nX\1\0\0\0O\x85R.', 'no plain number'),
  (tensor_pickle(offset=b'K\1'), 'beyond the end'),
  (tensor_pickle(size=b'K\4'), 'beyond the end'),
  (tensor_pickle(stride=b'K\2'), 'beyond the end'),
  (tensor_pickle(stride=b'J\xff\xff\xff\xff'), 'out of range'),
  (tensor_pickle(size=b'K\1K\2'), 'wrong arguments'),
  (tensor_pickle(size=b'K\0' * 65, stride=b'K\0' * 65), 'out of range'),
  (tensor_pickle(size=b'J\0\0\0\x40', stride=b'K\0'), 'many times as large'),
  (tensor_pickle(count=2**30), 'has 12 bytes, not 4294967296'),
  (tensor_pickle(count=-1), 'no storage'),
  (tensor_pickle().replace(b'tQ', b'K\1tQ'), 'a view of a storage'),
  (pickle.dumps(np.float64(1), 2).replace(text('<'), text('>')), 'not little-endian'),
  (tensor_pickle(kind=b'QInt8Storage'), 'holds torch.QInt8Storage'),
  # A copy of a long list for a few bytes, again and again.
  (b'\x80\x02](' + b'K\1' * 9_999 + b'eq\0' + b'c__builtin__\nset\nh\0\x85R' * 3_000 + b'.',
   'many times'),
])
def test_hostile_pickles_are_refused_in_little_memory(tmp_path, pickled, message):
  path = archive(tmp_path / 'a.pth', pickled, data__0=bytes(12))
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=rf'a\.pth cannot be read: .*{message}.*[.]$'):
      load(path)
    assert tracemalloc.get_traced_memory()[1] < 2**26
  finally:
    tracemalloc.stop()


def test_nesting_without_end_is_no_recursion(tmp_path):
  path = archive(tmp_path / 'a.pth', b'\x80\x02' + b']' * 100_000 + b'a' * 99_999 + b'.')
  with pytest.raises(ValueError, match='holds a list, not a dict'):
    load_state_dict(path)


def test_too_many_opcodes_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr('gta_jax.models.torch_pickles._MOST_OPCODES', 1000)
  with pytest.raises(ValueError, match='more than 1000 pickle opcodes'):
    load(archive(tmp_path / 'a.pth', b'\x80\x02(' + b'N' * 1000 + b't.'))


def test_archives_of_another_kind_are_refused(tmp_path):
  path = archive(tmp_path / 'a.pth', tensor_pickle(), data__0=bytes(12), version=b'11\n')
  with pytest.raises(ValueError, match='version 11'):
    load(path)
  with pytest.raises(ValueError, match='no data/0'):
    load(archive(path, tensor_pickle()))
  with pytest.raises(ValueError, match="byte order is b'middle'"):
    load(archive(path, tensor_pickle(), data__0=bytes(12), byteorder=b'middle'))
  with pytest.raises(ValueError, match='TorchScript'):
    load(archive(path, tensor_pickle(), data__0=bytes(12), **{'constants.pkl': b''}))
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('a/data.pkl', tensor_pickle(count=10**8))
    file.writestr('a/version', '3', zipfile.ZIP_STORED)
    file.writestr('a/data/0', bytes(10**6))
  with pytest.raises(ValueError, match=r'holds data\.pkl compressed'):
    load(path)
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('x.txt', '')
  with pytest.raises(ValueError, match=r'torch\.save did not write'):
    load(path)


def test_members_that_share_bytes_are_refused(tmp_path):
  """One inside the other: many of these would make a small file a large one."""
  first, second = (tensor_pickle(count=count, size=b'K\1')[2:-1] for count in (2560, 2500))
  payload, inner = bytes(10_000), zipfile.ZipInfo('archive/data/1')
  inner.file_size = inner.compress_size = len(payload)
  inner.CRC = zlib.crc32(payload)
  header = inner.FileHeader()
  outer = header + payload + bytes(4 * 2560 - len(header) - len(payload))
  with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as file:
    file.writestr('archive/version', '3')
    file.writestr('archive/data.pkl',
                  b'\x80\x02(' + first + second.replace(text('0'), text('1')) + b't.')
    file.writestr('archive/data/0', outer)
    info = file.getinfo('archive/data/0')
    inner.header_offset = info.header_offset + len(info.FileHeader())
    file.filelist.append(inner)
  with pytest.raises(ValueError, match='claim more bytes|Overlapped'):  # newer zipfiles see it too
    load(tmp_path / 'a.pth')


def test_files_of_another_kind_are_refused(tmp_path):
  path = tmp_path / 'a.pth'
  for content, message in (
      (b'', 'empty'), (b'no torch', 'no file of torch.save'), (bytes(600), 'no file of torch.save'),
      (bytes(257) + b'ustar' + bytes(250), 'tar archive'), (b'PK\3\4', 'zip'),
      (pickle.dumps({'a': 1}, 2), 'no file of torch.save')):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf'a\.pth cannot be read: .*{message}'):
      load(path)
  with pytest.raises(ValueError, match=r'none\.pth cannot be read: .*No such file'):
    load(tmp_path / 'none.pth')


def test_legacy_files_that_claim_or_lack_storages_are_refused(tmp_path):
  whole = save({'a': torch.ones(3)}, tmp_path / 'a.pth', zipped=False).read_bytes()
  file = io.BytesIO(whole)
  ends = []
  for _ in range(5):
    for _ in pickletools.genops(file):
      pass
    ends.append(file.tell())
  *_, before, content, keys = ends
  one, other = (tensor_pickle(count=count, size=b'K\1')[2:-1] for count in (2, 3))
  two_sizes = b'\x80\x02(' + one + other + b't.'
  count = whole[before:content].rindex(b'K\x03N') + before
  for data, message in (
      (whole[:content] + b'\x80\x02].' + whole[keys:], 'list of storages'),
      (whole[:content] + b'\x80\x02])' + b'\x85' * 20_000 + b'a.' + whole[keys:], 'list of stor'),
      (whole[:content] + b'\x80\x02]]a.' + whole[keys:], 'list of storages'),
      (whole[:before] + two_sizes + whole[content:], 'has two sizes'),
      (whole[:keys] + b'\4' + whole[keys + 1:], 'not whole'), (whole[:-1], 'not whole'),
      (whole[:count] + b'J\0\0\0\x40N' + whole[count + 3:], 'claim more bytes')):
    (tmp_path / 'a.pth').write_bytes(data)
    with pytest.raises(ValueError, match=message):
      load(tmp_path / 'a.pth')
