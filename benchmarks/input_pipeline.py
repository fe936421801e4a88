"""Measures the input pipeline: crops a second, and memory over many batches.

  python benchmarks/input_pipeline.py --dir DIR --split 46
  taskset -c 0 python benchmarks/input_pipeline.py --threads 1 --workers 0
  python benchmarks/input_pipeline.py --records --crop 513 --batch 12 --step_ms 400

Without --dir it writes JPEGs of the size of VOC's (500x375) to a temporary folder. `per CPU s` is
crops for each second of processor time, which a busy machine disturbs less than wall time; it is
left out with worker processes. --records reads prepared records instead of files; --step_ms adds
the share of a step of that length that both streams make the device wait.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from gta_jax.data import files, folder, pipeline, records, shapes, sources


def parse_arguments() -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--dir', help='a data folder; see gta_jax.data.folder.read_folder')
  parser.add_argument('--split', default='8', help='folder below DIR/splits, or a number')
  parser.add_argument('--crop', type=int, default=321, help='pixels')
  parser.add_argument('--batch', type=int, default=8, help='crops')
  parser.add_argument('--batches', type=int, default=40, help='timed batches a measurement')
  parser.add_argument('--threads', type=int, nargs='+', default=[1, 2, 4])
  parser.add_argument('--workers', type=int, nargs='+', default=[0, 2])
  parser.add_argument('--memory_batches', type=int, default=1000, help='0 leaves memory out')
  parser.add_argument('--records', action='store_true', help='prepare records and read those')
  parser.add_argument('--step_ms', type=float, default=0, help='a step without its input')
  parser.add_argument('--json', type=pathlib.Path, help='where to write the figures as well')
  return parser.parse_args()


def write_voc_sized(root: pathlib.Path, *, count: int = 60) -> None:
  """Writes `count` 500x375 JPEGs of about 70 kB and palette masks in the folder layout."""
  drawn = shapes.make_shapes(labelled=count, unlabelled=0, validation=0, size=500)
  for name in ('images', 'masks', 'splits'):
    (root / name).mkdir()
  for index, id in enumerate(drawn.labelled):
    bgr = cv2.cvtColor(drawn.reader.image(id)[:375], cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(root / f'images/{index:04}.jpg'), bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])
    mask = Image.fromarray(drawn.reader.mask(id)[:375])
    mask.putpalette(drawn.palette.tobytes().ljust(768, b'\0'))  # all of 256, for 255 as well
    mask.save(root / f'masks/{index:04}.png')
  (root / 'classes.txt').write_text('\n'.join(drawn.classes))
  (root / 'splits/val.txt').write_text('0000\n0001')


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """The examples of a data folder, to be written as records; see records.Source."""

  dataset: sources.Dataset

  name = 'voc_aug'
  classes = property(lambda self: self.dataset.classes)
  palette = property(lambda self: self.dataset.palette)

  def archives(self, folder: pathlib.Path, *, mirror: str = '') -> tuple[pathlib.Path, ...]:
    del folder, mirror
    return ()

  def examples(self) -> dict[str, Iterator[records.Example]]:
    reader = self.dataset.reader

    def read(ids: Sequence[str]) -> Iterator[records.Example]:
      for id in ids:
        yield records.Example(id, *(pathlib.Path(files[id]).read_bytes()
                                    for files in (reader.images, reader.masks)))

    return {'augmented': read(self.dataset.labelled + self.dataset.unlabelled),
            'validation': read(self.dataset.validation)}


def as_records(dataset: sources.Dataset, store: pathlib.Path) -> sources.Dataset:
  """The same data set, read from records."""
  source, started = FolderSource(dataset), time.perf_counter()
  _, reader = records.read(source, records.prepare(source, store))
  print(f'{len(reader.entries)} records written in {time.perf_counter() - started:.1f} s')
  return dataclasses.replace(dataset, reader=reader, checked=True)


def measure_waiting(dataset: sources.Dataset, options: argparse.Namespace, *, threads: int,
                    workers: int) -> float:
  """Share of the time in which both next batches are waited for, if a step takes step_ms."""
  with contextlib.ExitStack() as stack:
    streams = [stack.enter_context(contextlib.closing(pipeline.training_stream(
        dataset, stream=stream, batch_size=options.batch, crop_size=options.crop, seed=0,
        threads=threads, workers=workers))) for stream in pipeline.STREAMS]
    for stream in streams:
      next(stream)
    waited, started = 0.0, time.perf_counter()
    for _ in range(options.batches):
      time.sleep(options.step_ms / 1000)
      asked = time.perf_counter()
      for stream in streams:
        next(stream)
      waited += time.perf_counter() - asked
    return waited / (time.perf_counter() - started)


def measure(dataset: sources.Dataset, options: argparse.Namespace, *, stream: str, threads: int,
            workers: int) -> dict:
  """Crops a second of one setting, after the buffers have been emptied once."""
  prefetch = max(4, threads)
  with contextlib.closing(pipeline.training_stream(
      dataset, stream=stream, batch_size=options.batch, crop_size=options.crop, seed=0,
      threads=threads, workers=workers, prefetch=prefetch)) as batches:
    for _ in range(prefetch * max(1, workers)):
      next(batches)
    wall, processor = time.perf_counter(), time.process_time()
    for _ in itertools.islice(batches, options.batches):
      pass
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
  crops = options.batches * options.batch
  return {'stream': stream, 'threads': threads, 'workers': workers, 'crops_per_s': crops / wall,
          'crops_per_cpu_s': None if workers else crops / processor}


def resident_mb() -> float:
  """Resident memory of this process, in MB."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def measure_memory(dataset: sources.Dataset, options: argparse.Namespace) -> list[float]:
  """Resident MB after each tenth of the batches of both streams, read side by side."""
  with contextlib.ExitStack() as stack:
    streams = [stack.enter_context(contextlib.closing(pipeline.training_stream(
        dataset, stream=stream, batch_size=options.batch, crop_size=options.crop, seed=0)))
        for stream in pipeline.STREAMS]
    tenth, resident = options.memory_batches // 10, []
    for _ in range(10):
      for _ in itertools.islice(zip(*streams, strict=True), tenth):
        pass
      resident.append(round(resident_mb(), 1))
  return resident


def main() -> None:
  """Measures both streams and prints a table."""
  options = parse_arguments()
  files.set_up_opencv()
  with tempfile.TemporaryDirectory() as temporary:
    if not options.dir:
      write_voc_sized(pathlib.Path(temporary))
    dataset = folder.read_folder(options.dir or temporary, labelled=options.split)
    started = time.perf_counter()
    sources.check(dataset)
    print(f'{len(list(dataset.reader.images))} files checked in '
          f'{time.perf_counter() - started:.2f} s')
    if options.records:
      dataset = as_records(dataset, pathlib.Path(temporary, 'store'))
    height, width = np.median([dataset.reader.size(id) for id in dataset.labelled], axis=0)
    cores = len(os.sched_getaffinity(0))
    print(f'{"given folder" if options.dir else "VOC-sized"}'
          f'{" as records" if options.records else ""}, {width:.0f}x{height:.0f} to '
          f'{options.crop}, batch {options.batch}, {cores} cores of {platform.machine()}, '
          f'OpenCV {cv2.__version__}\n')
    print('| stream | threads | workers | crops/s | per CPU s |\n|---|---|---|---|---|')
    rows = []
    for stream, threads, workers in itertools.product(pipeline.STREAMS, options.threads,
                                                      options.workers):
      row = measure(dataset, options, stream=stream, threads=threads, workers=workers)
      processor = f'{row["crops_per_cpu_s"]:.0f}' if row['crops_per_cpu_s'] else '-'
      print(f'| {stream} | {threads} | {workers} | {row["crops_per_s"]:.0f} | {processor} |',
            flush=True)
      rows.append(row)
    if options.step_ms:
      for threads, workers in itertools.product(options.threads, options.workers):
        share = measure_waiting(dataset, options, threads=threads, workers=workers)
        print(f'{threads} threads, {workers} workers: waits {share:.0%} of the time, steps of '
              f'{options.step_ms:.0f} ms')
    report = {'cores': cores, 'size': [height, width], 'crop': options.crop,
              'batch': options.batch, 'rows': rows}
    if options.memory_batches:
      report['resident_mb'] = measure_memory(dataset, options)
      print(f'\nResident MB over {options.memory_batches} batches of both streams: '
            f'{report["resident_mb"]}')
  print('\n' + json.dumps(report))
  if options.json:
    options.json.write_text(json.dumps(report, indent=2))


if __name__ == '__main__':
  main()
