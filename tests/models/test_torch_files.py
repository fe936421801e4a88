"""Torch's files without torch: equal to torch.load; hostile or damaged ones refused in words."""

import collections
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gta_jax.models.pretrained import load_state_dict
from gta_jax.models.torch_files import load
from tests.models.torch_archives import (
  FORMATS,
  archive,
  assert_same,
  save,
  torch,
)

STORED = ('float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8',
          'bool', 'complex64', 'complex128')
UNTYPED = ('uint16', 'uint32', 'uint64', 'float8_e4m3fn', 'float8_e5m2')


def random_tensor(dtype, *size):
  generator = torch.Generator().manual_seed(0)
  values = torch.randint(-2**62, 2**62, (*size, 2), generator=generator)
  bits = values.view(torch.uint8)
  if dtype == 'bool':
    return bits[..., 0] > 127
  kind = getattr(torch, dtype)
  return bits[..., : kind.itemsize].contiguous().view(kind)[..., 0]


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
