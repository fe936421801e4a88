"""Pieces of HTML, with all text escaped."""

from collections.abc import Iterable, Sequence
from html import escape


def table(rows: Sequence[Sequence[str]], *, caption: str = '', marked: Iterable[int] = ()) -> str:
  """A table whose first row is the head and whose first column names the rows.

  Args:
    rows: of cells; '' without any.
    caption: above it.
    marked: rows, counted from 0 without the head, that stand out.
  """
  if not rows:
    return ''
  head, *body = rows
  marked = set(marked)
  lines = [f'<caption>{escape(caption)}</caption>' if caption else '',
           '<thead><tr>', *(f'<th scope="col">{escape(cell)}</th>' for cell in head),
           '</tr></thead><tbody>']
  for number, (first, *cells) in enumerate(body):
    lines += [f'<tr{" class=marked" if number in marked else ""}>',
              f'<th scope="row">{escape(first)}</th>',
              *(f'<td>{escape(cell)}</td>' for cell in cells), '</tr>']
  # Focusable, so that a keyboard scrolls what is wider than the page.
  return (f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption or "table")}">'
          f'<table>{"".join(lines)}</tbody></table></div>')


def section(name: str, title: str, *parts: str) -> str:
  """A part of the page, of a CSS class, with a heading; '' where all parts are empty."""
  inside = '\n'.join(filter(None, parts))
  return f'<section class="{name}"><h2>{escape(title)}</h2>\n{inside}\n</section>' if inside else ''


def paragraph(text: str, kind: str = '') -> str:
  """A paragraph of a CSS class; '' for no text."""
  return f'<p{f" class={kind}" if kind else ""}>{escape(text)}</p>' if text else ''


def bullets(texts: Iterable[str]) -> str:
  """A list; '' for no texts."""
  items = ''.join(f'<li>{escape(text)}</li>' for text in texts)
  return f'<ul>{items}</ul>' if items else ''


def folded(title: str, inside: str, *, opened: bool = False) -> str:
  """Something that opens on demand; '' for nothing."""
  state = ' open' if opened else ''
  return f'<details{state}><summary>{escape(title)}</summary>{inside}</details>' if inside else ''
