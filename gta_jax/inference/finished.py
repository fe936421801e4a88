"""Using a finished run: evaluating its networks, and predicting a folder of images."""

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from gta_jax.data import sources
from gta_jax.data.files import DataError
from gta_jax.data.listing import named
from gta_jax.data.splits import ids_sha256
from gta_jax.data.writing import replace_text
from gta_jax.devices import sharding
from gta_jax.evaluation.protocols import WHOLE, make_protocols
from gta_jax.evaluation.scores import evaluate_protocols
from gta_jax.evaluation.windows import check_protocols
from gta_jax.inference import acquisition, begun, evaluations, export, label_next, run_data
from gta_jax.inference.image_folder import check_folders, remarks
from gta_jax.inference.model import Model
from gta_jax.inference.predict import predict_folder
from gta_jax.methods.options import drop_share
from gta_jax.training import config_rules, setup, unseen
from gta_jax.training.finished_run import load_networks, read_run
from gta_jax.training.logs import evaluation_sheet, note
from gta_jax.training.workdir_files import read_ids


def evaluate_run(
  workdir: Path, config: ml_collections.ConfigDict | None, *, which: str = 'last',
  protocols: Sequence[str] | None = None, split: str = 'val',
) -> dict:
  """Scores a run's networks; adds to evaluation.json and evaluation.md.

  Args:
    workdir: of the run.
    config: None for the run's own; another one evaluates on its data set.
    which: 'last' or 'best' checkpoint.
    protocols: names as protocols.make_protocols reads them; None for evaluate.protocols of the
      config.
    split: 'val' for the validation images, 'test' for those kept for the end.
  Returns: what evaluation.json holds of this checkpoint and these images: checkpoint, step, split,
    dataset (its name), images, validation_sha256 of their ids, and protocols: protocol's name ->
    network's name -> miou, pixel_accuracy and iou by class.
  Raises:
    ValueError: no run, a data set with other classes, images that the run was trained on, or an
      unknown protocol.
  """
  own, described = read_run(workdir)
  if not os.access(workdir, os.W_OK):
    raise ValueError(f'{workdir} is read-only, and the scores are written there; copy the run to a '
                     'folder of yours, or get the right to write.')
  if config is not None:
    config_rules.check(config)
  config = config or own
  # Runs from before this field score whole images.
  names = protocols or config.evaluate.get('protocols', (WHOLE.name,))
  chosen = make_protocols(names, crop=own.data.crop)
  network, variables, step = load_networks(
    workdir, own, num_classes=len(described['classes']), which=which,
    names=setup.make_method_of(own).scored)
  check_protocols(network, chosen)
  dataset = run_data.make_dataset(workdir, config, own, described['classes'])
  whole = dataset
  if split == 'test':
    if not dataset.test:
      lists = Path(config.data.get('split_lists') or Path(config.data.dir) / 'splits')
      where = (f'list their ids in {lists / "test.txt"}'
               if config.data.source == 'folder' else 'only a folder of your own has them')
      raise ValueError(f'{dataset.name} names no test images; {where}.')
    if lacking := [id for id in dataset.test if not dataset.reader.has_mask(id)]:
      raise DataError(f'{named(lacking)} of the test images of {dataset.name} has no mask to score '
                      'it by; add it, or take the id out of test.txt.')
    dataset = dataclasses.replace(dataset, validation=dataset.test, test=())
  unseen.check_unseen(
    workdir, dataset.validation, split=split, same_data=unseen.is_own(config, own))
  whole = dataclasses.replace(whole, unlabelled=())  # Nothing reads these here.
  odd = sources.check_classes(whole, sources.check(whole))
  if sharding.is_first_process():
    for remark in (*dataset.note.splitlines(), *odd):
      note(remark)
  sharding.check_agreement(
    checkpoint=step, protocols=[one.name for one in chosen], images=dataset.validation)
  found = evaluate_protocols(
    network, sharding.local_copy(variables), dataset, chosen,
    batch_size=sharding.round_up_to_devices(config.evaluate.batch),
    crop=own.data.crop, image_scale=own.data.image_scale, threads=config.data.threads,
    place=sharding.place_locally, part=(jax.process_index(), jax.process_count()))
  result = {'checkpoint': which, 'step': step, 'split': split, 'dataset': dataset.name,
            'images': len(dataset.validation),
            'validation_sha256': ids_sha256(dataset.validation),
            'protocols': {name: of.plain(dataset.classes) for name, of in found.items()}}
  if not sharding.is_first_process():
    return result
  print(evaluation_sheet([result]), flush=True)  # Before anything that may fail.
  every = evaluations.add(workdir, result)
  replace_text(workdir / 'evaluation.md', evaluation_sheet(every))
  return every[-1]


def choose_images(
  workdir: Path, config: ml_collections.ConfigDict | None, *, count: int, out: Path | None = None,
  which: str = 'last', network: str | None = None, overwrite: bool = False,
) -> Path:
  """Ranks the unlabelled images of a run by what a label of each would teach; see acquisition.

  Those of a folder that have a mask already are passed over: nobody need draw it again. The masks
  of published data sets are only hidden, and count for nothing.

  Args:
    workdir: of the run.
    config: None for the run's own; another one names another place of the data, evaluate.batch
      and data.threads.
    count: of images.
    out: folder for the results; WORKDIR/label_next by default.
    which: 'last' or 'best' checkpoint.
    network: of the run; the one that predicts by default.
    overwrite: whether earlier results are replaced.
  Returns: the path of label_next.csv.
  Raises:
    ValueError: no run, no unlabelled images, or results that are there already.
  """
  out = out or workdir / 'label_next'
  own, described = read_run(workdir)
  if config is not None:
    config_rules.check(config)
  data = (config or own).data
  label_next.check_out(
    out, overwrite=overwrite, data=Path(data.dir) if data.source == 'folder' else None)
  dataset = run_data.make_dataset(workdir, config or own, own, described['classes'])
  sources.check(dataset)
  if kept := read_ids(workdir / 'splits' / own.data.split / 'labeled.txt'):
    every = dict.fromkeys((*dataset.unlabelled, *dataset.labelled))
    taken = dict.fromkeys(id for id in kept if id in every)
    dataset = dataclasses.replace(
      dataset, labelled=tuple(taken), unlabelled=tuple(id for id in every if id not in taken))
  model = load_model(workdir, which=which, batch_size=config.evaluate.batch if config else None)
  _tell_of_step(workdir, model)
  asked, known = (
    acquisition.without_masks(dataset) if own.data.source == 'folder' else (dataset, 0))
  ranking = acquisition.rank(
    model, asked, count=count, network=network,
    drop_share=drop_share(own.method), threads=data.threads)
  lists = label_next.write(
    ranking, model, dataset, out, network=network, overwrite=overwrite)
  print(f'{len(ranking.ids)} of {len(asked.unlabelled)} unlabelled images are in {out}: '
        'correct the masks there, which hold 255 where nothing is known.')
  if known:
    print(f'{known} more have a mask already and were not ranked: to train with it, move their ids '
          f'from {lists / "unlabeled.txt"} to labeled.txt.')
  if own.data.source == 'folder':
    advice, place = label_next.copying_advice(dataset, Path((config or own).data.dir), out)
    print(f'{advice} and train:')
    print(begun.command_with_lists(workdir, own, data=str(place), lists=lists))
  return out / label_next.FILE


def load_model(
  workdir: Path, *, which: str = 'last', batch_size: int | None = None
) -> Model:
  """The networks of a run as a Model; reads neither its data set nor its optimisers.

  Args:
    workdir: of the run.
    which: 'last' or 'best' checkpoint.
    batch_size: images a batch; evaluate.batch of the run by default.
  Raises:
    ValueError: no run, or no such checkpoint.
  """
  config, described = read_run(workdir)
  classes = tuple(described['classes'])
  network, variables, step = load_networks(
    workdir, config, num_classes=len(classes), which=which,
    names=setup.make_method_of(config).scored)
  return Model(
    network, variables, classes=classes, palette=np.array(described['palette'], np.uint8),
    crop=config.data.crop, image_scale=config.data.image_scale,
    pixel_range=config.data.get('pixel_range', ()),
    batch_size=batch_size or config.evaluate.batch, step=step)


def _tell_of_step(workdir: Path, model: Model) -> None:
  if said := begun.unfinished(workdir, model.step):
    note(said)


def predict_images(
  workdir: Path, config: ml_collections.ConfigDict | None, *, images: Path, out: Path,
  which: str = 'last', recursive: bool = False, **options: Any,
) -> int:
  """Segments a folder of images with a network of a run; needs no data set.

  Args:
    workdir: of the run.
    config: None for the run's own; of another one only evaluate.batch is read.
    images: folder of images of any size.
    out: folder for the results.
    which: 'last' or 'best' checkpoint.
    recursive: whether folders in `images` are searched.
    options: of predict_folder.
  Returns: how many images could not be read; each is named with the reason.
  Raises:
    ValueError: no run, or folders that cannot be used, before the checkpoint is read.
  """
  own, _ = read_run(workdir)
  found = check_folders(
    images, out, recursive=recursive, pixel_range=own.data.get('pixel_range', ()))
  model = load_model(workdir, which=which, batch_size=config.evaluate.batch if config else None)
  _tell_of_step(workdir, model)
  written, skipped = predict_folder(
    model, images=images, out=out, recursive=recursive, **options)
  print(f'{len(written)} masks are in {out}')
  for remark in remarks(found, images, recursive=recursive):
    note(remark)
  if skipped:
    print(f'{len(skipped)} images could not be read:', file=sys.stderr)
    for reason in skipped.values():
      print(f'  {reason}', file=sys.stderr)
  return len(skipped)


def export_run(
  workdir: Path, out: Path, *, layout: str, size: str | None = None, which: str = 'last',
  **options: Any,
) -> None:
  """Exports a network of a run and says how it was checked.

  Args:
    workdir: of the run.
    out: the file.
    layout: of export.FORMATS.
    size: HEIGHTxWIDTH.
    which: 'last' or 'best' checkpoint.
    options: network and overwrite, as of export.export.
  Raises:
    ValueError: no run, a bad size, or what export.export refuses.
  """
  found = re.fullmatch(r'([1-9][0-9]{0,4})x([1-9][0-9]{0,4})', size or '1x1')
  if not found:
    raise ValueError(f'--size {size} should be HEIGHTxWIDTH in pixels, such as 360x480.')
  print(export.export(
    load_model(workdir, which=which), out, layout=layout,
    size=(int(found[1]), int(found[2])) if size else None, **options))
