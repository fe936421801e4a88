"""GTA-Seg in JAX: semi-supervised semantic segmentation with a gentle teaching assistant."""

__version__ = '0.2.0'
