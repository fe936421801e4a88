"""The oracle's hand-written gradient against finite differences."""

from tests.oracles import gta as oracle


def test_gradient_agrees_with_finite_differences():
  params, labelled, _ = oracle.make_problem(0)
  _, gradient = oracle.supervised(params, labelled[0])
  tiny = 1e-6
  for key in oracle.KEYS:
    for name, value in params[key].items():
      for index in range(value.size):
        kept = value.flat[index]
        losses = []
        for shift in (tiny, -tiny):
          value.flat[index] = kept + shift
          losses.append(oracle.supervised(params, labelled[0])[0])
        value.flat[index] = kept
        numeric = (losses[0] - losses[1]) / (2 * tiny)
        assert abs(numeric - gradient[key][name].flat[index]) < 1e-8, (key, name, index)
