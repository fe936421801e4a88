"""Runs that start from the networks of another one."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from gta_jax.training import init_from, same_run, setup
from tests.runs import final_state, tiny_config


def start(workdir, arg='4', **overrides):
  return init_from.first_state(
    setup.make_run(tiny_config(arg, **{'train.init_from': str(workdir), **overrides})))


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_networks_are_taken_over_by_role_and_the_rest_is_new(finished):
  workdir, _ = finished
  end = final_state(workdir, tiny_config())
  found = start(workdir)
  assert_equal(found.networks, end.networks)
  assert int(found.step) == 0
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(found.optimizers))
  leaves = jax.tree.leaves(found.networks)
  assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@pytest.mark.parametrize('arg, overrides, needed', [
  ('4', {'method.warmup_epochs': 0.0}, {}),
  ('4', {}, {'method.warmup_epochs': 0.0}),
  ('4', {'method.warmup_epochs': 0.0, 'method.handover_epochs': 1.0},
   {'method.handover_epochs': 0.0}),
  ('4,recipe=released', {'method.ema_ramp': False}, {
    'method.warmup': 'all', 'method.warmup_epochs': 0.0, 'method.handover_epochs': 0.0,
    'method.initial_networks': 'one'}),
  ('4,method=u2pl', {'method.warmup_epochs': 0.0}, {
    'method.warmup': 'all', 'method.handover_epochs': 0.0, 'method.ema_ramp': False}),
  ('4,method=sup_only', {}, {'method.warmup_epochs': 0.0}),
  ('4,method=cps', {}, {}),
  ('4,method=fixmatch_ema', {}, {'method.warmup_epochs': 0.0, 'method.ema_ramp': False})])
def test_a_teacher_that_gives_way_at_once_is_said(finished, arg, overrides, needed):
  def make(options):
    run = setup.make_run(tiny_config(
      arg, **{'train.init_from': str(finished[0]), **overrides, **options}))
    return run, [text for text in run.notes if 'The teacher of train.init_from' in text]

  _, said = make({})
  assert [text.partition('to go on with it set ')[2] for text in said] == (
    [', '.join(f'{key}={value}' for key, value in needed.items()) + '.'] if needed else [])
  run, said = make(needed)
  assert not said and [stage.name for stage in run.stages] == ['main']


def test_an_older_runs_config_may_lack_fields(finished, tmp_path):
  older = shutil.copytree(finished[0], tmp_path / 'older')
  config = json.loads((older / 'config.json').read_text())
  del config['data']['pixel_range']
  (older / 'config.json').write_text(json.dumps(config))
  start(older)


def test_networks_that_saw_other_images_are_refused_or_said(finished, capsys):
  start(finished[0])
  assert 'was trained with' not in capsys.readouterr().err
  start(finished[0], **{'model.output_stride': 8, 'data.image_scale': 0.5})
  said = capsys.readouterr().err
  assert 'model.output_stride=16, here 8' in said and 'data.image_scale=1.0, here 0.5' in said
  with pytest.raises(ValueError, match=r'normalised by mean .* by \(0\.5, 0\.5, 0\.5\) and'):
    start(finished[0], **{'model.mean': (0.5, 0.5, 0.5)})


@pytest.mark.slow
def test_a_role_that_the_other_run_lacks_begins_as_its_student(finished):
  """A second one that learns by itself has a classifier of its own, or it would stay the first."""
  workdir, _ = finished
  student = final_state(workdir, tiny_config()).networks['student']
  found = start(workdir, '4,method=cps').networks
  assert_equal(found['first'], student)
  for kind, tree in student.items():
    for key, leaves in tree.items():
      differ = jax.tree.map(lambda a, b: np.any(a != b), found['second'][kind][key], leaves)
      assert any(jax.tree.leaves(differ)) == (key == 'classifier'), (kind, key)


def test_what_is_no_segmenter_is_not_taken_over(finished):
  """GCT's flaw detector has a classifier too."""
  end = final_state(finished[0], tiny_config()).networks
  found = start(finished[0], '4,method=gct').networks
  assert_equal({name: found[name] for name in ('student', 'assistant')},
               {name: end[name] for name in ('student', 'assistant')})
  assert 'detector' in found


def test_a_method_that_begins_again_begins_as_the_other_run_ended(finished):
  found = start(finished[0], '4,method=st')
  student = final_state(finished[0], tiny_config()).networks['student']
  assert_equal(found.networks['student'], student)
  assert_equal(found.memory['initial'], student)


@pytest.mark.slow
def test_heads_that_the_other_run_lacks_are_drawn(finished):
  workdir, _ = finished
  end = final_state(workdir, tiny_config()).networks
  found = start(workdir, '4,method=u2pl').networks['student']['params']
  extra = found.keys() - end['student']['params'].keys()
  assert extra and all(np.any(jax.tree.leaves(found[key])[-1]) for key in extra)  # a kernel
  assert_equal({key: found[key] for key in end['student']['params']}, end['student']['params'])


def test_the_other_run_may_be_named_from_any_folder(finished, tmp_path, monkeypatch):
  source, workdir = tmp_path / 'source', tmp_path / 'run'
  shutil.copytree(finished[0], source)
  for folder in (tmp_path, workdir / 'checkpoints'):
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(folder)
    made = setup.make_run(tiny_config(**{'train.init_from': os.path.relpath(source)}))
    same_run.check_same(made, workdir, allow_config_change=False)
    same_run.write_same(made, workdir)
    kept = setup.from_json(workdir / 'config.json').train.init_from
    assert os.path.isabs(kept) and os.path.samefile(kept, source)
    (workdir / 'checkpoints').mkdir(exist_ok=True)
    (workdir / 'checkpoints' / '1.json').touch()


def test_pretrained_weights_are_not_looked_for(finished, tmp_path):
  found = start(finished[0], **{'model.weights': str(tmp_path / 'gone.pth')})
  assert_equal(found.networks, final_state(finished[0], tiny_config()).networks)


@pytest.mark.parametrize(('source', 'overrides', 'message'), [
  ('nowhere', {}, 'nowhere holds no run'),
  ('', {'model.width': 0.25}, r'another network: .*has shape .* there and .* here; use the same'),
])
def test_what_cannot_be_taken_over_is_refused(finished, tmp_path, source, overrides, message):
  workdir = tmp_path / source if source else finished[0]
  with pytest.raises(ValueError, match=message):
    start(workdir, **overrides)


def test_other_classes_are_refused(finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / 'run')
  described = json.loads((tmp_path / 'run' / 'dataset.json').read_text())
  described['classes'].reverse()
  (tmp_path / 'run' / 'dataset.json').write_text(json.dumps(described))
  with pytest.raises(ValueError, match='was trained for .*; name a run with the same classes'):
    start(tmp_path / 'run')
