"""The oracles' own tools: tape, OHEM, boxes, SGD."""

import numpy as np
import pytest

from tests.oracles import linear_model_b as lm
from tests.oracles import tape_b as tape


def test_every_operation_of_the_tape_agrees_with_finite_differences():
  rng = np.random.default_rng(0)
  params = {'a': {'kernel': rng.normal(size=(4, 3)), 'bias': rng.normal(size=3)},
            'b': {'kernel': rng.random((3, 2)) + 1}}
  x = rng.normal(size=(2, 5, 4))

  def objective(nodes):
    y = tape.log_softmax(x @ nodes['a']['kernel'] + nodes['a']['bias'])
    z = (tape.exp(y) @ nodes['b']['kernel']) ** 0.5
    z = 1.0 - tape.log(z) / (z.transpose()[:, [0, 1, 1]].sum((0, 2), keepdims=True).reshape(3)[2])
    return (np.arange(2.0) * z - y[..., :1]).sum(), {}

  assert tape.worst_gradient_error(objective, params) < 1e-7


def test_ohem_keeps_the_hardest_pixels():
  logits = tape.Node(np.log([[[0.9, 0.1], [0.8, 0.2], [0.5, 0.5], [0.3, 0.7]]]))
  label = np.array([[0, 0, 0, lm.IGNORE]])
  assert lm.supervised(logits, label, (0.6, 1)).value == pytest.approx(-np.log(0.5))
  assert lm.supervised(logits, label, (0.6, 2)).value == pytest.approx(-np.log(0.5 * 0.8) / 2)
  assert lm.supervised(logits, label).value == pytest.approx(-np.log(0.9 * 0.8 * 0.5) / 3)


def test_a_box_takes_its_inside_from_the_partner():
  box = lm.inside(np.array([[1, 0, 2, 2], [0, 0, 0, 0]]), (2, 3))
  mixed = lm.paste(np.zeros((2, 2, 3)), np.ones((2, 2, 3)), box)
  assert mixed.tolist() == [[[0, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]]


def test_sgd_by_hand():
  hyper = lm.settings(lm.SGD, {'weight_decay': 0.5, 'momentum': 0.5})
  params = {key: {'kernel': np.array(2.0), 'bias': np.array(2.0)} for key in ('backbone', 'x')}
  ones = tape.map_tree(np.ones_like, params)
  new, momentum = lm.sgd(params, ones, ones, 0.1, hyper)
  assert momentum['x']['bias'] == 2.5  # 0.5 * 1 + (1 + 0.5 * 2)
  assert new['backbone']['kernel'] == pytest.approx(2 - 0.25)
  assert new['x']['kernel'] == pytest.approx(2 - 2.5)
  hyper.update(decay_biases=False, bias_multiplier=2.0, undecayed_keys=('x',))
  _, momentum = lm.sgd(params, ones, ones, 0.1, hyper)
  assert momentum['backbone'] == {'kernel': 2.5, 'bias': 2.5}  # 0.5 + 2 * 1
  assert momentum['x'] == {'kernel': 1.5, 'bias': 2.5}


def test_first_rates():
  hyper = lm.settings(lm.SGD, {'rate': 1.0, 'total_steps': 4})
  assert [lm.poly_rate(t, hyper) for t in range(3)] == [1, 0.75 ** 0.9, 0.5 ** 0.9]
  hyper['late_rate'] = True
  assert [lm.poly_rate(t, hyper) for t in range(3)] == [1, 1, 0.75 ** 0.9]


def test_unknown_options_are_refused():
  with pytest.raises(ValueError, match='treshold'):
    lm.settings(lm.SGD, {'treshold': 1})
