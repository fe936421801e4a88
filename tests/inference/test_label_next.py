"""What is written about the images that are asked for first, and said."""

import csv
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import launch
from gta_jax import command_flags
from gta_jax.data import writing
from gta_jax.data.class_list import read_classes
from gta_jax.data.files import decode_mask
from gta_jax.data.sources import check
from gta_jax.inference import acquisition, begun, label_next
from gta_jax.training import datasets, setup
from tests.inference.in_memory import dataset, model

LABEL_NEXT = ['gta-jax', '--mode', 'label_next', '--workdir', 'run', '--count', '3']


def test_the_command_that_is_named_trains_as_the_run_before_on_the_new_lists(
  folder_run, capsys, monkeypatch
):
  assert launch.main(LABEL_NEXT) == 0
  said = capsys.readouterr().out
  assert 'copy them into' in said and '0 and 255' not in said
  words = shlex.split(said.splitlines()[-2])
  values = command_flags.parse(words)
  assert values.workdir == 'run-5' and words[:3] == [
    'gta-jax', '--config', 'folder:5,model=tiny,method=sup_only']
  assert (values.config.data.crop, values.config.train.labelled_batch) == (32, 2)
  for path in (folder_run / 'run' / 'label_next' / 'masks').iterdir():
    shutil.copy(path, 'data/masks')
  assert len(datasets.make_dataset(values.config).labelled) == 5
  # Neither recorded, nor written as the command line above.
  own = setup.from_json(folder_run / 'run' / 'config.json')
  where = {'data': 'new data', 'lists': Path('out/splits/7')}
  ours = " '--config.data.dir=new data' --config.data.split_lists=out/splits --workdir=run-7"
  (folder_run / 'run' / 'report.json').unlink()
  assert begun.command_with_lists(Path('run'), own, **where) == (
    f'gta-jax --config folder:7,method=sup_only{ours}\n'
    'The run has kept no command: add model= and the fields that were set for it.')
  kept = ('python launch.py -config=folder:split=2,model=base --workdir=w --config.seed 3 '
          '--config.data.split 2 --config.data.split_lists x')
  monkeypatch.setattr(begun, '_snapshot', lambda _: {'command': kept})
  assert begun.command_with_lists(Path('run'), own, **where) == (
    'python launch.py --config folder:7,model=base --config.seed 3' + ours)


def test_masks_of_0_and_255_become_ids_in_another_folder_before_others_join_them(
  folder_run, capsys
):
  before = {}
  for path in (folder_run / 'data' / 'masks').iterdir():
    Image.fromarray(np.where(np.asarray(Image.open(path)) == 1, 255, 0).astype(np.uint8)).save(path)
    before[path] = path.read_bytes()
  assert launch.main(LABEL_NEXT) == 0
  said = capsys.readouterr().out.splitlines()
  convert, train = (shlex.split(line) for line in said if line.startswith('gta-jax'))
  assert launch.main(convert) == 0
  for path in (folder_run / 'run' / 'label_next' / 'masks').iterdir():
    shutil.copy(path, 'data-ids/masks')
  dataset = datasets.make_dataset(command_flags.parse(train).config)
  check(dataset)
  assert len(dataset.labelled) == 5 and {path: path.read_bytes() for path in before} == before
  truth = np.asarray(Image.open(next(iter(before)))) // 255
  np.testing.assert_array_equal(dataset.reader.mask(next(iter(before)).stem), truth)


def test_batch_and_threads_of_the_command_are_taken(folder_run, monkeypatch, capsys):
  def rank(model, *_, threads, **__):
    raise ValueError(f'batches of {model.batch_size}, {threads} threads')

  monkeypatch.setattr(acquisition, 'rank', rank)
  assert launch.main([
    *LABEL_NEXT, '--config=folder:2,model=tiny,method=sup_only', '--config.data.dir=data',
    '--config.evaluate.batch=3', '--config.data.threads=7']) == 2
  assert 'batches of 3, 7 threads' in capsys.readouterr().err


def test_images_of_a_folder_that_have_a_mask_are_not_asked_for(folder_run, capsys):
  for number in range(4, 23):
    shutil.copy('data/masks/00.png', f'data/masks/{number:02}.png')
  assert launch.main(LABEL_NEXT) == 0
  said = capsys.readouterr().out
  assert '1 of 1 unlabelled images are in' in said and '19 more have a mask already' in said
  lists = folder_run / 'run' / 'label_next' / 'splits' / '3'
  assert (lists / 'labeled.txt').read_text().split()[-1] == '23'
  assert len((lists / 'unlabeled.txt').read_text().split()) == 19
  shutil.copy('data/masks/00.png', 'data/masks/23.png')
  assert launch.main([*LABEL_NEXT, '--overwrite']) == 2
  assert 'All 20 unlabelled images of data have a mask already' in capsys.readouterr().err


def test_a_run_is_told_what_to_label_and_nothing_is_overwritten(finished, tmp_path, capsys):
  workdir, out = tmp_path / 'run', tmp_path / 'deep' / 'out'
  shutil.copytree(finished[0], workdir)
  # As if the split were drawn otherwise now: the data set calls one labelled that the run did not.
  kept = workdir / 'splits' / '4' / 'labeled.txt'
  labelled = kept.read_text().splitlines()
  everything = {*labelled, *(kept.parent / 'unlabeled.txt').read_text().splitlines()}
  kept.write_text(''.join(f'{id}\n' for id in labelled[:3]))
  arguments = ['gta-jax', '--mode', 'label_next', '--workdir', str(workdir), '--count', '3',
               '--out', str(out)]
  assert launch.main(arguments) == 0
  assert '3 of 9 unlabelled images are in' in capsys.readouterr().out
  with (out / label_next.FILE).open() as file:
    rows = list(csv.DictReader(file))
  assert [row['rank'] for row in rows] == ['1', '2', '3']
  ids = [row['image'] for row in rows]
  assert len(set(ids)) == 3 and not set(ids) & set(labelled[:3])
  lists = out / 'splits' / '6'
  assert (lists / 'labeled.txt').read_text().splitlines() == [*labelled[:3], *ids]
  rest = (lists / 'unlabeled.txt').read_text().splitlines()
  assert len(rest) == 6 and {*labelled[:3], *ids, *rest} == everything
  assert len(read_classes(out / 'classes.txt').names) == 7
  void = 0
  for row in rows:
    path = out / 'masks' / f'{row["image"]}.png'
    mask = decode_mask(path.read_bytes(), str(path))
    assert mask.shape == (40, 40) and set(np.unique(mask)) <= {*range(7), 255}
    void += (mask == 255).mean() / 3
    for other in (out / 'images' / f'{row["image"]}.png', out / row['thumbnail']):
      with Image.open(other) as picture:
        assert picture.size == (40, 40)
  assert 0.05 < void < 0.9  # a fifth of all unlabelled images, more of the uncertain ones
  corrected = out / 'masks' / f'{ids[0]}.png'
  corrected.write_bytes(b'corrected')
  assert launch.main(arguments) == 2
  assert 'perhaps corrected masks' in capsys.readouterr().err
  assert corrected.read_bytes() == b'corrected'
  assert launch.main([*arguments, '--overwrite']) == 0
  assert corrected.read_bytes() != b'corrected'
  assert (out / 'earlier' / corrected.relative_to(out)).read_bytes() == b'corrected'


def test_a_ranking_leaves_no_mask_of_an_earlier_one_among_its_own(tmp_path):
  rng = np.random.default_rng(0)
  images = {f'{i}': rng.integers(0, 256, (9, 14, 3), np.uint8) for i in range(4)}
  for ids in ('01', '23'):
    label_next.write(acquisition.Ranking(tuple(ids), (1.0, 0.5), (0.0, 0.1), 0.5), model(),
                     dataset(images), tmp_path, overwrite=True)
  for folder in ('masks', 'images'):
    assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ['2.png', '3.png']
  assert sorted(path.name for path in (tmp_path / 'earlier' / 'masks').iterdir()) == [
    '0.png', '1.png']
  lists = tmp_path / 'earlier' / 'splits' / '2' / 'labeled.txt'
  assert lists.read_text().split() == ['0', '1']


def test_results_that_could_not_be_written_are_refused_first(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match='file is no folder or is read-only; give another --out'):
    label_next.check_out(tmp_path / 'file' / 'out', overwrite=False)
  monkeypatch.setattr(writing.os, 'access', lambda *_: False)
  with pytest.raises(ValueError, match='is no folder or is read-only'):
    label_next.check_out(tmp_path / 'out', overwrite=True)


def test_earlier_rankings_are_kept_each_by_itself_also_interrupted_ones(tmp_path):
  rng = np.random.default_rng(0)
  images = {f'{i}': rng.integers(0, 256, (9, 14, 3), np.uint8) for i in range(3)}

  def rank_anew():
    label_next.write(acquisition.Ranking(('1',), (1.0,), (0.0,), 0.5), model(), dataset(images),
                     tmp_path, overwrite=True)

  rank_anew()
  (tmp_path / 'masks' / '1.png').write_bytes(b'corrected')
  rank_anew()
  (tmp_path / label_next.FILE).unlink()  # interrupted
  (tmp_path / 'masks' / '2.png').write_bytes(b'of this one alone')
  rank_anew()
  assert (tmp_path / 'earlier' / 'masks' / '1.png').read_bytes() == b'corrected'
  assert (tmp_path / 'earlier' / label_next.FILE).is_file()
  assert (tmp_path / 'earlier-2' / 'masks' / '2.png').is_file()
  assert [path.name for path in (tmp_path / 'masks').iterdir()] == ['1.png']


@pytest.mark.parametrize('out', ['.', 'images', 'masks/new', '..'])
def test_the_folder_of_the_data_is_no_place_for_a_ranking(tmp_path, out):
  data = tmp_path / 'data'
  (data / 'images').mkdir(parents=True)
  with pytest.raises(ValueError, match='is the folder of the data, around it, or one of its'):
    label_next.check_out(data / out, overwrite=True, data=data)
  label_next.check_out(data / 'runs' / 'mine' / 'label_next', overwrite=False, data=data)
