"""The command gta-jax: trains, evaluates, predicts, reports."""

import errno
import functools
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags

import gta_jax
from gta_jax import command_flags
from gta_jax.devices import runtime

Config = ml_collections.ConfigDict
Flags = flags.FlagValues
_ROOM, _AGAIN = 'make room and give the same command again', 'give the same command again'
_REMEDIES = {errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.ESTALE: _AGAIN, errno.EIO: _AGAIN}
# Modes that compile programs; others never open a GPU.
_COMPUTING = ('train', 'evaluate', 'predict', 'export', 'label_next')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line.

  Args:
    argv: name of the program, and arguments; None for those of this process.
  Returns: the exit status: 0, 2 for bad input, 3 for a loss that is not finite, 4 for a killed
    process of data.workers, 5 where predict left out images that it could not read, 75
    (EX_TEMPFAIL) after SIGTERM or SIGINT: the state is saved, the same command goes on. 130 and 143
    where SIGINT and SIGTERM ended what is no training.
  """
  # Bad flags and bad configs first: jax takes seconds to import.
  argv = sys.argv if argv is None else argv
  try:
    values = command_flags.parse(argv)
  except command_flags.UsageError as error:
    return _refuse(error)
  if values.help or values.version:
    print(command_flags.help_text() if values.help else f'gta-jax {gta_jax.__version__}')
    return 0
  runtime.disable_faulty_cpu_fusion()
  runtime.keep_freed_memory()
  return _run(values, argv)


def _run(values: Flags, argv: Sequence[str]) -> int:
  """Does what the flags, read from `argv`, say. Returns: the exit status."""
  from gta_jax.data.pipeline import WorkerError  # noqa: PLC0415
  from gta_jax.training.not_finite import NotFiniteError  # noqa: PLC0415
  from gta_jax.training.signals import (  # noqa: PLC0415
    Interrupted,
    Signals,
    Terminated,
    terminable,
  )

  catching = Signals if values.mode == 'train' else terminable
  try:
    with catching():
      _join_processes(values)
    with catching():  # Anew, as jax takes SIGTERM for itself where it joins processes.
      return _do(values, argv)
  except (OSError, ValueError, NotFiniteError, WorkerError) as error:
    return _refuse(error, status={NotFiniteError: 3, WorkerError: 4}.get(type(error), 2))
  except Interrupted as error:
    print(f'{error}: stopped; the same command resumes from the newest checkpoint, if there is one',
          file=sys.stderr)
    return os.EX_TEMPFAIL
  except KeyboardInterrupt as error:
    print(f'stopped{f": {error}" if str(error) else ""}', file=sys.stderr)
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
  except Exception as error:
    if 'RESOURCE_EXHAUSTED' in str(error):
      return _refuse(_no_memory(error))
    print('error: this should not have happened, please report it with what follows. The run goes '
          'on from its last checkpoint when it is started again.', file=sys.stderr)
    raise


def _do(values: Flags, argv: Sequence[str]) -> int:
  from gta_jax.data.files import set_up_opencv  # noqa: PLC0415

  if values.mode in _COMPUTING:
    runtime.keep_compiled_programs()
  set_up_opencv()
  modes = {'train': functools.partial(_train, argv=argv), 'convert': _convert,
           'prepare': _prepare, 'inspect': _inspect, 'baseline': _baseline,
           'evaluate': _evaluate, 'predict': _predict, 'export': _export,
           'label_next': _label_next, 'report': _report, 'methods': _methods}
  return modes[values.mode](values.config, values) or 0


def _refuse(error: Exception, *, status: int = 2) -> int:
  message = str(error) or type(error).__name__
  if isinstance(error, OSError) and error.filename:
    remedy = _REMEDIES.get(error.errno or 0, 'correct the path or its rights')
    message = f'{error.filename} cannot be used ({error.strerror}); {remedy}.'
  print(f'error: {message}', file=sys.stderr)
  return status


def _no_memory(error: Exception) -> ValueError:
  return ValueError(
    f'the device has not enough memory ({str(error).splitlines()[0][:200]}). Another process may '
    'hold some of it (XLA_PYTHON_CLIENT_MEM_FRACTION is the share that one takes); else lower '
    'train.per_device_batch, data.crop or evaluate.batch, or set model.remat=True: see '
    'docs/how_to/fit_the_memory.md.')


def _join_processes(values: Flags) -> None:
  """Connects to the other processes if there are any."""
  given = {name: values[name].value for name in ('coordinator', 'process_count', 'process_index')}
  missing = [f'--{name}' for name, value in given.items() if value is None]
  if len(missing) == len(given) and values.distributed is None:
    return
  if values.mode not in ('train', 'evaluate'):
    raise ValueError(
      f'--mode {values.mode} runs in one process; start it without flags of several.')
  if values.distributed and len(missing) < len(given):
    raise ValueError('--distributed auto finds all by itself; give it or --coordinator, not both.')
  if values.distributed:
    runtime.join_detected_processes()
    return
  if missing:
    raise ValueError(
      f'--coordinator, --process_count and --process_index go together; add {", ".join(missing)}.')
  runtime.join_processes(values.coordinator, values.process_count, values.process_index)


def _train(config: Config, values: Flags, *, argv: Sequence[str]) -> None:
  from gta_jax.reporting import report  # noqa: PLC0415
  from gta_jax.training import loop, setup  # noqa: PLC0415
  from gta_jax.training.telling import Page  # noqa: PLC0415

  workdir = Path(values.workdir)
  made = setup.make_run(config, workdir=workdir)
  started = ['python', argv[0]] if Path(argv[0]).name == 'launch.py' else ['gta-jax']
  page = Page(lambda: report.write_report([workdir], workdir),
              command=shlex.join([*started, *argv[1:]]))
  loop.train(made, workdir, allow_config_change=values.allow_config_change, page=page)


def _convert(config: Config | None, values: Flags) -> None:
  from gta_jax.data import convert  # noqa: PLC0415

  del config
  classes = Path(values.classes) if values.classes else None
  print(convert.convert(Path(values.source), Path(values.out), layout=values.format,
                        classes=classes, copy=values.copy).text(), end='')


def _prepare(config: Config, values: Flags) -> None:
  from gta_jax.data import sources  # noqa: PLC0415
  from gta_jax.models import weights  # noqa: PLC0415
  from gta_jax.training import config_rules, datasets  # noqa: PLC0415

  del values
  config_rules.check(config)
  dataset = datasets.make_dataset(config)
  notes = sources.check_classes(dataset, sources.check(dataset))
  name = config.model.weights
  if name and not config.train.get('init_from'):  # Where a run trains there may be no network.
    weights.check(name, config.model)
    notes.append(f'The weights {name} are in {weights.fetch(name)}.')
  print(f'{dataset.name} is ready: {len(dataset.labelled)} labelled, {len(dataset.unlabelled)} '
        f'unlabelled, {len(dataset.validation)} validation images. '
        f'{" ".join([*dataset.note.splitlines(), *notes])}'.rstrip())


def _inspect(config: Config, values: Flags) -> None:
  from gta_jax.reporting import inspection_table  # noqa: PLC0415

  folder = Path(values.workdir or '.')
  print(inspection_table.inspect_data(config, folder))
  print(f'\nwritten to {folder / "inspection.json"}')


def _baseline(config: Config | None, values: Flags) -> None:
  from gta_jax.inference import baseline  # noqa: PLC0415
  from gta_jax.training import (  # noqa: PLC0415
    finished_run,
    setup,
    verdict,
  )
  from gta_jax.training.logs import percent  # noqa: PLC0415

  workdir = Path(values.workdir)
  if config is None and not (workdir / 'config.json').is_file():
    raise ValueError(f'{workdir} holds no run whose data could be taken; give --config as well.')
  found = baseline.run_baseline(config, workdir)
  for name, share in found['scores']['iou'].items():
    print(f'{name}: IoU {percent(share)} %')
  print(f'{found["method"]}: mIoU {percent(found["scores"]["miou"])} % on {len(found["ids"])} '
        f'images; written to {workdir / "baseline.json"}')
  if (workdir / 'config.json').is_file():
    own, _ = finished_run.read_run(workdir)
    said = verdict.over_baseline(workdir, setup.make_method_of(own).scored[0])
    print(said)
    verdict.write_verdict(workdir, said)
    _refresh_page(workdir)


def _evaluate(config: Config | None, values: Flags) -> None:
  from gta_jax.inference import finished  # noqa: PLC0415

  finished.evaluate_run(
    Path(values.workdir), config, which=values.checkpoint, protocols=values.protocols,
    split=values.split)
  _refresh_page(Path(values.workdir))


def _refresh_page(workdir: Path) -> None:
  """Writes the page about a run anew, where there is one, with what has come since."""
  from gta_jax.devices import sharding  # noqa: PLC0415
  from gta_jax.reporting import report  # noqa: PLC0415
  from gta_jax.training.telling import Page  # noqa: PLC0415

  if (workdir / report.FILE).is_file() and sharding.is_first_process():
    Page(lambda: report.write_report([workdir], workdir)).write()


def _predict(config: Config | None, values: Flags) -> int:
  from gta_jax.inference import finished  # noqa: PLC0415

  unread = finished.predict_images(
    Path(values.workdir), config, images=Path(values.images), out=Path(values.out),
    which=values.checkpoint, recursive=values.recursive, network=values.network,
    confidence=values.confidence, probabilities=values.probabilities, overwrite=values.overwrite)
  return 5 if unread else 0


def _export(config: Config | None, values: Flags) -> None:
  from gta_jax.inference import finished  # noqa: PLC0415

  del config
  finished.export_run(
    Path(values.workdir), Path(values.out), layout=values.format, size=values.size,
    which=values.checkpoint, network=values.network, overwrite=values.overwrite)


def _label_next(config: Config | None, values: Flags) -> None:
  from gta_jax.inference import finished  # noqa: PLC0415

  print(finished.choose_images(
    Path(values.workdir), config, count=values.count, out=Path(values.out) if values.out else None,
    which=values.checkpoint, network=values.network, overwrite=values.overwrite))


def _report(config: Config | None, values: Flags) -> None:
  from gta_jax.reporting import report, serve  # noqa: PLC0415

  del config  # Each run brings its own.
  workdirs = [Path(name) for name in values.workdirs or [values.workdir]]
  if values.serve:
    serve.serve(workdirs, values.port)
  else:
    print(report.write_report(workdirs, Path(values.out or workdirs[0])))


def _methods(config: Config | None, values: Flags) -> None:
  from gta_jax.methods import registry  # noqa: PLC0415

  del config, values
  print(registry.table())
