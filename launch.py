"""Trains, evaluates, predicts, reports: python launch.py --config configs/shapes.py --workdir a"""

import os
import sys
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from gta_jax.devices import runtime

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, with its choice after a colon: configs/folder.py:46,method=gta.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run. A run started again in its folder goes on.')
_MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'prepare', 'evaluate', 'predict', 'report'],
  'What to do: prepare only downloads and checks the data; the last three read what runs left.')
_IMAGES = flags.DEFINE_string('images', None, 'predict: folder of images.')
_OUT = flags.DEFINE_string('out', None, 'predict, report: folder for masks, overlays, pages.')
_WORKDIRS = flags.DEFINE_list('workdirs', None, 'report: folders of finished runs, A,B,...')
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'last', ['last', 'best'], 'evaluate, predict: which one.')
_PROTOCOLS = flags.DEFINE_list(
  'protocols', None, 'evaluate: such as whole,crop513_padding0,sliding+flip; by default the '
  "config's evaluate.protocols.")
_ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
  'allow_config_change', False, 'train: go on although the config has changed.')
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'Several processes: HOST:PORT of the first one; the next two go with it.')
_PROCESS_COUNT = flags.DEFINE_integer('process_count', None, 'Several processes: how many.')
_PROCESS_INDEX = flags.DEFINE_integer('process_index', None, 'Several processes: which, from 0.')
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed', None, ['auto'], 'Several processes, as SLURM, Open MPI or Kubernetes tells.')


def main(argv: list[str]) -> int:
  """Runs the command line.

  Returns: the exit status: 0, 2 for bad input, 3 for a loss that is not finite, 4 for a killed
    process of data.workers, 75 (EX_TEMPFAIL) after SIGTERM or SIGINT: the state is saved, the same
    command goes on.
  """
  # Bad flags and bad configs first: jax takes seconds to import.
  try:
    flags.FLAGS(argv)
    config = _read_config()
  except Exception as error:  # A config file is code: it may raise anything.
    return _refuse(error, what='the flags or the config cannot be used: ')
  from gta_jax.data.pipeline import WorkerError  # noqa: PLC0415
  from gta_jax.training.not_finite import NotFiniteError  # noqa: PLC0415
  from gta_jax.training.signals import Interrupted  # noqa: PLC0415

  try:
    runtime.disable_faulty_cpu_fusion()
    _join_processes()
    runtime.keep_compiled_programs()
    modes = {'train': _train, 'prepare': _prepare, 'evaluate': _evaluate, 'predict': _predict,
             'report': _report}
    modes[_MODE.value](config)
  except (OSError, ValueError) as error:
    return _refuse(error)
  except NotFiniteError as error:
    return _refuse(error, status=3)
  except WorkerError as error:
    return _refuse(error, status=4)
  except Interrupted as error:
    print(f'{error}: stopped; the same command goes on from the newest checkpoint', file=sys.stderr)
    return os.EX_TEMPFAIL
  except Exception:
    print('error: this should not have happened, please report it with what follows. The run goes '
          'on from its last checkpoint when it is started again.', file=sys.stderr)
    raise
  return 0


def _refuse(error: Exception, *, status: int = 2, what: str = '') -> int:
  message = str(error)
  if 'Traceback (most recent call last)' in message:
    # An error inside a config file comes wrapped with its traceback; its last line says it all.
    message = message.strip().rsplit('\n', 1)[-1].partition(': ')[2]
  if isinstance(error, OSError) and error.filename:
    message = f'{error.filename} cannot be used ({error.strerror}); correct the path or its rights.'
  print(f'error: {what}{message or type(error).__name__}', file=sys.stderr)
  return status


def _read_config() -> ml_collections.ConfigDict | None:
  """The config of --config, or None where a workdir's own is to be used."""
  needed = {'train': ('config', 'workdir'), 'prepare': ('config',), 'evaluate': ('workdir',),
            'predict': ('workdir', 'images', 'out'), 'report': ('workdirs', 'out')}[_MODE.value]
  missing = [f'--{name}' for name in needed if flags.FLAGS[name].value is None]
  if missing:
    raise ValueError(f'--mode {_MODE.value} needs {" and ".join(missing)}.')
  if _CONFIG.value is not None:
    _CONFIG.value.seed  # noqa: B018  A file that failed says why as soon as a field is asked for.
  return _CONFIG.value


def _join_processes() -> None:
  """Connects to the other processes if there are any."""
  given = {f.name: f.value for f in (_COORDINATOR, _PROCESS_COUNT, _PROCESS_INDEX)}
  missing = [f'--{name}' for name, value in given.items() if value is None]
  if len(missing) == len(given) and _DISTRIBUTED.value is None:
    return
  if _MODE.value not in ('train', 'evaluate'):
    raise ValueError(
      f'--mode {_MODE.value} runs in one process; start it without flags of several.')
  if _DISTRIBUTED.value and len(missing) < len(given):
    raise ValueError('--distributed auto finds all by itself; give it or --coordinator, not both.')
  if _DISTRIBUTED.value:
    runtime.join_detected_processes()
    return
  if missing:
    raise ValueError(
      f'--coordinator, --process_count and --process_index go together; add {", ".join(missing)}.')
  runtime.join_processes(*given.values())


def _train(config: ml_collections.ConfigDict) -> None:
  from gta_jax.training import loop, setup  # noqa: PLC0415

  loop.train(
    setup.make_run(config), Path(_WORKDIR.value), allow_config_change=_ALLOW_CONFIG_CHANGE.value)


def _prepare(config: ml_collections.ConfigDict) -> None:
  from gta_jax.data import sources  # noqa: PLC0415
  from gta_jax.training import config_rules, setup  # noqa: PLC0415

  config_rules.check(config)
  dataset = setup.make_dataset(config)
  sources.check(dataset)
  print(f'{dataset.name} is ready: {len(dataset.labelled)} labelled, {len(dataset.unlabelled)} '
        f'unlabelled, {len(dataset.validation)} validation images. {dataset.note}'.rstrip())


def _evaluate(config: ml_collections.ConfigDict | None) -> None:
  from gta_jax.inference import finished  # noqa: PLC0415

  finished.evaluate_run(
    Path(_WORKDIR.value), config, which=_CHECKPOINT.value, protocols=_PROTOCOLS.value)


def _predict(config: ml_collections.ConfigDict | None) -> None:
  from gta_jax.inference import finished  # noqa: PLC0415

  finished.predict_images(
    Path(_WORKDIR.value), config, images=Path(_IMAGES.value), out=Path(_OUT.value),
    which=_CHECKPOINT.value)


def _report(config: ml_collections.ConfigDict | None) -> None:
  from gta_jax.reporting import report  # noqa: PLC0415

  del config  # Each run brings its own.
  print(report.write_report([Path(w) for w in _WORKDIRS.value], Path(_OUT.value)))


if __name__ == '__main__':
  sys.exit(main(sys.argv))
