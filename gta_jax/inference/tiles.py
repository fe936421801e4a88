"""Tiles with overlap: large images in bounded memory."""

from collections.abc import Iterator
from typing import NamedTuple

Size = tuple[int, int]  # (height, width) in pixels
Box = tuple[slice, slice]  # rows, columns


class Tile(NamedTuple):
  """A part of an image.

  Attributes:
    seen: what the network reads, in the image.
    kept: what is kept of the result, in the image; those of all tiles cover it once.
    inner: the same in the tile.
  """

  seen: Box
  kept: Box
  inner: Box


def tiles_of(size: Size, side: int, overlap: int) -> Iterator[Tile]:
  """Cuts an image into tiles of one size that overlap by `overlap` pixels or more.

  Where two tiles overlap they meet in the middle: what is kept lies at least overlap / 2 from a
  tile's border, unless that is the image's.

  Args:
    size: of the image.
    side: of a tile, in pixels; larger than `overlap`. A side of the image below it is not cut.
    overlap: in pixels.
  """
  rows, columns = (_spans(length, side, overlap) for length in size)
  for row in rows:
    for column in columns:
      yield Tile(*((row[i], column[i]) for i in range(3)))


def _spans(length: int, side: int, overlap: int) -> list[tuple[slice, slice, slice]]:
  """seen, kept and inner along one side of an image."""
  side = min(side, length)
  count = 1 if length == side else -(-(length - overlap) // (side - overlap))
  starts = [(length - side) * i // max(count - 1, 1) for i in range(count)]
  borders = [0, *((after + before + side) // 2 for before, after in zip(starts, starts[1:],
                                                                        strict=False)), length]
  return [(slice(start, start + side), slice(low, high), slice(low - start, high - start))
          for start, low, high in zip(starts, borders, borders[1:], strict=False)]
