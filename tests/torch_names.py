"""Torch state dicts that fit a network, made from the network's own tree."""

import jax
import numpy as np

PREFIXES = {'backbone': 'encoder.', 'decoder': 'decoder.', 'classifier': 'decoder.classifier.',
            'auxiliary': 'auxor.aux.'}
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}


def torch_state(variables, prefixes=PREFIXES):
  """name -> random float32 array for every leaf; BatchNorm's counters too, as torch has them."""
  rng, state = np.random.default_rng(0), {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    _, part, *modules, name = (entry.key for entry in path)
    module = prefixes[part] + '.'.join(modules).replace('_', '.')
    # `low_conv` is the one name with an underscore of its own.
    module = module.replace('low.conv', 'low_conv')
    shape = tuple(leaf.shape[i] for i in (3, 2, 0, 1)) if leaf.ndim == 4 else leaf.shape
    values = rng.uniform(0.5, 1.5, shape) if name in ('scale', 'var') else rng.normal(size=shape)
    state[f'{module}.{_LEAVES.get(name, name)}'] = values.astype(np.float32)
    if name == 'var':
      state[f'{module}.num_batches_tracked'] = np.array(7)
  return state
