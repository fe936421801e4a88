"""The first hour of somebody with a data set of their own, from its folder to a model in use."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gta_jax import command
from gta_jax.data import folder
from tests.reporting.browser import BROWSER, open_page

SIDE, CLASSES = 64, ('soil', 'crop', 'weed')
COLOURS = np.array([[0, 0, 0], [40, 170, 60], [200, 60, 40]], np.uint8)


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """A noisy photo uint8 [H,W,3] with two rectangles, and its classes uint8 [H,W]."""
  mask = np.zeros((SIDE, SIDE), np.uint8)
  for kind in (1, 2):
    top, left = rng.integers(0, SIDE - 24, 2)
    mask[top:top + 24, left:left + 20] = kind
  return np.clip(COLOURS[mask] // 2 + 60 + rng.integers(-25, 25, (SIDE, SIDE, 3)), 0, 255).astype(
    np.uint8), mask


def write_voc(root: Path) -> None:
  """VOC's layout with classes of its own: 12 images with masks, in lists, and 8 without."""
  rng = np.random.default_rng(0)
  for part in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
    (root / part).mkdir(parents=True)
  (root / 'labelmap.txt').write_text(''.join(
    f'{name}:{",".join(map(str, rgb))}::\n'
    for name, rgb in zip(CLASSES, COLOURS.tolist(), strict=True)))
  for number in range(20):
    image, mask = draw(rng)
    Image.fromarray(image).save(root / 'JPEGImages' / f'{number:02}.jpg')
    if number < 12:
      Image.fromarray(COLOURS[mask]).save(root / 'SegmentationClass' / f'{number:02}.png')
  for name, ids in {'train': range(6), 'val': range(6, 9), 'test': range(9, 12)}.items():
    (root / 'ImageSets' / 'Segmentation' / f'{name}.txt').write_text(
      ''.join(f'{number:02}\n' for number in ids))


def write_photos(root: Path) -> None:
  """Images of several kinds, and three files that are none, though they are named so."""
  (root / 'more').mkdir(parents=True)
  image, _ = draw(np.random.default_rng(1))
  Image.fromarray(image).save(root / 'colour.jpg')
  Image.fromarray(image).convert('L').save(root / 'more' / 'grey.png')
  Image.fromarray(np.tile(image, (2, 1, 1))).save(root / 'tall.tif')
  (root / 'cut.jpg').write_bytes((root / 'colour.jpg').read_bytes()[:500])
  (root / 'empty.png').touch()
  (root / 'text.png').write_text('no image')


def run(*arguments: object) -> int:
  return command.main(['gta-jax', *map(str, arguments)])


@pytest.mark.slow
def test_from_a_folder_to_a_model_in_use(tmp_path, capsys):
  voc, data, workdir, photos = (tmp_path / name for name in ('voc', 'data', 'run', 'photos'))
  write_voc(voc)
  write_photos(photos)

  assert run('--mode', 'convert', '--source', voc, '--format', 'voc', '--out', data) == 0
  assert (data / 'splits' / 'test.txt').read_text().split() == ['09', '10', '11']

  config = ('--config', 'folder:6', '--config.data.dir', data)
  assert run('--mode', 'inspect', *config, '--workdir', workdir) == 0
  assert 'Proposed' in capsys.readouterr().out

  # 8 unlabelled images in batches of 4: two steps an epoch.
  assert run(*config, '--workdir', workdir, '--config.train.epochs=10',
             '--config.train.evaluate_epochs=5', '--config.train.log_steps=5',
             '--config.method.warmup_epochs=5', '--config.train.labelled_batch=4',
             '--config.train.unlabelled_batch=4') == 0
  results = json.loads((workdir / 'results.json').read_text())
  assert results['last']['step'] == 20 and results['unlabelled'] == 8
  assert 'images    6 labelled, 8 unlabelled, 3 validation, 3 test of data; 3 classes' in (
    capsys.readouterr().err)

  assert run('--mode', 'evaluate', '--workdir', workdir, '--split', 'test') == 0
  evaluation, = json.loads((workdir / 'evaluation.json').read_text())['evaluations']
  assert (evaluation['split'], evaluation['images']) == ('test', 3)

  masks = tmp_path / 'masks'
  assert run('--mode', 'predict', '--workdir', workdir, '--images', photos, '--recursive',
             '--out', masks) == 5
  said = capsys.readouterr().err
  assert '3 images could not be read' in said
  assert all(name in said for name in ('cut.jpg', 'empty.png', 'text.png'))
  for name, size in {'colour': (64, 64), 'more/grey': (64, 64), 'tall': (64, 128)}.items():
    with Image.open(masks / f'{name}.png') as mask:
      assert mask.size == size and np.asarray(mask).max() < 3

  export(workdir, tmp_path, photos / 'colour.jpg')
  label_next(workdir, data)

  assert 'whole (test)' in (workdir / 'report.html').read_text()
  assert run('--mode', 'report', '--workdir', workdir) == 0
  page = (workdir / 'report.html').read_text()
  assert 'whole (test)' in page and f'--workdir {workdir}' in page
  if BROWSER:
    shown, said = open_page((workdir / 'report.html').as_uri(), tmp_path / 'profile')
    assert said == [] and shown.count('class="marks"') == 5


def export(workdir: Path, out: Path, photo: Path) -> None:
  """ONNX where its packages are installed, and StableHLO; both give what the model gives."""
  import jax  # noqa: PLC0415

  import gta_jax  # noqa: PLC0415

  with Image.open(photo) as picture:
    image = np.asarray(picture)
  expected = gta_jax.load(workdir).probabilities(image)
  size = ('--size', f'{SIDE}x{SIDE}')
  assert run('--mode', 'export', '--workdir', workdir, '--format', 'stablehlo', *size,
             '--out', out / 'model.stablehlo') == 0
  call = jax.export.deserialize(bytearray((out / 'model.stablehlo').read_bytes())).call
  np.testing.assert_allclose(call(image[None])[0], expected, atol=1e-4)
  if importlib.util.find_spec('jax2onnx') and importlib.util.find_spec('onnxruntime'):
    import onnxruntime  # noqa: PLC0415

    assert run('--mode', 'export', '--workdir', workdir, '--format', 'onnx', *size,
               '--out', out / 'model.onnx') == 0
    session = onnxruntime.InferenceSession(out / 'model.onnx')
    found, = session.run(None, {session.get_inputs()[0].name: image[None]})
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def label_next(workdir: Path, data: Path) -> None:
  """The masks that were written go, as they are, into the next run's data."""
  assert run('--mode', 'label_next', '--workdir', workdir, '--count', 3) == 0
  out = workdir / 'label_next'
  with (out / 'label_next.csv').open() as file:
    asked = [row['image'] for row in csv.DictReader(file)]
  for id in asked:
    shutil.copy(out / 'masks' / f'{id}.png', data / 'masks' / f'{id}.png')
  following = folder.read_folder(data, labelled='9', lists=out / 'splits')
  assert sorted(following.labelled[:6]) == [f'{number:02}' for number in range(6)]
  assert following.labelled[6:] == tuple(asked)
  assert len(following.unlabelled) == 5 and following.test == ('09', '10', '11')
  assert all(following.reader.mask(id).shape == (SIDE, SIDE) for id in asked)
