"""What a line of the log holds of its steps."""

import numpy as np
import pytest

from gta_jax.training.steps import _mean


@pytest.mark.filterwarnings('error')
def test_a_class_is_averaged_over_the_steps_in_which_it_occurs():
  steps = [np.float32([0.5, np.nan, np.nan]), np.float32([1.0, 0.25, np.nan])]
  np.testing.assert_array_equal(_mean('oracle_accuracy_by_class', steps), [0.75, 0.25, np.nan])
  one = _mean('oracle_accuracy_by_class', steps[1:])
  np.testing.assert_array_equal(one, [1.0, 0.25, np.nan])
  np.testing.assert_array_equal(_mean('kept_share_by_class', steps), [0.75, np.nan, np.nan])
