"""GTA-Seg in JAX: semi-supervised semantic segmentation with a gentle teaching assistant."""

from gta_jax.devices.runtime import set_cpu_flags

# Here and not in launch.py, so that a notebook or a script that imports any part gets it as well.
set_cpu_flags()
