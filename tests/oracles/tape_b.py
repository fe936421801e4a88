"""Reverse-mode differentiation of the few array operations that the NumPy oracles need.

A method writes its objective once; whatever it puts under a stop-gradient is computed beforehand
on plain arrays and enters as a constant, so that an objective may be checked against finite
differences as it stands.
"""

import copy

import numpy as np


class Node:
  """An array on the tape; `parents` are pairs (node, from this gradient to the node's)."""

  __array_ufunc__ = None  # array + node asks the node

  def __init__(self, value, parents=()):
    self.value, self.parents = np.asarray(value, float), parents

  def __add__(self, other):
    other = as_node(other)
    return Node(self.value + other.value, ((self, lambda g: g), (other, lambda g: g)))

  def __mul__(self, other):
    other = as_node(other)
    a, b = self.value, other.value
    return Node(a * b, ((self, lambda g: g * b), (other, lambda g: g * a)))

  def __matmul__(self, other):
    other = as_node(other)
    a, b = self.value, other.value
    return Node(a @ b, ((self, lambda g: g @ b.swapaxes(-1, -2)),
                        (other, lambda g: a.swapaxes(-1, -2) @ g)))

  def __rmatmul__(self, other):
    return as_node(other) @ self

  def __pow__(self, power):
    a = self.value
    return Node(a ** power, ((self, lambda g: g * power * a ** (power - 1)),))

  def __getitem__(self, index):
    def scatter(g):
      out = np.zeros_like(self.value)
      np.add.at(out, index, g)
      return out
    return Node(self.value[index], ((self, scatter),))

  def __neg__(self): return self * -1.0
  def __sub__(self, other): return self + as_node(other) * -1.0
  def __rsub__(self, other): return as_node(other) + self * -1.0
  def __truediv__(self, other): return self * as_node(other) ** -1.0
  __radd__, __rmul__ = __add__, __mul__

  def sum(self, axis=None, keepdims=False):
    shape = np.sum(self.value, axis, keepdims=True).shape
    return Node(np.sum(self.value, axis, keepdims=keepdims),
                ((self, lambda g: np.broadcast_to(g.reshape(shape), self.value.shape)),))

  def reshape(self, *shape):
    return Node(self.value.reshape(*shape), ((self, lambda g: g.reshape(self.value.shape)),))

  def transpose(self):
    """The last two axes exchanged."""
    return Node(self.value.swapaxes(-1, -2), ((self, lambda g: g.swapaxes(-1, -2)),))


def as_node(value):
  return value if isinstance(value, Node) else Node(value)


def exp(x):
  y = np.exp(x.value)
  return Node(y, ((x, lambda g: g * y),))


def log(x):
  return Node(np.log(x.value), ((x, lambda g: g / x.value),))


def log_softmax(x):
  """Over the last axis."""
  x = x - x.value.max(-1, keepdims=True)
  return x - log(exp(x).sum(-1, keepdims=True))


def gradient(loss, leaves):
  """d loss / d leaf for each leaf of {key: {name: Node}}."""
  order, seen = [], set()

  def visit(node):
    if id(node) not in seen:
      seen.add(id(node))
      for parent, _ in node.parents:
        visit(parent)
      order.append(node)

  visit(loss)
  found = {id(loss): np.ones_like(loss.value)}
  for node in reversed(order):
    for parent, pull in node.parents:
      g = pull(found[id(node)])
      shape = parent.value.shape
      g = g.sum(tuple(range(g.ndim - len(shape))))
      g = g.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)
      found[id(parent)] = found.get(id(parent), 0.0) + g
  return map_tree(lambda leaf: found.get(id(leaf), np.zeros_like(leaf.value)), leaves)


def map_tree(function, *trees):
  return {key: {name: function(*(tree[key][name] for tree in trees)) for name in trees[0][key]}
          for key in trees[0]}


def worst_gradient_error(objective, params, tiny=1e-6):
  """The largest distance of `gradient` from central differences of objective(nodes)[0]."""
  nodes = map_tree(Node, params)
  exact, worst = gradient(objective(nodes)[0], nodes), 0.0
  params = copy.deepcopy(params)
  for key, layer in params.items():
    for name, value in layer.items():
      for i in range(value.size):
        kept, losses = value.flat[i], []
        for shift in (tiny, -tiny):
          value.flat[i] = kept + shift
          losses.append(objective(map_tree(Node, params))[0].value)
        value.flat[i] = kept
        numeric = (losses[0] - losses[1]) / (2 * tiny)
        worst = max(worst, abs(numeric - exact[key][name].flat[i]))
  return float(worst)
