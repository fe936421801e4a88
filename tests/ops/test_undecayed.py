"""Which parameters weight decay is for."""

import jax
import jax.numpy as jnp
import optax
import pytest

from gta_jax.ops.optim import make_adam, make_sgd


@pytest.mark.parametrize('make', [make_sgd, make_adam])
@pytest.mark.parametrize('decay, undecayed, moved', [
  ('all', (), {'backbone': (1, 1), 'head': (1, 1)}),
  ('all', ('head',), {'backbone': (1, 1), 'head': (0, 0)}),
  ('kernels', ('head',), {'backbone': (1, 0), 'head': (0, 0)}),
  ('kernels', (), {'backbone': (1, 0), 'head': (1, 0)}),
])
def test_weight_decay_spares_what_it_should(make, decay, undecayed, moved):
  params = {key: {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)} for key in moved}
  optimizer = make(optax.constant_schedule(0.1), weight_decay=0.5, decay=decay,
                   undecayed=undecayed)
  updates, _ = optimizer.update(
    jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params, step=jnp.int32(0))
  found = {key: tuple(int(bool(part[name].any())) for name in ('kernel', 'bias'))
           for key, part in updates.items()}
  assert found == moved
