"""Where a JPEG or a PNG ends, whatever a camera or a program has written behind it."""

JPEG = b'\xff\xd8'
PNG = b'\x89PNG\r\n\x1a\n'
TAIL = 4096  # bytes of a file's end in which its end is looked for first

_PNG_END = b'IEND\xaeB`\x82'
_JPEG_END, _JPEG_SCAN = 0xd9, 0xda
# Markers without a length: TEM, RST0 to RST7.
_ALONE = (0x01, *range(0xd0, 0xd8))
# Behind 0xff within a scan: a 0xff of the data, and restarts.
_OF_SCAN = (0x00, *range(0xd0, 0xd8))


def seems_whole(head: bytes, tail: bytes) -> bool:
  """Whether the last bytes of a JPEG or PNG hold its end; of other files nothing is known: true."""
  if head.startswith(JPEG):
    # The end marker must follow the last scan: a thumbnail in the header has one of its own.
    return tail.rfind(b'\xff\xd9') > tail.rfind(b'\xff\xda')
  return _PNG_END in tail if head.startswith(PNG) else True


def is_whole(data: bytes) -> bool:
  """The same of a whole file, read from its beginning: anything may stand behind the end, as the
  film does that telephones append to a photograph."""
  try:
    return _has_jpeg_end(data) if data.startswith(JPEG) else (
      _has_png_end(data) if data.startswith(PNG) else True)
  except IndexError:
    return False


def _has_jpeg_end(data: bytes) -> bool:
  place = len(JPEG)
  while data[place] == 0xff:
    while data[place] == 0xff:  # One, and any number before it that fill.
      place += 1
    marker = data[place]
    place += 1
    if marker == _JPEG_END:
      return True
    if marker not in _ALONE:
      place += data[place] << 8 | data[place + 1]
    if marker == _JPEG_SCAN:
      place = _end_of_scan(data, place)
  return False


def _end_of_scan(data: bytes, place: int) -> int:
  """Where the marker begins that follows a scan's data."""
  while (place := data.find(b'\xff', place)) >= 0:
    if data[place + 1] not in _OF_SCAN:
      return place
    place += 2
  raise IndexError('the data end within the scan')


def _has_png_end(data: bytes) -> bool:
  place = len(PNG)
  while data[place + 4:place + 8] != b'IEND':
    place += 12 + int.from_bytes(data[place:place + 4])
    if place >= len(data):
      return False
  return data.startswith(_PNG_END, place + 4)
