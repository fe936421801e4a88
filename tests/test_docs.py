"""Pages: all are in the site's navigation, links lead somewhere, and the reference is whole."""

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
import yaml

import gta_jax
from gta_jax.inference.export import ONNX_PACKAGES
from gta_jax.methods import registry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted(path for path in DOCS.rglob('*.md') if '_site' not in path.parts)
WRITTEN = [ROOT / 'README.md', *PAGES]


def load(name: str) -> types.ModuleType:
  """A module of docs/_site, which is no package."""
  spec = importlib.util.spec_from_file_location(name, DOCS / '_site' / f'{name}.py')
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def in_nav(entry) -> list[str]:
  if isinstance(entry, str):
    return [entry]
  values = entry.values() if isinstance(entry, dict) else entry
  return [page for value in values for page in in_nav(value)]


def anchors(page: Path) -> set[str]:
  """Those of headings, as GitHub and mkdocs make them."""
  titles = re.findall(r'^#+ (.+)$', page.read_text(), re.MULTILINE)
  return {re.sub(r'[^\w -]', '', title).lower().replace(' ', '-') for title in titles}


def links(text: str) -> list[str]:
  """Those to files and headings, outside of code."""
  text = re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE)
  return [link for link in re.findall(r'\]\(([^)\s]+)\)', text) if not link.startswith('http')]


def test_every_page_is_in_the_navigation_once():
  nav = in_nav(yaml.safe_load((ROOT / 'mkdocs.yml').read_text())['nav'])
  assert sorted(nav) == sorted(str(path.relative_to(DOCS)) for path in PAGES)


@pytest.mark.parametrize('page', WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
  for link in links(page.read_text()):
    file, _, anchor = link.partition('#')
    target = (page.parent / file) if file else page
    assert target.is_file(), link
    assert not anchor or anchor in anchors(target), link


def test_the_site_has_what_its_pages_link_to(monkeypatch):
  monkeypatch.setattr(sys, 'path', [*sys.path])
  hooks = load('hooks')
  for page in PAGES:
    for link in links(hooks.on_page_markdown(page.read_text())):
      target = (page.parent / link.partition('#')[0]).resolve()
      assert target.is_relative_to(DOCS), f'{page.name}: {link}'


def test_the_readme_leads_to_every_part_and_its_picture_is_small():
  readme = (ROOT / 'README.md').read_text()
  for folder in ('tutorial', 'how_to'):
    for page in (DOCS / folder).glob('*.md'):
      assert f'docs/{folder}/{page.name}' in readme
  assert (DOCS / 'picture.png').stat().st_size < 300_000


def test_the_reference_is_made_from_the_code(monkeypatch):
  monkeypatch.setattr(sys, 'path', [*sys.path])
  hooks = load('hooks')
  pages = {path.name: hooks.on_page_markdown(path.read_text()) for path in PAGES
           if 'reference' in path.parts or path.name in ('ael.md', 'new_method.md')}
  assert '--allow_config_change' in pages['command_line.md']
  fields = gta_jax.load_config('voc').to_dict()
  assert '| `skip_limit` | files that may be unreadable in training; each' in pages['config.md']
  assert all(f'| `{field}` |' in pages['config.md'] for field in fields['data'] | fields['train'])
  assert all(f'`{name}`' in pages['method_options.md'] for name in registry.METHODS)
  # Said by MeanTeacher's base, overridden there without a comment.
  options = pages['method_options.md'].partition('## MeanTeacher\n')[2].partition('## ')[0]
  assert '| `reweight` | `False` | Eq. 6, or every kept pixel alike |' in options
  assert not any('<!-- generated' in text or '](../gta_jax' in text for text in pages.values())
  assert '`gta_jax/methods/ael.py`' in pages['ael.md']


def test_docstrings_become_sections_that_the_site_can_read(monkeypatch):
  monkeypatch.setitem(sys.modules, 'griffe', types.SimpleNamespace(Extension=object, Object=object))
  to_google = load('docstrings').to_google
  text = 'What.\n\nArgs:\n  one: a\n    b.\nReturns: c,\n  d.\nRaises: ValueError for e.\n'
  assert to_google(text).splitlines() == [
    'What.', '', '', 'Args:', '  one: a', '    b.', '', 'Returns:', '  c,', '    d.', '', 'Raises:',
    '  ValueError: for e.']
  assert to_google('What.\n\none: a\n  b.', of_class=True).splitlines() == [
    'What.', '', '', 'Attributes:', '  one: a', '    b.']


def test_packages_of_onnx_are_those_that_the_error_names():
  assert f'\n{ONNX_PACKAGES}\n' in (DOCS / 'export.md').read_text()
