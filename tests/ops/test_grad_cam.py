"""Class activation maps, nearest pixels and squares."""

import jax
import jax.numpy as jnp
import numpy as np

from gta_jax.ops.grad_cam import grad_cam, nearest
from gta_jax.ops.mixing import squares


def test_the_closed_form_is_grad_cam():
  """Against the gradient of the classifier's logits by the features."""
  rng = jax.random.key(0)
  features = jax.random.normal(rng, (2, 2, 3, 4))
  kernel = jax.random.normal(jax.random.fold_in(rng, 1), (4, 2))
  slopes = jax.jacobian(lambda x: x.mean((1, 2)) @ kernel)(features)  # [B,K-1,B,h,w,F]
  slopes = jnp.stack([slopes[i, :, i].mean((1, 2)) for i in range(2)])
  heat = jax.nn.relu(jnp.einsum('bkf,bhwf->bhwk', slopes, features))
  expected = heat / heat.max((1, 2), keepdims=True)
  found = grad_cam(features, kernel, jnp.ones((2, 2), bool), jnp.ones((2, 2, 3), bool))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_nearest_pixel_of_aligned_corners():
  mask = jnp.arange(9)[None, :, None] * 10 + jnp.arange(5)
  assert nearest(mask, (3, 2)).tolist() == [[[0, 4], [40, 44], [80, 84]]]
  assert nearest(mask, (1, 1)).tolist() == [[[0]]]
  assert nearest(jnp.arange(8)[None, None], (1, 4)).tolist() == [[[0, 2, 5, 7]]]  # 2.3 and 4.7


def test_squares_lie_around_a_pixel_anywhere():
  found = np.asarray(squares(jax.random.key(0), 2000, (6, 8), side=3))
  sides = found.any(2).sum(1)
  assert set(sides) == {2, 3} and found.mean(0).min() > 0.05  # cut at the border
  centre = found[:, 2, 3].mean()
  assert abs(centre - 9 / 48) < 0.03
