"""Docstrings of this project as griffe's parser of Google's style wants them.

Here a section needs no blank line above it, and a short one stands in one line: `Returns: a mask.`
"""

import re
from typing import Any

import griffe

_SECTION = re.compile(r'^(Args|Attributes|Returns|Raises|Yields):\s*(.*)$')
_FIELD = re.compile(r'^[a-z_]+(, [a-z_]+)*: ')
_ERROR = re.compile(r'^(\w+Error)\b[:,]?\s*')


def to_google(text: str, *, of_class: bool = False) -> str:
  """The docstring with a blank line above each section, and each section's text indented.

  Lines that go on at the margin below a one-line section are part of it. In the docstring of a
  class, `name: what it is` at the margin is an attribute.
  """
  lines, section, inline = [], '', False
  for line in text.splitlines():
    if of_class and not _SECTION.match(line) and (_FIELD.match(line) or (
        section == 'fields' and line.strip())):
      lines += [] if section == 'fields' else ['', 'Attributes:']
      section = 'fields'
      lines.append('  ' + line)
      continue
    if found := _SECTION.match(line):
      section, rest = found.groups()
      inline = bool(rest)
      if inline and section in ('Args', 'Attributes'):  # a reference, not a list
        lines += ['', f'{section}: {rest}'.replace('Args', 'Arguments')]
        continue
      lines += ['', f'{section}:']
      if rest:
        lines.append('  ' + (_ERROR.sub(r'\1: ', rest) if section == 'Raises' else rest))
    elif inline and line.strip():
      lines.append('    ' + line.strip())
    else:
      inline = inline and bool(line.strip())
      lines.append(line)
  return '\n'.join(lines)


class Docstrings(griffe.Extension):
  """Rewrites every docstring that is loaded."""

  def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
    """See griffe.Extension."""
    if obj.docstring:
      obj.docstring.value = to_google(obj.docstring.value, of_class=obj.is_class)
