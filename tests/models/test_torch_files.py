"""Torch's files without torch: equal to torch.load; hostile or damaged ones refused in words."""

import collections
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
from hypothesis import given, settings
from hypothesis import strategies as st

from gta_jax.models.pretrained import load_state_dict
from gta_jax.models.torch_files import load

torch = pytest.importorskip('torch')

FORMATS = pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
STORED = ('float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8',
          'bool', 'complex64', 'complex128')
UNTYPED = ('uint16', 'uint32', 'uint64', 'float8_e4m3fn', 'float8_e5m2')


def save(content, path, *, zipped=True, **options):
  torch.save(content, path, _use_new_zipfile_serialization=zipped, **options)
  return path


def random_tensor(dtype, *size):
  generator = torch.Generator().manual_seed(0)
  values = torch.randint(-2**62, 2**62, (*size, 2), generator=generator)
  bits = values.view(torch.uint8)
  if dtype == 'bool':
    return bits[..., 0] > 127
  kind = getattr(torch, dtype)
  return bits[..., : kind.itemsize].contiguous().view(kind)[..., 0]


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


@FORMATS
@pytest.mark.parametrize('dtype', [*STORED, *UNTYPED])
def test_every_dtype_is_torchs(tmp_path, dtype, zipped):
  tensors = {'a': random_tensor(dtype, 3, 5), 'scalar': random_tensor(dtype),
             'empty': torch.zeros(0, 4, dtype=getattr(torch, dtype))}
  path = save(tensors, tmp_path / 'a.pth', zipped=zipped)
  assert_same(load(path), tensors)
  if zipped or dtype in STORED:  # torch 2.13 cannot read what it writes of the others
    assert_same(load(path), torch.load(path, weights_only=True))


@FORMATS
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_strides_offsets_and_shared_storages_are_torchs(tmp_path, zipped, dtype):
  base = random_tensor(dtype, 4, 6, 5)
  content = {'base': base, 'transposed': base.permute(2, 0, 1), 'part': base[1:3, ::2, 1],
             'row': base[3, 5], 'expanded': base[:1, :1, :1].expand(7, 3, 5),
             'channels_last': base[None].to(memory_format=torch.channels_last), 'twice': base}
  path = save(content, tmp_path / 'a.pth', zipped=zipped)
  read = load(path)
  assert_same(read, torch.load(path, weights_only=True))
  assert np.shares_memory(read['base'], read['row']) and read['twice'] is read['base']
  assert not read['row'].flags.writeable


@FORMATS
def test_a_published_checkpoint_is_torchs(tmp_path, zipped):
  network = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3),
                                                      torch.nn.BatchNorm2d(4)))
  optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
  network(torch.ones(2, 3, 5, 5)).sum().backward()
  optimizer.step()
  adam = torch.optim.AdamW(network.parameters())
  adam.step()
  content = {
    'epoch': 80, 'best_miou': np.float64(0.71), 'model_state': network.state_dict(),
    'teacher_state': network.state_dict(), 'optimizer_state': optimizer.state_dict(),
    'adam': adam.state_dict(), 'numbers': [np.float32(2.5), np.int64(-3), np.bool_(True)],
    'more': {'parameter': [torch.nn.Parameter(torch.ones(2, 2).t())]},
    'size': torch.ones(2, 3).size(),
    'milestones': collections.Counter([3, 3, 5]), 'set': {1, 'ä'}, 'complex': 1 - 2j,
    'bytes': b'\0\xff', 'long': 2**80, 'none': None, 'no': False, 'pair': (1.5, ('x', 'y', 'z', 1))}
  path = save(content, tmp_path / 'ckpt.pth', zipped=zipped)
  numbers = [type(value) for value in (np.dtype('f8'), np.dtype('f4'), np.dtype('i8'),
                                       np.dtype('?'))]
  scalar = np.float64(0).__reduce__()[0]
  with torch.serialization.safe_globals([scalar, np.dtype, *numbers]):
    theirs = torch.load(path, weights_only=True)
  assert_same(load(path), theirs)
  weight = load_state_dict(path, item='teacher_state')['module.0.weight']
  np.testing.assert_array_equal(weight, network.module[0].weight.detach().numpy())


@FORMATS
def test_pickle_protocol_4_and_deep_nesting_are_read(tmp_path, zipped):
  deep = torch.ones(2)
  for _ in range(50):
    deep = {'x': [deep]}
  content = {'deep': deep, 'set': {1, 2}, 'bytes': b'ab', 'text': 'ä',
             'a': random_tensor('int8', 3)}
  path = save(content, tmp_path / 'a.pth', zipped=zipped, pickle_protocol=4)
  assert_same(load(path), content)


def test_what_python_2_wrote_is_read(tmp_path):
  pairs = b'](](U\x01aK\x01e](T\x02\0\0\0\xc3\xa4K\x02ee'
  path = archive(tmp_path / 'a.pth', b'\x80\x02ccollections\nOrderedDict\n' + pairs + b'\x85R.')
  assert load(path) == {'a': 1, 'ä': 2} == torch.load(path, weights_only=False, encoding='utf-8')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int64', 'complex64'])
def test_big_endian_files_are_torchs(tmp_path, dtype):
  tensors = {'a': random_tensor(dtype, 3, 5)}
  save(tensors, tmp_path / 'little.pth')
  itemsize = tensors['a'].element_size() // (2 if dtype == 'complex64' else 1)
  with (zipfile.ZipFile(tmp_path / 'little.pth') as little,
        zipfile.ZipFile(tmp_path / 'big.pth', 'w') as big):
    for name in little.namelist():
      data = little.read(name)
      if '/data/' in name:
        data = np.frombuffer(data, f'u{itemsize}').byteswap().tobytes()
      big.writestr(name, b'big' if name.endswith('byteorder') else data)
  assert_same(load(tmp_path / 'big.pth'), tensors)
  assert_same(load(tmp_path / 'big.pth'), torch.load(tmp_path / 'big.pth', weights_only=True))


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


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(folder, {zipped: bytes of a file}, its content)."""
  folder = tmp_path_factory.mktemp('damaged')
  content = {'epoch': 3, 'best': np.float64(0.5), 'state': collections.OrderedDict(
    a=torch.ones(4, 3).t(), b=torch.nn.Parameter(torch.ones(2)), c=torch.arange(5))}
  files = {zipped: save(content, folder / 'a.pth', zipped=zipped).read_bytes()
           for zipped in (True, False)}
  return folder, files, content


@FORMATS
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damaged_files_are_refused_or_right(whole, zipped, data):
  folder, files, content = whole
  original = files[zipped]
  damaged = bytearray(original[:data.draw(st.integers(0, len(original)))]
                      if data.draw(st.integers(0, 3)) == 0 else original)
  if len(damaged) == len(original):
    # Zip files are mostly padding: half of the flips go where something is written.
    where = st.one_of(st.integers(0, len(original) - 1),
                      st.sampled_from([i for i, byte in enumerate(original) if byte]))
    damaged[data.draw(where)] ^= 1 << data.draw(st.integers(0, 7))
  (folder / 'damaged.pth').write_bytes(damaged)
  try:
    read = load(folder / 'damaged.pth')
  except ValueError as error:
    assert 'damaged.pth cannot be read: ' in str(error) and len(str(error)) < 600
    return
  if zipped:
    assert_same(read, content)  # a checksum for every member; the older format has none
