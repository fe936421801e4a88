"""GTA-Seg in JAX: semi-supervised semantic segmentation with a gentle teaching assistant."""
