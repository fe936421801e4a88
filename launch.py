"""Trains, evaluates, predicts, reports: python launch.py --config configs/shapes.py --workdir a

The command gta-jax of an installed package is the same; --help says what it can do.
"""

import sys

from gta_jax.command import main

if __name__ == '__main__':
  sys.exit(main())
