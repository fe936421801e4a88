"""What mkdocs.yml cannot say: reference made from the code, and links to files beside docs/."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # this clone, before an installed package

import gta_jax
from gta_jax import command_flags, config_base
from gta_jax.methods import registry

_CONFIGS = ('shapes', 'folder', 'voc', 'cityscapes')
_OUTSIDE = re.compile(r'\[([^\]]+)\]\((?:\.\./)+((?:benchmarks|configs|deploy|gta_jax|notebooks|'
                      r'tests)/[^)#]+)\)')


def on_page_markdown(markdown: str, **_: Any) -> str:
  """Fills in what is generated; a link to a file that the site does not have becomes its path."""
  def made(found: re.Match[str]) -> str:
    return _GENERATED[found[1]]()

  def path(found: re.Match[str]) -> str:
    text, file = found.groups()
    return f'`{file}`' if file.endswith(text) else f'{text} (`{file}`)'

  markdown = re.sub(r'<!-- generated: (\w+) -->', made, markdown)
  return _OUTSIDE.sub(path, markdown)


def command_line() -> str:
  """What --help prints."""
  return f'```text\n{command_flags.help_text()}\n```'


def config() -> str:
  """A table for each section of the config: field, meaning, and its value in every config file."""
  configs = {name: gta_jax.load_config(name).to_dict() for name in _CONFIGS}
  sources = [inspect.getsource(config_base),
             *(Path(command_flags.find_config(name)).read_text('utf-8') for name in _CONFIGS)]
  said: dict[str, str] = {}
  for section, field, text in commented('\n'.join(sources), r'  c\.(?:(\w+)\.)?(\w+) = .*?'):
    # The first comment is that of config_base, where there is one.
    said[f'{section}.{field}'] = said.get(f'{section}.{field}') or text
  parts = [f'`seed`: {said["None.seed"]}; 0 by default.']
  for section in ('data', 'model', 'loss', 'optim', 'train', 'evaluate'):
    fields = dict.fromkeys(field for one in configs.values() for field in one[section])
    rows = [[f'`{field}`', said.get(f'{section}.{field}', ''),
             *(_value(one[section], field) for one in configs.values())] for field in fields]
    parts += [f'## {section}', table(['field', '', *_CONFIGS], rows)]
  return '\n\n'.join(parts)


def methods() -> str:
  """The list of all methods, and a table of options for each system."""
  names: dict[type, list[str]] = {}
  for name, named in registry.METHODS.items():
    names.setdefault(named.kind, []).append(name)
  parts = [f'```text\n{registry.table()}\n```']
  for kind, of_kind in names.items():
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__):
      if dataclasses.is_dataclass(base):
        said |= {field: text for field, text in commented(
          inspect.getsource(base), r'  (\w+): [^=]+ = .*?') if text}
    rows = [[f'`{field.name}`', f'`{field.default!r}`', said.get(field.name, '')]
            for field in dataclasses.fields(kind)]
    parts += [f'## {kind.__name__}', f'{", ".join(f"`{name}`" for name in of_kind)}: '
              f'{kind.summary}. {kind.paper}.', table(['option', 'default', ''], rows)]
  return '\n\n'.join(parts)


def commented(source: str, assignment: str) -> Iterable[tuple[str, ...]]:
  """Assignments with the comments above and behind them.

  Args:
    source: code, a statement a line.
    assignment: pattern of a line without its comment, with groups.
  Returns: the groups (None as text), then the comment; of each line that matches.
  """
  pattern, above, found = re.compile(rf'{assignment}(?:  # (.*))?'), [], []
  for line in source.splitlines():
    if comment := re.fullmatch(r'\s+# (.*)', line):
      above.append(comment[1])
      continue
    if match := pattern.fullmatch(line):
      *groups, behind = match.groups()
      found.append((*map(str, groups), ' '.join(filter(None, [*above, behind]))))
    above = []
  return found


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  """A table in markdown; | in a cell is escaped."""
  head = list(head)
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in line)} |'
                   for line in lines)


def _value(section: Mapping[str, Any], field: str) -> str:
  return f'`{section[field]!r}`' if field in section else ''


_GENERATED: Mapping[str, Callable[[], str]] = {
  'command_line': command_line, 'config': config, 'methods': methods}
