"""What is averaged, and which images are held back."""

import averages
import jax
import numpy as np
import pytest
from averages import Averages

from tests import tiny
from tests.data.test_inspection import make


def test_averages_are_of_the_students_since_the_warm_up():
  method = Averages(warmup_epochs=2.0)
  tools = tiny.make_tools(tiny.linear_network(), rate=0.1, total_steps=6, epoch_steps=1, batch=4)
  steps = tiny.make_steps(method, tools)
  state, students, teacher = tiny.first_state(method, tools), [], None
  for number, stage in enumerate(['warmup'] * 2 + ['main'] * 4):
    state, metrics = steps[stage](state, *tiny.make_batches(number, batch=4))
    student, average = (state.networks[name]['params'] for name in ('student', 'of_all'))
    if stage == 'warmup':
      jax.tree.map(np.testing.assert_array_equal, average, student)
      teacher = student
      continue
    students.append(student)
    mean = jax.tree.map(lambda *each: sum(each) / len(each), *students)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), average, mean)
    teacher = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * new, teacher, student)
  assert metrics['teacher_decay'] == pytest.approx(0.99)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
               state.networks['teacher']['params'], teacher)


def test_a_fourth_of_the_images_without_a_mask_in_training_is_held_back(tmp_path):
  data = make(tmp_path / 'data')
  lists = data / 'splits' / '2'
  lists.mkdir(exist_ok=True)
  (lists / 'labeled.txt').write_text('00\n01\n')
  (lists / 'unlabeled.txt').write_text(''.join(f'{i:02}\n' for i in range(4, 12)))
  with pytest.raises(ValueError, match=r'has no 04.png: images without a mask'):
    averages.make_folder(data, tmp_path / 'out', '2')
  for name in ('04', '08'):
    (data / 'masks' / f'{name}.png').write_bytes((data / 'masks' / '00.png').read_bytes())
  folder = averages.make_folder(data, tmp_path / 'out', '2')
  made = averages.make_run(folder, '2', 7, [])
  assert made.dataset.validation == ('04', '08')
  assert made.dataset.labelled == ('00', '01')
  assert set(made.dataset.unlabelled) == {'05', '06', '07', '09', '10', '11'}
  assert (made.config.seed, made.method.scored[-1]) == (7, 'of_all')
  assert averages.make_folder(data, tmp_path / 'out', '2') == folder


def test_runs_of_other_fields_are_not_mixed(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(averages, 'make_folder', lambda *_: pytest.fail('must not begin'))
  (tmp_path / 'settings-2.json').write_text('{"data": "elsewhere", "fields": []}')
  monkeypatch.setattr(
    'sys.argv', ['averages.py', '--data', str(tmp_path), '--split', '2', '--out', str(tmp_path)])
  with pytest.raises(SystemExit):
    averages.main()
  assert 'instead of elsewhere; give another --out' in capsys.readouterr().err
