"""Generators of fuzz.py: each makes a case from a random generator and lets our code read it."""

import contextlib
import io
import json
import pathlib
import shutil
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from PIL import Image

from configs import shapes
from gta_jax import command_flags
from gta_jax.data import folder, sources
from gta_jax.inference import finished
from gta_jax.inference.image_folder import ImageFolder, find_images
from gta_jax.methods.contract import TrainState
from gta_jax.models.pretrained import convert, load_state_dict
from gta_jax.training import same_run, setup
from gta_jax.training.checkpoint import Checkpoints
from gta_jax.training.logs import MetricWriter

ROOT = pathlib.Path(__file__).resolve().parents[1]
Rng = np.random.Generator
Path = pathlib.Path


class UndocumentedError(Exception):
  """An error that is not ours, or a case that took too long."""


def damage(rng: Rng, data: bytes) -> bytes:
  """Cuts, flips, doubles, empties or replaces a file's bytes."""
  kind = rng.integers(7)
  if kind == 0:
    return data[: rng.integers(len(data) + 1)]
  if kind == 1:
    return rng.bytes(int(rng.integers(200)))
  if kind == 2:
    return data + rng.bytes(int(rng.integers(1, 5000)))
  array = np.frombuffer(data, np.uint8).copy()
  if kind == 3 and array.size:
    start = rng.integers(array.size)
    array[start : start + rng.integers(1, 64)] = 0
  elif array.size:
    # Mostly near the start: headers have more ways to lie than pixels.
    end = array.size if rng.random() < 0.5 else min(64, array.size)
    where = rng.integers(0, end, rng.integers(1, 9))
    array[where] ^= rng.integers(1, 256, where.size).astype(np.uint8)
  return array.tobytes()


def picture(rng: Rng) -> bytes:
  """An image of some kind, whole or damaged."""
  mode = rng.choice(['RGB', 'RGBA', 'L', 'LA', 'P', '1', 'CMYK', 'I;16', 'GIANT'])
  size = [(16, 12), (16, 12), (1, 1), (3000, 1), (40, 30)][rng.integers(5)]
  suffix = rng.choice(['JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP'], p=[.35, .4, .1, .05, .05, .05])
  pixels = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
  image = pixels if mode in ('I;16', 'GIANT') else pixels.convert(mode)
  if mode == 'I;16':
    image = Image.fromarray(rng.integers(0, 2**16, size[::-1], dtype=np.uint16))
  options = {}
  if rng.random() < 0.2:
    options = {'save_all': True, 'append_images': [image]}
  elif rng.random() < 0.2:
    exif = Image.Exif()
    exif[274] = int(rng.integers(0, 300))
    options = {'exif': exif}
  out = io.BytesIO()
  try:
    image.save(out, suffix, **options)
  except (OSError, KeyError, TypeError, ValueError):  # not every format has every mode
    out = io.BytesIO()
    image.convert('RGB').save(out, 'PNG')
  data = out.getvalue()
  if mode == 'GIANT' and data.startswith(b'\x89PNG'):
    side = int(rng.choice([20_000, 100_000, 2**31 - 1]))
    header = data[12:16] + struct.pack('>II', side, side) + data[24:29]
    data = data[:12] + header + struct.pack('>I', zlib.crc32(header)) + data[33:]
  return damage(rng, data) if rng.random() < 0.6 else data


def make_base(folder: Path) -> None:
  """A small data folder, whole, two checkpoints, and two files of torch."""
  rng = np.random.default_rng(0)
  for name in 'abcd':
    for kind, shape, most in (('images', (12, 16, 3), 256), ('masks', (12, 16), 3)):
      path = folder / 'data' / kind / f'{name}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, most, shape, dtype=np.uint8)).save(path)
  (folder / 'data' / 'classes.txt').write_text('road 1 2 3\ncar\nsky 4 5 6\n')
  (folder / 'data' / 'splits' / '1').mkdir(parents=True)
  for name, ids in (('val', 'c'), ('1/labeled', 'a'), ('1/unlabeled', 'b\nd')):
    (folder / 'data' / 'splits' / f'{name}.txt').write_text(f'{ids}\n')
  with Checkpoints(folder / 'checkpoints') as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, tiny_state(step))
  import torch  # noqa: PLC0415  (seconds; it writes what the package reads without it)
  state = {'conv1.weight': torch.ones(2, 3).t(), 'bn1.bias': torch.ones(3, dtype=torch.float16)}
  for name, zipped in (('zip', True), ('legacy', False)):
    torch.save({'epoch': 3, 'model_state': state}, folder / f'{name}.pth',
               _use_new_zipfile_serialization=zipped)


def tiny_state(step: int) -> TrainState:
  """A state of a few numbers that depend on the step."""
  network = {'params': {'backbone': {'kernel': jnp.full((30, 7), float(step))}},
             'batch_stats': {'backbone': {'mean': jnp.zeros(3)}}}
  student = jax.tree.map(lambda x: x + 1, network)
  return TrainState(
    step=jnp.int32(step), key=jax.random.key(0), networks={'teacher': network, 'student': student},
    optimizers={'student': (jnp.zeros(2),)})


def read_all(root: Path) -> None:
  """What training and evaluation do with a data folder."""
  split = '1' if (root / 'splits' / '1').exists() else '2'
  dataset = folder.read_folder(root, labelled=split)
  sources.check(dataset)
  for id in dataset.labelled + dataset.unlabelled + dataset.validation:
    dataset.reader.image(id)
    if dataset.reader.has_mask(id):
      dataset.reader.mask(id)


def fuzz_images(rng: Rng, base: Path, work: Path) -> None:
  """An odd or damaged image in a folder that is read whole."""
  if rng.random() < 0.5:
    shutil.copytree(base / 'data', work / 'data')
    (work / 'data' / 'images' / f'{rng.choice(list("abcd"))}.png').write_bytes(picture(rng))
    return read_all(work / 'data')
  suffix = rng.choice(['jpg', 'png', 'bmp', 'tif', 'webp', 'JPEG'])
  (work / f'x.{suffix}').write_bytes(picture(rng))
  reader = ImageFolder(find_images(work))
  reader.size('x')
  reader.image('x')


def fuzz_masks(rng: Rng, base: Path, work: Path) -> None:
  """An odd or damaged mask in a folder that is read whole."""
  shutil.copytree(base / 'data', work / 'data')
  path = work / 'data' / 'masks' / f'{rng.choice(list("abcd"))}.png'
  ids = rng.integers(0, rng.choice([3, 5, 256]), (12, 16 + (rng.random() < 0.1)))
  whole = Image.fromarray(ids.astype(rng.choice([np.uint8, np.uint8, np.uint16])))
  if rng.random() < 0.4 and whole.mode == 'L':
    whole = whole.convert(rng.choice(['1', 'P', 'RGB', 'LA', 'RGBA']))
  whole.save(path)
  data = path.read_bytes() if rng.random() < 0.7 else picture(rng)
  path.write_bytes(damage(rng, data) if rng.random() < 0.6 else data)
  read_all(work / 'data')


LINES = ['a', 'b', 'c', 'd', 'a.png', 'B.JPG', '', '  ', '../a', '/etc/passwd', 'a b', 'ä', '日本',
         '\ufeffa', 'a\r', '\x00', '\u2028', 'a' * 5000, '.', '..', 'images/a', 'a/', '*', 'None']


def fuzz_lists(rng: Rng, base: Path, work: Path) -> None:
  """An odd list of ids in a folder that is read whole."""
  shutil.copytree(base / 'data', work / 'data')
  splits = work / 'data' / 'splits'
  path = splits / rng.choice(['val.txt', '1/labeled.txt', '1/unlabeled.txt', 'test.txt'])
  end = rng.choice(['\n', '\r\n', '\r'])
  lines = rng.choice(LINES, rng.integers(0, 6)) if rng.random() < 0.8 else ['a', 'b'][::-1]
  path.write_bytes(end.join(lines).encode(rng.choice(['utf-8', 'utf-8-sig', 'utf-16'])))
  maybe_worse(rng, path)
  if rng.random() < 0.1:
    shutil.rmtree(splits / '1')
  read_all(work / 'data')


def fuzz_classes(rng: Rng, base: Path, work: Path) -> None:
  """An odd classes.txt in a folder that is read whole."""
  shutil.copytree(base / 'data', work / 'data')
  path = work / 'data' / 'classes.txt'
  words = ['road', '1 2 3', '256 0 0', '-1 0 0', '٣ ٣ ٣', '²', 'a b c d', '9' * 5000 + ' 1 1', '\0']
  count = int(rng.choice([0, 1, 3, 3, 5, 300]))
  lines = [f'{rng.choice(words)} {rng.choice(words)} {i if rng.random() < 0.9 else ""}'
           for i in range(count)]
  path.write_text('\n'.join(lines))
  maybe_worse(rng, path)
  read_all(work / 'data')


def maybe_worse(rng: Rng, path: Path) -> None:
  """Now and then a file is also damaged, gone, or a folder."""
  if rng.random() < 0.3:
    path.write_bytes(damage(rng, path.read_bytes()))
  elif rng.random() < 0.1:
    path.unlink()
  elif rng.random() < 0.1:
    path.unlink()
    path.mkdir()


VALUES = ['-1', '0', '1', '1e400', 'nan', 'inf', '-inf', '', 'abc', '9' * 30, '0.5', 'True', 'None',
          '()', '(1,)', '(0.5, 2.0)', '(2.0, 0.5)', "('x',)", '[1, 2', '1e-300', '²', '{}', '12']
COLONS = ['', ':', ':48', ':²', ':' + '9' * 5000, ':-1', ':4,method=gta', ':4,method=x', ':x=y',
          ':recipe=released', ':4,recipe=', ':,,,', ':=', ':4,4,=4', ':method=sup_only']
FILES = ['configs/shapes.py', 'folder', 'configs/none.py', '', 'configs', 'README.md']


def fuzz_overrides(rng: Rng, base: Path, work: Path) -> str:
  """As the command parses, then everything that is checked before work starts."""
  names = [*same_run.flatten(shapes.get_config().to_dict()), 'optim.rat', 'data', 'x.y', 'method']
  file = str(rng.choice(FILES, p=[.65, .15, .05, .05, .05, .05])) + str(rng.choice(COLONS))
  chosen = {str(rng.choice(names)): str(rng.choice(VALUES)) for _ in range(rng.integers(1, 4))}
  if rng.random() < 0.5:
    chosen |= {'data.dir': str(rng.choice([base / 'data', 'nowhere', '\x01', 'a' * 5000]))}
  arguments = [f'--config={file}', *(f'--config.{name}={value}' for name, value in chosen.items())]
  try:
    with contextlib.chdir(ROOT):
      values = command_flags.parse(['fuzz', *arguments, '--workdir=w'])
  except command_flags.UsageError as error:
    if not str(error).strip('\'" '):  # The command prints these: they must say something.
      raise UndocumentedError('an empty message') from error
    return 'refused'
  setup.make_run(values.config)
  return 'success'


def fuzz_run_files(rng: Rng, base: Path, work: Path) -> None:
  """A damaged file in the workdir of a run that is to go on or to be used."""
  config, classes = shapes.get_config('4').to_dict(), ['a', 'b']
  if rng.random() < 0.6:
    section = config[rng.choice(list(config))]
    if isinstance(section, dict):
      wrong = rng.choice(len(WRONG))
      section[rng.choice([*section, 'new'])] = WRONG[wrong]
      if rng.random() < 0.2:
        section.pop(rng.choice(list(section)))
  palette = [[0, 0, 0], [1, 2, 3]] if rng.random() < 0.7 else WRONG[rng.choice(len(WRONG))]
  (work / 'config.json').write_text(json.dumps(config))
  (work / 'dataset.json').write_text(json.dumps({'classes': classes, 'palette': palette}))
  metrics = b'{"step": 1, "x": 0.5}\n{"step": 2, "x": null}\n[1]\n7\n{"step": "x"}\n'
  (work / 'metrics.jsonl').write_bytes(metrics)
  (work / 'results.json').write_text('{}')
  path = work / rng.choice(['config.json', 'dataset.json', 'metrics.jsonl', 'results.json'])
  if rng.random() < 0.6:
    maybe_worse(rng, path)
  with MetricWriter(work, start_step=1, tensorboard=False) as writer:
    writer.write(2, {'x': 1.0})
  finished.evaluate_run(work, None)


WRONG = [None, -1, 0, 1.5, 'x', [], {}, [1], [['x']], True, 10**30, float('nan'), {'a': {'b': 1}}]


def fuzz_weights(rng: Rng, base: Path, work: Path) -> None:
  """A damaged or foreign file of weights."""
  path = work / f'w.{rng.choice(["safetensors", "pth", "pth", "npz"])}'
  dtype = rng.choice([np.float16, np.float32, np.int64, np.uint8, bool])
  names = rng.choice(['conv1.weight', 'bn1.bias', 'x', '', 'layer1.0.conv1.weight'], 3)
  tensors = {str(name): np.ones(rng.integers(0, 5, rng.integers(0, 5)), dtype) for name in names}
  safetensors.numpy.save_file(tensors, path)
  data = path.read_bytes()
  if path.suffix == '.pth' and rng.random() < 0.8:
    data = (base / rng.choice(['zip.pth', 'legacy.pth'])).read_bytes()
  elif rng.random() < 0.2:
    data = struct.pack('<Q', int(rng.choice([2**40, 2**62, 0, 7, len(data)]))) + data[8:]
  elif path.suffix == '.pth' and rng.random() < 0.5:
    data = b"cos\nsystem\n(S'exit 1'\ntR."
  path.write_bytes(damage(rng, data) if rng.random() < 0.6 else data)
  state = load_state_dict(path, item=rng.choice([None, None, 'model_state']))
  convert(state, tiny_state(0).networks['teacher'], scope=str(rng.choice(['all', 'backbone', 'x'])))


def fuzz_checkpoints(rng: Rng, base: Path, work: Path) -> None:
  """A damaged checkpoint: the newest whole one must be found."""
  folder = work / 'checkpoints'
  shutil.copytree(base / 'checkpoints', folder)
  files = [path for path in sorted(folder.rglob('*')) if path.is_file()]
  for index in rng.choice(len(files), rng.integers(1, 4), replace=False):
    maybe_worse(rng, files[index])
  with Checkpoints(folder) as checkpoints:
    if checkpoints.last_step is not None:
      found = checkpoints.restore(checkpoints.last_step, tiny_state(0))
      assert int(found.step) == checkpoints.last_step
