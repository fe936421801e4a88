"""A run is scored on images that it has not seen, whatever has become of its labelled ones."""

import json
import shutil

import numpy as np
from PIL import Image

from configs import folder
from gta_jax import command
from gta_jax.training import unseen

EVALUATE = ['gta-jax', '--mode', 'evaluate', '--workdir', 'run']


def test_scores_need_no_labelled_images_beside_those_of_the_run(folder_run, capsys):
  assert command.main(EVALUATE) == 0
  before = json.loads((folder_run / 'run' / 'evaluation.json').read_text())
  # Two images have masks outside validation; without them nothing can be drawn.
  shutil.copy('data/masks/00.png', 'data/masks/04.png')
  (folder_run / 'data' / 'masks' / '00.png').unlink()
  (folder_run / 'data' / 'splits' / 'test.txt').write_text('04\n')
  assert command.main(EVALUATE) == 0
  assert json.loads((folder_run / 'run' / 'evaluation.json').read_text()) == before
  assert command.main([*EVALUATE, '--split', 'test']) == 0
  capsys.readouterr()
  # The folder's lists count, and are the ones that messages name.
  (folder_run / 'data' / 'splits' / 'test.txt').write_text('lost\n')
  assert command.main([*EVALUATE, '--split', 'test']) == 2
  assert 'data/splits/test.txt, line 1: no image below' in capsys.readouterr().err


def test_images_that_the_run_was_trained_on_are_refused_or_named(folder_run, capsys):
  assert command.main(EVALUATE) == 0
  assert 'trained the run' not in capsys.readouterr().err
  shutil.copy('data/masks/00.png', 'data/masks/04.png')
  (folder_run / 'data' / 'splits' / 'test.txt').write_text('04\n')
  assert command.main([*EVALUATE, '--split', 'test']) == 0
  assert "'04' of the 1 test images trained the run in run without a mask" in (
    capsys.readouterr().err)
  (folder_run / 'data' / 'splits' / 'test.txt').write_text('04\n01\n')
  assert command.main([*EVALUATE, '--split', 'test']) == 2
  said = capsys.readouterr().err
  assert "'01' of the 2 test images trained the run in run with a mask" in said
  assert 'take it out of splits/test.txt' in said
  # Equal names elsewhere may be other images.
  (folder_run / 'data').rename(folder_run / 'other')
  elsewhere = ['--config', 'folder:2,model=tiny', '--config.data.dir=other']
  (folder_run / 'other' / 'splits' / 'val.txt').write_text('01\n')
  (folder_run / 'other' / 'splits' / 'test.txt').unlink()
  assert command.main([*EVALUATE, *elsewhere]) == 0
  assert 'if it is the same image' in capsys.readouterr().err


def test_what_a_run_began_with_must_be_new_to_its_scores_too(folder_run, capsys):
  anew = [
    'gta-jax', '--config', 'folder:2,model=tiny,method=sup_only', '--config.data.dir=data',
    '--workdir', 'next', '--config.train.init_from=run', '--config.data.crop=32',
    '--config.model.width=0.125', '--config.train.labelled_batch=2', '--config.train.epochs=1',
    '--config.train.unlabelled_batch=10', '--config.evaluate.pictures=1']
  splits = folder_run / 'data' / 'splits'
  (splits / '2').mkdir()
  (splits / '2' / 'labeled.txt').write_text('00\n')
  (splits / 'val.txt').write_text('01\n02\n03\n')
  assert command.main(anew) == 2
  assert "'01' of the 3 val images trained the run in run with a mask" in capsys.readouterr().err
  assert not (folder_run / 'next').exists()
  (splits / 'val.txt').write_text('02\n03\n')
  assert command.main(anew) == 0
  # The lists come along, as the run before may be gone by then.
  shutil.rmtree('run')
  (splits / 'test.txt').write_text('01\n')
  again = ['gta-jax', '--mode', 'evaluate', '--workdir', 'next', '--split', 'test']
  capsys.readouterr()
  assert command.main(again) == 2
  assert "'01' of the 1 test images trained the run in next with a mask" in capsys.readouterr().err
  splits.joinpath('test.txt').unlink()
  (splits / 'val.txt').write_text('00\n02\n03\n')
  (splits / '2' / 'labeled.txt').write_text('04\n')
  shutil.copy('data/masks/00.png', 'data/masks/04.png')
  assert command.main([*anew, '--allow_config_change']) == 2
  assert "'00' of the 3 val images trained the run in next with a mask" in capsys.readouterr().err


def test_masks_that_mean_something_else_now_are_not_scored_against(folder_run, capsys):
  for id in ('02', '03'):  # of validation: as black and white, beside others of ids
    path = folder_run / 'data' / 'masks' / f'{id}.png'
    with Image.open(path) as mask:
      white = np.asarray(mask) == 1
    Image.fromarray(np.where(white, 255, 0).astype(np.uint8)).save(path)
  assert command.main(EVALUATE) == 2
  assert "validation masks of data hold 'rock' alone" in capsys.readouterr().err


def test_a_drawn_split_goes_on_by_its_own_lists_after_masks_were_added(folder_run, capsys):
  shutil.copy('data/masks/00.png', 'data/masks/04.png')
  shutil.copy('data/masks/00.png', 'data/masks/05.png')
  again = [
    'gta-jax', '--config', 'folder:2,model=tiny,method=sup_only', '--config.data.dir=data',
    '--workdir', 'run', '--config.data.crop=32', '--config.model.width=0.125',
    '--config.train.labelled_batch=2', '--config.train.unlabelled_batch=10',
    '--config.train.epochs=1', '--config.evaluate.pictures=1', '--config.evaluate.worst=0']
  assert command.main(again) == 2
  said = capsys.readouterr().err
  assert '2/labeled.txt started this run' in said and 'data.split_lists=run/splits' in said
  assert command.main([*again, '--config.data.split_lists=run/splits']) == 0


def test_a_folder_is_the_same_however_it_is_spelt(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  configs = [folder.get_config('2') for _ in range(2)]
  own, other = (config.data for config in configs)
  for own.dir, other.dir, same in (('data', f'{tmp_path}/data/', True), ('data', 'x/../data', True),
                                   ('data', 'x/data', False), ('', '.', False), ('', '', True)):
    assert unseen.is_own(*configs) == same


def test_a_run_finds_its_data_from_any_folder_or_says_how_to(folder_run, monkeypatch, capsys):
  anew = [
    'gta-jax', '--config', 'folder:2,model=tiny,method=sup_only', '--config.data.dir=data',
    '--workdir', 'next', '--config.data.crop=32', '--config.model.width=0.125',
    '--config.train.labelled_batch=2', '--config.train.unlabelled_batch=10',
    '--config.train.epochs=1', '--config.evaluate.pictures=1']
  assert command.main(anew) == 0
  (folder_run / 'elsewhere').mkdir()
  monkeypatch.chdir('elsewhere')
  evaluate = ['gta-jax', '--mode', 'evaluate', '--workdir', '../next']
  assert command.main(evaluate) == 0
  (folder_run / 'data').rename(folder_run / 'moved')
  capsys.readouterr()
  assert command.main(evaluate) == 2
  assert '--config folder:2 --config.data.dir=DIR' in capsys.readouterr().err
