"""A config of written runs, and pages as tests read them."""

import html.parser
import json
import re

from configs import shapes as shapes_config

NETWORKS = ('teacher', 'student', 'assistant')


def tiny_config(method, seed):
  config = shapes_config.get_config(f'4,method={method}')
  config.update_from_flattened_dict({
    'seed': seed, 'data.unlabelled': 8, 'data.validation': 3, 'data.size': 40, 'data.crop': 32,
    'model.width': 0.125, 'train.labelled_batch': 2, 'train.unlabelled_batch': 2})
  return config


class Parsed(html.parser.HTMLParser):
  """Sections, rows of tables, and whatever a page would load."""

  VOID = ('meta', 'link', 'img', 'input')

  def __init__(self, text):
    super().__init__()
    self.open, self.sections, self.rows, self.loads, self.ids = [], [], [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids += [attrs['id']] if 'id' in attrs else []
    self.loads += [attrs[name] for name in ('src', 'href') if attrs.get(name)]
    self.sections += [attrs['class']] if tag == 'section' else []
    self.rows += [[]] if tag == 'tr' else []
    if tag in ('td', 'th'):
      self.rows[-1].append('')
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if {'td', 'th'} & set(self.open):
      self.rows[-1][-1] += data


def data_of(page):
  return json.loads(re.search(r'id="page-data">(.*?)</script>', page, re.DOTALL)[1])
