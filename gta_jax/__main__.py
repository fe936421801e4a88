"""python -m gta_jax: the same as the command gta-jax."""

import sys

from gta_jax.command import main

if __name__ == '__main__':
  sys.exit(main())
