"""Which files of a folder count."""

from pathlib import Path


def visible_files(folder: Path, *, recursive: bool = True) -> list[Path]:
  """The files of a folder, sorted; names with a dot in front are passed over with all below them.

  Such are copies that programs keep for themselves, as .ipynb_checkpoints/a-checkpoint.png.

  Args:
    folder: must exist; dots in its own path do not count.
    recursive: whether folders in it are searched.
  """
  paths = folder.rglob('*') if recursive else folder.iterdir()
  return sorted(path for path in paths if not path.is_dir() and not any(
    part.startswith('.') for part in path.relative_to(folder).parts))
