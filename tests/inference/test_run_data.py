"""A run is scored on images that it has not seen, whatever has become of its labelled ones."""

import json
import shutil

from gta_jax import command

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
