"""Generators of fuzz.py for what comes before and after a run: convert, predict, load."""

import json
import shutil
from typing import Any

import jax
import numpy as np

import gta_jax
from benchmarks.fuzz_cases import WRONG, Path, Rng, damage, maybe_worse, picture
from gta_jax.data.convert import FORMATS, convert
from gta_jax.inference.model import Model
from gta_jax.inference.predict import predict_folder
from gta_jax.training import same_run, setup
from gta_jax.training.checkpoint import Checkpoints
from tests import runs, tiny

_NETWORK = tiny.linear_network()
_FOLDERS = {'voc': ('JPEGImages', 'SegmentationClass'), 'masks': ('images', 'masks'),
            'coco': ('images', 'annotations')}
_LABELMAPS = ['a:0,0,0::', 'a:1,2::', 'a', '\x00:1,1,1', 'b:300,1,1::', '# c', 'd:²,1,1', '']


def fuzz_convert(rng: Rng, base: Path, work: Path) -> None:
  """Odd images, masks, lists and annotations in another layout."""
  layout = str(rng.choice(sorted(FORMATS)))
  root = work / 'in'
  images, masks = (root / name for name in _FOLDERS[layout])
  for folder in (images, masks):
    folder.mkdir(parents=True)
  for name in 'abc':
    (images / f'{name}.png').write_bytes(
      picture(rng) if rng.random() < 0.3 else (base / 'data/images/a.png').read_bytes())
    if layout != 'coco':
      (masks / f'{name}.png').write_bytes(
        picture(rng) if rng.random() < 0.5 else (base / 'data/masks/a.png').read_bytes())
  if layout == 'coco':
    data = json.dumps(_annotations(rng)).encode()
    (masks / 'train.json').write_bytes(damage(rng, data) if rng.random() < 0.2 else data)
  elif rng.random() < 0.5:
    name = rng.choice(['labelmap.txt', 'classes.txt'])
    (root / name).write_bytes('\n'.join(rng.choice(_LABELMAPS, 3)).encode(
      rng.choice(['utf-8', 'utf-16'])))
  convert(root, work / 'out', layout=layout, copy=bool(rng.random() < 0.5))


def _annotations(rng: Rng) -> dict[str, Any]:
  """COCO's JSON with a value that is wrong, most of the time."""
  segments = [[[1, 1, 5, 1, 5, 5]], {'size': [12, 16], 'counts': [0, 192]}, [[1, 2]], [],
              {'size': [12, 16], 'counts': 'x'}]
  found = {
    'images': [{'id': 1, 'file_name': 'a.png', 'height': 12, 'width': 16}],
    'categories': [{'id': 7, 'name': 'cat'}],
    'annotations': [{'image_id': 1, 'category_id': 7,
                     'segmentation': segments[rng.integers(len(segments))]}]}
  if rng.random() < 0.7:
    row = found[rng.choice(list(found))][0]
    row[rng.choice(list(row))] = WRONG[rng.choice(len(WRONG))]
  elif rng.random() < 0.3:
    found[rng.choice(list(found))] = WRONG[rng.choice(len(WRONG))]
  return found


def fuzz_predict(rng: Rng, base: Path, work: Path) -> None:
  """A folder of odd images, and an odd array."""
  model = Model(_NETWORK, {'it': _NETWORK.init(jax.random.key(0), (8, 8))}, classes=('a', 'b', 'c'),
                palette=np.eye(3, dtype=np.uint8), crop=8)
  (work / 'in').mkdir()
  for i in range(2):
    (work / 'in' / f'{i}.{rng.choice(["jpg", "png", "tif", "webp"])}').write_bytes(picture(rng))
  predict_folder(model, images=work / 'in', out=work / 'out')
  shape = rng.integers(0, 5, rng.integers(0, 5))
  model.predict(np.zeros(shape, rng.choice([np.uint8, np.uint8, np.uint16, np.float32, bool])))


def fuzz_load(rng: Rng, base: Path, work: Path) -> None:
  """A run, up to three of its files damaged or its config odd, loaded."""
  shutil.copytree(_intact_run(base), work / 'run')
  files = sorted(path for path in (work / 'run').rglob('*') if path.is_file())
  for index in rng.choice(len(files), rng.integers(0, 4), replace=False):
    maybe_worse(rng, files[index])
  path = work / 'run' / 'config.json'
  if rng.random() < 0.3 and path.is_file():
    config = json.loads((base / 'run' / 'config.json').read_text())
    section = config[rng.choice(['data', 'model', 'method', 'train', 'evaluate'])]
    section[rng.choice(list(section))] = WRONG[rng.choice(len(WRONG))]
    path.write_text(json.dumps(config))
  gta_jax.load(work / 'run', checkpoint=str(rng.choice(['last', 'last', 'best', 'x'])))


def _intact_run(base: Path) -> Path:
  """The folder of a run with two checkpoints, made once; as it was drawn, it has learnt nothing."""
  workdir = base / 'run'
  if workdir.exists():
    return workdir
  run = setup.make_run(runs.tiny_config())
  same_run.write_same(run, workdir)
  state = run.drawn_state()
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, state)
      checkpoints.add_scores(step, {'teacher': {'miou': step / 10}})
  return workdir
