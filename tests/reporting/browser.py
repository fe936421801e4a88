"""A headless browser, where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
               None)
needs_browser = pytest.mark.skipif(
  BROWSER is None, reason='no chromium is installed: pages are tested without a browser alone')


def open_page(address: str, profile: Path) -> tuple[str, list[str]]:
  """The page's elements after its scripts have run, and all that they said on the console."""
  assert BROWSER
  done = subprocess.run(
    [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
     f'--user-data-dir={profile}', '--enable-logging=stderr', '--virtual-time-budget=5000',
     '--dump-dom', address], capture_output=True, text=True, check=True, timeout=180)
  return done.stdout, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
