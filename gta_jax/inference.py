"""Using a finished run: evaluating its teacher, and predicting a folder of images."""

import json
from pathlib import Path

import jax
import ml_collections
import numpy as np

from gta_jax import run as runs
from gta_jax import sharding
from gta_jax.checkpoint import Checkpoints
from gta_jax.data import sources
from gta_jax.data.files import IGNORE
from gta_jax.evaluate import evaluate
from gta_jax.network import Network, Variables
from gta_jax.predict import predict_folder
from gta_jax.train import plain_scores


def load_teacher(
  workdir: Path, config: ml_collections.ConfigDict, *, num_classes: int, which: str = 'last'
) -> tuple[Network, Variables, int]:
  """The teacher of a run's last or best checkpoint; nothing else is read.

  Args:
    workdir: of the run.
    config: the run's, for the network.
    num_classes: K.
    which: 'last' or 'best'.
  Returns: the network, its variables, and the step they are from.
  Raises:
    ValueError: no checkpoint is there.
  """
  folder = workdir / 'checkpoints'
  if not folder.is_dir():
    raise ValueError(f'{folder} does not exist; train first, or give the --workdir of a run.')
  network = runs.make_network(config, num_classes)
  crop = config.data.crop
  like = jax.eval_shape(lambda key: network.init(key, (crop, crop)), jax.random.key(0))
  everywhere = sharding.replicated(sharding.make_mesh())
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), like)
  with Checkpoints(folder) as checkpoints:
    step = checkpoints.best_step if which == 'best' else checkpoints.last_step
    if step is None:
      raise ValueError(f'{folder} holds no finished checkpoint; go on training first.')
    return network, checkpoints.restore_teacher(step, like), step


def evaluate_run(
  workdir: Path, config: ml_collections.ConfigDict | None, *, which: str = 'last'
) -> dict:
  """Scores a run's teacher on its validation images and writes evaluation.json.

  Args:
    workdir: of the run.
    config: None for the run's own; another one evaluates on its data set.
    which: 'last' or 'best' checkpoint.
  Returns: what evaluation.json holds: step, miou, pixel_accuracy and iou by class.
  Raises:
    ValueError: no run, or a data set with other classes.
  """
  own, described = _read_run(workdir)
  config = config or own
  dataset = runs.make_dataset(config)
  if list(dataset.classes) != described['classes']:
    raise ValueError(
      f'{workdir} was trained for {", ".join(described["classes"])}, the data set has '
      f'{", ".join(dataset.classes)}; evaluate on the same classes in the same order.')
  sources.check(dataset)
  network, variables, step = load_teacher(
    workdir, own, num_classes=len(dataset.classes), which=which)
  found = evaluate(
    network, {'teacher': variables}, dataset, batch_size=config.evaluate.batch,
    image_scale=own.data.image_scale, threads=config.data.threads)
  result = {'checkpoint': which, 'step': step, 'images': len(dataset.validation),
            **plain_scores(found.scores['teacher'], dataset.classes)}
  (workdir / 'evaluation.json').write_text(json.dumps(result, indent=2) + '\n')
  for name, iou in result['iou'].items():
    print(f'{name:24}{"-" if iou is None else f"{100 * iou:.2f}"}')
  print(f'{"mIoU":24}{100 * result["miou"]:.2f}   ({which} checkpoint, step {step})')
  return result


def predict_images(
  workdir: Path, config: ml_collections.ConfigDict | None, *, images: Path, out: Path,
  which: str = 'last',
) -> None:
  """Segments a folder of images with a run's teacher; the data set itself is not needed.

  Args:
    workdir: of the run.
    config: None for the run's own; of another one only evaluate.batch is read.
    images: folder of images of any size.
    out: folder for palette masks, and for overlays in out/overlays.
    which: 'last' or 'best' checkpoint.
  """
  own, described = _read_run(workdir)
  classes = tuple(described['classes'])
  network, variables, _ = load_teacher(workdir, own, num_classes=len(classes), which=which)
  written = predict_folder(
    network, variables, images=images, out=out, classes=classes,
    palette=np.array(described['palette'], np.uint8), image_scale=own.data.image_scale,
    batch_size=(config or own).evaluate.batch)
  print(f'{len(written)} masks are in {out}, overlays in {out / "overlays"}')


def _read_run(workdir: Path) -> tuple[ml_collections.ConfigDict, dict]:
  """The config of a run, and the classes and colours of its data set."""
  config, path = runs.from_json(workdir / 'config.json'), workdir / 'dataset.json'
  described = runs.read_json(path)
  classes, palette = described.get('classes'), described.get('palette')
  whole = (
    isinstance(classes, list) and 0 < len(classes) <= IGNORE
    and all(isinstance(name, str) for name in classes)
    and isinstance(palette, list) and len(palette) == len(classes)
    and all(isinstance(rgb, list) and len(rgb) == 3 for rgb in palette)
    and all(value in range(256) for rgb in palette for value in rgb))
  if not whole:
    raise ValueError(
      f'{path} is damaged: it holds no list of classes with a colour each; restore it, or train '
      'anew.')
  return config, described
