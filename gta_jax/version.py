"""Which gta_jax this is."""

import os
import subprocess
from pathlib import Path

__version__ = '0.2.0'


def version(package: Path = Path(__file__).parent) -> str:
  """The package's version, with its commit where it lies in a clone: '0.2.0+1a2b3c4'.

  '-dirty' is added where the package's folder is not as it was committed.
  """
  # A hook or a rebase names its own repository in the environment.
  environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}

  def git(*arguments: str) -> str:
    try:
      return subprocess.run(['git', *arguments], cwd=package, env=environment, text=True,
                            capture_output=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
      return ''

  # An environment may lie inside the clone of something else.
  if not git('ls-files', '__init__.py'):
    return __version__
  commit, changed = git('rev-parse', '--short', 'HEAD'), git('status', '--porcelain', '--', '.')
  return f'{__version__}+{commit}{"-dirty" * bool(changed)}'
