"""The generator of fuzz.py for archives: from a server to records, as `--mode prepare` does."""

import contextlib
import io
import pathlib
import tarfile
import zipfile
from collections.abc import Iterator
from unittest import mock

import numpy as np

from benchmarks.fuzz_cases import damage
from gta_jax.data import archives, published, sources
from gta_jax.data.downloads import RemoteFile, file_sha256
from gta_jax.data.splits import Lists, ids_sha256
from tests import tiny_archives as tiny
from tests.loopback import Server

Members = dict[str, bytes]
NAMES = {'voc': ('VOCtrainval_11-May-2012.tar', 'benchmark.tgz'),
         'cityscapes': ('leftImg8bit_trainvaltest.zip', 'gtFine_trainvaltest.zip')}
LABELLED = {'voc': tiny.VOC_TRAIN[:2], 'cityscapes': tiny.CITIES['train'][:2]}
TRAINING = {'voc': tiny.AUGMENTED, 'cityscapes': tiny.CITIES['train']}
LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE,
         tarfile.GNUTYPE_SPARSE]
# Bombs of the true size would take minutes.
BOUNDS = {'MAX_MEMBER_BYTES': 100_000, 'MAX_MEMBERS': 200, '_MAX_TOTAL_BYTES': 1_000_000}


def fuzz_archives(rng: np.random.Generator, base: pathlib.Path, work: pathlib.Path) -> None:
  """A data set of which one archive, its checksum, the server or the list of a split is bad."""
  name = str(rng.choice(['voc', 'cityscapes']))
  members = ([tiny.voc_members(), tiny.sbd_members()] if name == 'voc'
             else list(tiny.cityscapes_members()))
  bad, files = int(rng.integers(2)), []
  downloads = work / 'store' / 'downloads'
  # Cityscapes' archives are put there by hand.
  folder = work / 'served' if name == 'voc' and rng.random() < 0.6 else downloads
  for index, file in enumerate(NAMES[name]):
    path = folder / file
    write(rng if index == bad and rng.random() < 0.9 else None, path, members[index])
    checksum = file_sha256(path) if rng.random() < 0.8 else '0' * 64
    if index == bad:
      worsen(rng, path, downloads)
    # Mostly the archive as it is, so that what is bad in it is met.
    if path.exists() and rng.random() < 0.8:
      checksum = file_sha256(path)
    files.append(RemoteFile(file, (), checksum))
  served = work / 'served' / 'splits' / published._MODULES[name].LISTS.folders[0] / '2'
  tiny.write_tree(served, {'labeled.txt': '\n'.join(LABELLED[name]).encode()})
  if rng.random() < 0.1:
    (served / 'labeled.txt').write_bytes(damage(rng, (served / 'labeled.txt').read_bytes()))
  server = Server(work / 'served')
  server.break_after = int(rng.integers(1, 9000)) if rng.random() < 0.2 else None
  server.ranges = rng.random() < 0.8
  with server.running(), known(name, files, any_ids=rng.random() < 0.7):
    try:
      dataset = published.read(name, split='2', store=str(work / 'store'), mirror=server.url)
    finally:
      assert not [*work.parent.glob('evil*'), *work.rglob('evil*')], 'a member was extracted'
      assert server.break_after or not list(work.rglob('incomplete.*')), 'left half a data set'
  sources.check(dataset)
  for id in dataset.labelled + dataset.unlabelled + dataset.validation:
    dataset.reader.image(id)
    dataset.reader.mask(id)


@contextlib.contextmanager
def known(name: str, files: list[RemoteFile], *, any_ids: bool) -> Iterator[None]:
  """Makes the tiny archives' fingerprints the known ones, and bombs small."""
  module = published._MODULES[name]
  remote = files if name == 'voc' else []
  source = module.Source(*remote, training='' if any_ids else ids_sha256(TRAINING[name]))
  lists = Lists(module.LISTS.folders, {'2': ids_sha256(LABELLED[name])}, '')
  with (mock.patch.object(module, 'Source', lambda: source),
        mock.patch.object(module, 'LISTS', lists), mock.patch.multiple(archives, **BOUNDS)):
    yield


def write(rng: np.random.Generator | None, path: pathlib.Path, members: Members) -> None:
  """Writes an archive; with a generator, some of it is not as it should be."""
  suffix, links, options = path.suffix, {}, {}
  if rng is not None:
    chosen, kind = str(rng.choice(list(members))), rng.integers(10)
    if rng.random() < 0.4:  # A list, where there are lists.
      chosen = next(name for name in members if name.endswith(('.txt', 'README', 'color.png')))
    if kind == 0:
      links[chosen] = LINKS[rng.integers(len(LINKS))]
    elif kind == 1:
      suffix = str(rng.choice(['.tar', '.tgz', '.zip']))
    elif kind == 2:
      options = {'format': int(rng.choice([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])),
                 'compression': int(rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]))}
      members = members | {str(rng.choice(['n' * 150_000, 'ä' * 90, '', '.'])): b'x'}
    else:
      members = spoil(rng, members, chosen, path.parents[2])
  path.parent.mkdir(parents=True, exist_ok=True)
  (write_zip if suffix == '.zip' else write_tar)(path, members, links, suffix, **options)


def spoil(rng: np.random.Generator, members: Members, chosen: str, outside: pathlib.Path
          ) -> Members:
  """Removes or replaces the chosen member, or adds some that lead out of the folder."""
  kind = rng.integers(6)
  if kind == 0:
    return {name: data for name, data in members.items() if name != chosen}
  if kind == 1:
    return members | {chosen: damage(rng, members[chosen])}
  if kind == 2:
    return members | {chosen: members[str(rng.choice(list(members)))]}
  if kind == 3:
    ways = ('../evil', '../../evil', '/tmp/evil', f'{outside}/evil', 'a\\..\\evil')
    return {f'{way}{rng.integers(3)}': b'evil' for way in ways} | members
  if kind == 4:  # A bomb, of one member or of many.
    bomb = bytes(int(rng.choice([99_999, 100_001, 2_000_000])))
    return members | {chosen: bomb} | {f'x{i}': b'' for i in range(rng.choice([0, 300]))}
  return members | {chosen: rng.choice([
    b'', b'2007_000001\n' * 3, b'../../evil\n', b'\xff\xfe', b'a' * 90_000,
    b'2007_000033 2008_000101'])}


def write_tar(path: pathlib.Path, members: Members, links: dict[str, bytes], suffix: str, *,
              format: int = tarfile.GNU_FORMAT, compression: int = 0) -> None:
  """A tar, gzipped if `suffix` is .tgz; members named in `links` are of that type instead."""
  with tarfile.open(path, 'w:gz' if suffix == '.tgz' else 'w', format=format) as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.type, info.linkname = links.get(name, tarfile.REGTYPE), '/etc/passwd'
      info.size = 0 if name in links else len(data)
      with contextlib.suppress(ValueError):  # USTAR has no names so long.
        archive.addfile(info, io.BytesIO(data))


def write_zip(path: pathlib.Path, members: Members, links: dict[str, bytes], suffix: str, *,
              format: int = 0, compression: int = zipfile.ZIP_DEFLATED) -> None:
  """A zip; members named in `links` are symbolic links instead."""
  with zipfile.ZipFile(path, 'w', compression) as archive:
    for name, data in members.items():
      info = zipfile.ZipInfo(name[:60_000])
      info.compress_type = compression
      info.external_attr = (0o120777 if name in links else 0o100644) << 16
      archive.writestr(info, data)


def worsen(rng: np.random.Generator, path: pathlib.Path, downloads: pathlib.Path) -> None:
  """Now and then cuts, flips or removes an archive, lies about a size, or leaves part of it."""
  data, kind = path.read_bytes(), rng.integers(10)
  if kind < 3:
    path.write_bytes(damage(rng, data))
  elif kind == 3:  # The size that a zip's directory, or a tar's header, states.
    start = data.rfind(b'PK\x01\x02') + 24 if path.suffix == '.zip' else 124
    lie = rng.choice([b'\xff' * 4, b'\0' * 4, b'7777', b'\x80\xff\xff\xff', b'-001'])
    path.write_bytes(data[:start] + bytes(lie) + data[start + 4:])
  elif kind == 4:
    path.unlink()
  elif kind == 5:
    downloads.mkdir(parents=True, exist_ok=True)
    whole = data[: rng.integers(len(data))] if rng.random() < 0.5 else damage(rng, data)
    (downloads / f'{path.name}.part').write_bytes(whole)
