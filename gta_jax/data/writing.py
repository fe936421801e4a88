"""Files that are whole or not there."""

import os
from pathlib import Path


def replace_bytes(path: Path, data: bytes | memoryview) -> None:
  """Writes a file so that at any moment either the old or the new one is there, whole."""
  partial = path.with_name(f'{path.name}.partial')
  try:
    partial.write_bytes(data)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
  """replace_bytes of text in UTF-8."""
  replace_bytes(path, text.encode())
