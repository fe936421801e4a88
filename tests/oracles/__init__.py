"""One training step of each method in NumPy, written from its published description alone."""
