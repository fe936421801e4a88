"""The flags of the command: what they are, how they are read, and configs found by name."""

import difflib
import functools
import os
import re
import runpy
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

MODES = {
  'train': 'trains a config in a folder; the same command goes on with a run that was stopped',
  'convert': "makes a data folder of a VOC or COCO layout, or of folders of images and masks",
  'prepare': 'downloads and checks the data of a config, and stops',
  'inspect': 'says what the data of a config are like, and how to train on them',
  'baseline': 'scores a pixel classifier, fitted on the same masks, on the same images',
  'evaluate': 'scores the networks of a finished run under several protocols',
  'predict': 'writes masks and overlays for a folder of images',
  'export': 'writes a network of a run as StableHLO, ONNX or a torch state dict, and checks it',
  'label_next': 'says which images to label next, with masks to begin from',
  'report': 'writes a page about a run, or one that compares several',
  'methods': 'lists every method with its paper and the cost of a step',
}
# What a mode cannot do without.
_NEEDED = {
  'train': ('config', 'workdir'), 'convert': ('source', 'format', 'out'), 'prepare': ('config',),
  'inspect': ('config',), 'baseline': ('workdir',), 'evaluate': ('workdir',),
  'predict': ('workdir', 'images', 'out'), 'export': ('workdir', 'format', 'out'),
  'label_next': ('workdir',), 'report': (), 'methods': ()}
# The modes that read flags, and these; all others refuse them.
_GROUPS = {
  ('train', 'prepare', 'inspect', 'baseline', 'evaluate', 'predict', 'label_next'): ('config',),
  ('train', 'inspect', 'baseline', 'evaluate', 'predict', 'export', 'label_next', 'report'):
    ('workdir',),
  tuple(MODES): ('mode', 'help', 'version'),
  ('train',): ('allow_config_change',),
  ('evaluate',): ('protocols', 'split'),
  ('predict',): ('images', 'recursive', 'confidence', 'probabilities'),
  ('evaluate', 'predict', 'export', 'label_next'): ('checkpoint',),
  ('predict', 'export', 'label_next'): ('network', 'overwrite'),
  ('convert',): ('source', 'classes', 'copy'),
  ('convert', 'export'): ('format',),
  ('export',): ('size',),
  ('label_next',): ('count',),
  ('report',): ('workdirs', 'serve', 'port'),
  ('convert', 'predict', 'export', 'label_next', 'report'): ('out',),
}
_PATHS = ('workdir', 'workdirs', 'images', 'source', 'classes', 'out')
_PATH_FIELDS = frozenset({
  'data.dir', 'data.split_lists', 'data.store', 'train.init_from', 'model.weights'})
# Where they are refused depends on more; see command.
_PROCESSES = ('coordinator', 'process_count', 'process_index', 'distributed')
_EXAMPLES = """\
gta-jax --config shapes:24 --workdir runs/shapes
gta-jax --mode convert --source VOC --format voc --out DIR
gta-jax --config folder:46,method=mean_teacher --config.data.dir=DIR --workdir runs/mine
gta-jax --mode inspect --config folder:46 --config.data.dir=DIR
gta-jax --mode baseline --config folder:46 --config.data.dir=DIR --workdir runs/mine
gta-jax --mode evaluate --workdir runs/mine --protocols whole,sliding+flip
gta-jax --mode predict --workdir runs/mine --images FOLDER --out MASKS
gta-jax --mode export --workdir runs/mine --format onnx --size 360x480 --out mine.onnx
gta-jax --mode label_next --workdir runs/mine --count 10
gta-jax --mode report --workdir runs/mine --serve
gta-jax --mode report --workdirs runs/a,runs/b --out PAGE"""


class UsageError(flags.Error):
  """The command line cannot be used; a sentence that says what to write instead."""


def parse(argv: Sequence[str]) -> flags.FlagValues:
  """Reads a command line.

  Args:
    argv: name of the program, and arguments.
  Returns: values by flag as attributes; `config` is a ConfigDict with the fields set, or None.
  Raises:
    UsageError: an unknown or missing flag, config, choice or field, a value that cannot be read.
  """
  try:
    # Here, and not only below: the fields that are set are looked up before absl reads them.
    argv = [argv[0], *flags.FLAGS.read_flags_from_files(list(argv[1:]), force_gnu=False)]
    values = _define(argv)
    stray = values(argv)[1:]
    if values.config is not None:
      values.config.seed  # noqa: B018  A file that failed says why when a field is asked for.
      _find_home(values.config)
    for name in _PATHS:
      given = values[name].value
      if given == '' or (isinstance(given, list) and '' in given):
        raise UsageError(f'--{name} is empty; give a path, ./ for the current folder.')
      values[name].value = _at_home(given)
  except UsageError:
    raise
  except Exception as error:  # A config file is code: it may raise anything.
    raise UsageError(
      f'the flags or the config cannot be used: {_last_line(error)}') from error
  if stray:
    raise UsageError(f'unexpected {stray[0]!r}; flags start with --, see --help.')
  if not (values.help or values.version):
    missing = [f'--{name}' for name in _NEEDED[values.mode] if values[name].value is None]
    if values.mode == 'report':
      missing = _missing_in_report(values)
    if missing:
      raise UsageError(f'--mode {values.mode} needs {" and ".join(missing)}; see --help.')
    _check_read(values)
  return values


def _check_read(values: flags.FlagValues) -> None:
  """Raises UsageError for a flag that the mode does not read."""
  for modes, names in _GROUPS.items():
    for given in (values[name] for name in names if values[name].present):
      if values.mode not in modes:
        raise UsageError(f'{given.serialize()} has no effect in --mode {values.mode}, only in '
                         f'{", ".join(modes)}; leave it out.')
  if values['port'].present and not values.serve:
    raise UsageError(f'{values["port"].serialize()} has no effect without --serve; add it.')
  if values.serve and values['out'].present:
    raise UsageError(f'{values["out"].serialize()} has no effect with --serve, which writes '
                     'nothing; leave one of them out.')


def _missing_in_report(values: flags.FlagValues) -> list[str]:
  """A page about one run lies in its folder; one about several needs a place of its own."""
  if (values.workdir is None) == (values.workdirs is None):
    return ['either --workdir or --workdirs']
  return ['--out'] if values.workdirs and not (values.out or values.serve) else []


def help_text() -> str:
  """What --help prints: modes, flags in groups, examples."""
  values = _define([''])
  lines = ['usage: gta-jax --config NAME[:CHOICE] --workdir DIR [--config.FIELD=VALUE ...]',
           '       gta-jax --mode MODE ...', '', 'Modes']
  lines += [_entry(name, text) for name, text in MODES.items()]
  titles = {('All modes' if modes == tuple(MODES) else ', '.join(modes)): names
            for modes, names in _GROUPS.items()}
  for title, names in (titles | {'train, evaluate with several processes': _PROCESSES}).items():
    lines += ['', title]
    lines += [_entry(f'--{name}', values[name].help or '') for name in names]
  lines += ['', f'Configs: {", ".join(_known_configs())}; every field of one can be set, as in '
            '--config.data.crop=321.', '', 'Examples', textwrap.indent(_EXAMPLES, '  ')]
  return '\n'.join(lines)


def find_config(name: str) -> str:
  """The path of a config that comes with the package, or `name` where it is a path itself.

  Args:
    name: NAME or PATH, with :CHOICE behind it or without.
  Raises:
    UsageError: neither a known name nor a file.
  """
  file, colon, choice = name.partition(':')
  known = _known_configs()
  if file in known:
    return f'{known[file]}{colon}{choice}'
  if not Path(file).is_file():
    raise UsageError(f'--config {file!r} is neither a known config nor a file; use one of '
                     f'{", ".join(known)}, or the path of a .py file.')
  return name


def load_config(
  name: str, fields: Mapping[str, Any] = types.MappingProxyType({})
) -> ml_collections.ConfigDict:
  """What --config NAME --config.FIELD=VALUE gives; see gta_jax.load_config.

  Raises:
    UsageError: neither a known name nor a file, a config that fails, or a field that it lacks.
  """
  file, _, choice = find_config(name).partition(':')
  try:
    code = runpy.run_path(file)
    config = code['get_config'](choice or None)
  except Exception as error:  # A config file is code: it may raise anything.
    raise UsageError(f'the config cannot be used: {_last_line(error)}') from error
  for field in fields:
    _check_field(config, field)
  config.update_from_flattened_dict(dict(fields))
  _find_home(config)
  return config


def _find_home(config: ml_collections.ConfigDict) -> None:
  for name in set(_fields(config)) & _PATH_FIELDS:
    *groups, field = name.split('.')
    of = functools.reduce(lambda node, group: node[group], groups, config)
    of[field] = _at_home(of[field])


def _at_home(value: Any) -> Any:
  """A path, or several, with a leading ~ as a shell has it: none looks behind an equals sign."""
  if isinstance(value, list):
    return [_at_home(one) for one in value]
  return os.path.expanduser(value) if isinstance(value, str) else value


def _known_configs() -> Mapping[str, Path]:
  """Path by name. An installed package holds the folder, a clone has it beside the package."""
  here = Path(__file__).parent
  folders = [folder for folder in (here / 'configs', here.parent / 'configs') if folder.is_dir()]
  if not folders:
    return {}
  return {path.stem: path for path in sorted(folders[0].glob('[!_]*.py'))}


class _ConfigParser(flags.ArgumentParser):
  """Finds the file, loads it, and names a field that it does not have."""

  def __init__(self, of_files: flags.ArgumentParser, argv: Sequence[str]):
    self._of_files, self._argv = of_files, argv

  def parse(self, argument: str) -> Any:
    config = self._of_files.parse(find_config(argument))
    if isinstance(config, ml_collections.ConfigDict):
      for other in self._argv:
        if field := re.match(r'--?(?:no)?config\.([^=]+)', other):
          _check_field(config, field[1])
    return config

  def flag_type(self) -> str:
    return self._of_files.flag_type()


def _check_field(config: ml_collections.ConfigDict, field: str) -> None:
  """Raises UsageError where a config has no such field: absl's own message is a bare key."""
  node: Any = config
  for part in field.partition('[')[0].split('.'):
    if not isinstance(node, ml_collections.ConfigDict) or part not in node:
      fields = list(_fields(config))
      close = difflib.get_close_matches(field, fields, n=1)
      raise UsageError(f'unknown field {field}, ' + (
        f'did you mean {close[0]}?' if close else f'the config has {", ".join(fields)}.'))
    node = node[part]
  # The options that these stand for are in the config already.
  if kind := {'method.name': 'method', 'method': 'method', 'method.recipe': 'recipe'}.get(field):
    raise UsageError(f'{field} is chosen with the config, after its colon: NAME:{kind}=..., or '
                     f'NAME:46,{kind}=...; set so late it would change nothing.')
  if isinstance(node, ml_collections.ConfigDict):
    raise UsageError(f'{field} has fields of its own; set one of '
                     f'{", ".join(_fields(node, f"{field}."))}.')


def _fields(config: ml_collections.ConfigDict, prefix: str = '') -> Iterator[str]:
  for name in config:
    value = config[name]
    if isinstance(value, ml_collections.ConfigDict):
      yield from _fields(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}'


def _define(argv: Sequence[str]) -> flags.FlagValues:
  """Flags of our own, so that importing or calling the command leaves absl's global ones alone."""
  values = flags.FlagValues()

  def text(name: str, help: str) -> None:
    flags.DEFINE_string(name, None, help, flag_values=values)

  def integer(
    name: str, help: str, default: int | None = None, least: int | None = None,
    most: int | None = None,
  ) -> None:
    flags.DEFINE_integer(
      name, default, help, lower_bound=least, upper_bound=most, flag_values=values)

  def switch(name: str, help: str, short_name: str | None = None) -> None:
    flags.DEFINE_bool(name, False, help, flag_values=values, short_name=short_name)

  def names(name: str, help: str) -> None:
    flags.DEFINE_list(name, None, help, flag_values=values)

  def choice(name: str, default: str | None, choices: Sequence[str], help: str) -> None:
    flags.DEFINE_enum(name, default, choices, help, flag_values=values)

  config_flags.DEFINE_config_file(
    'config', None, 'Config by name or path, with its choice after a colon: shapes, '
    'folder:46,method=gta, configs/voc.py:183. Optional in baseline, '
    'evaluate, predict and label_next.',
    flag_values=values, sys_argv=list(argv))
  values['config'].parser = _ConfigParser(values['config'].parser, argv)
  text('workdir', 'Folder of the run. A run started again in its folder goes on.')
  choice('mode', 'train', list(MODES), 'What to do; train by default.')
  switch('help', 'Prints this.', 'h')
  switch('version', 'Prints the version.')
  switch('allow_config_change', 'Go on although the config has changed.')
  choice('checkpoint', 'last', ['last', 'best'], 'Which one; last by default.')
  names('protocols', 'evaluate: such as whole,crop513_padding0,sliding+flip; by default the '
        "config's evaluate.protocols.")
  choice('split', 'val', ['val', 'test'], 'evaluate: images of splits/val.txt or splits/test.txt.')
  text('images', 'predict: folder of images.')
  switch('recursive', 'predict: searches folders in the folder too.')
  integer('count', 'label_next: how many images; 10 by default.', 10, least=1)
  text('network', 'predict, export, label_next: which network of the run; by default the one '
       'that predicts.')
  switch('confidence', 'predict: writes maps of the largest probability.')
  switch('probabilities', 'predict: writes those of all classes, float16 [H,W,K].')
  switch('overwrite', 'predict, export, label_next: replaces results that are there already.')
  text('source', 'convert: folder in the other layout.')
  choice('format', None, ['voc', 'coco', 'masks', 'stablehlo', 'onnx', 'torch'],
         'convert: the first three, a layout; export: the others.')
  text('size', 'export: HEIGHTxWIDTH of images, 360x480; the crop by default. None with torch.')
  text('classes', 'convert: a classes.txt with names and colours, in the place of the source\'s.')
  switch('copy', 'convert: copies images, instead of symbolic links.')
  text('out', 'What is written: a data folder, masks and overlays, or a page.')
  names('workdirs', 'report: folders of several runs, A,B,..., in the place of --workdir.')
  switch('serve', 'report: shows the page live, on this machine alone, and writes nothing.')
  integer('port', 'report: of --serve; any that is free by default.', 0, least=0, most=65_535)
  text('coordinator', 'HOST:PORT of the first process; the next two go with it.')
  integer('process_count', 'How many processes.')
  integer('process_index', 'Which of them this is, from 0.')
  choice('distributed', None, ['auto'], 'As SLURM, Open MPI or Kubernetes tells.')
  return values


def _entry(name: str, text: str) -> str:
  return textwrap.fill(
    text, 100, initial_indent=f'  {name:<24}', subsequent_indent=' ' * 26)


def _last_line(error: Exception) -> str:
  """An error inside a config file comes wrapped with its traceback; its last line says it all."""
  message = str(error).strip()
  if 'Traceback (most recent call last)' in message:
    message = message.rsplit('\n', 1)[-1].partition(': ')[2]
  return message or type(error).__name__
