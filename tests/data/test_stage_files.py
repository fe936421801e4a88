"""Files of a stage: made once, gone on with where they were cut off, refused where they changed."""

import threading

import pytest

from gta_jax.data import stage_files
from gta_jax.data.files import DataError
from gta_jax.data.stage_files import StageFiles

IDS = ('b', 'deep/er/a', 'c', 'd')


class CutOff(BaseException):
  """As a signal is."""


class Maker:
  """Makes files of their id's name; counts, and stops before the n-th."""

  def __init__(self, stop=None, kinds=('masks', 'scores')):
    self.made, self.seen, self.stop, self.kinds = [], [], stop, kinds

  def __call__(self, ids, done):
    self.seen.append((tuple(ids), set(done)))
    for id in ids:
      if id in done:
        continue
      if len(self.made) == self.stop:
        raise CutOff
      self.made.append(id)
      yield id, {kind: f'{kind} of {id}'.encode() for kind in self.kinds}


def files(folder, ids=IDS):
  return StageFiles(folder / 'stages' / 'one', {'masks': '.png', 'scores': '.json'}, ids)


def test_what_was_cut_off_goes_on_and_what_is_complete_is_never_made_again(tmp_path):
  ours, maker = files(tmp_path), Maker(stop=2)
  with pytest.raises(CutOff):
    ours.fill(maker, source='s')
  with pytest.raises(DataError, match=r'[cd]\.png. \(and 3 more\) is missing'):
    ours.check()
  (ours.folder / 'masks' / 'c.png.partial').write_bytes(b'half')  # What a kill may leave.
  ours.path('scores', 'b').unlink()  # Of two files one is there: the image is not done.
  following = Maker()
  ours.fill(following, source='s')
  assert following.seen == [(IDS, {'deep/er/a'})] and following.made == ['b', 'c', 'd']
  assert ours.path('masks', 'deep/er/a').read_bytes() == b'masks of deep/er/a'
  ours.check()
  never = Maker()
  ours.fill(never, source='s')
  assert not never.seen


def test_an_empty_list_is_complete(tmp_path):
  ours = files(tmp_path, ())
  ours.fill(Maker(), source='s')
  ours.check()


@pytest.mark.parametrize('damage, message', [
  (lambda ours: ours.path('masks', 'c').write_bytes(b'other'), 'its files have changed since'),
  (lambda ours: ours.path('masks', 'c').unlink(), r'c\.png. is missing'),
  (lambda ours: ours.path('masks', 'c').write_bytes(b''), r'c\.png. is missing'),
  (lambda ours: ours.record_path.unlink(), 'it is not complete'),
  (lambda ours: ours.record_path.write_text('{'), 'masks.json is damaged'),
])
def test_files_that_changed_are_refused_at_every_start(tmp_path, damage, message):
  ours = files(tmp_path)
  ours.fill(Maker(), source='s')
  damage(ours)
  with pytest.raises(DataError, match=message):
    ours.check()
  if ours.record_path.exists():
    with pytest.raises(DataError, match=message):
      ours.fill(Maker(), source='s')


@pytest.mark.parametrize('stop', [2, None])
def test_files_of_another_list_or_network_are_refused(tmp_path, stop):
  ours = files(tmp_path)
  with pytest.MonkeyPatch.context() as patch:
    if stop:
      patch.setattr(ours.__class__, '_finish', lambda self, expected, *, first: None)
      with pytest.raises(CutOff):
        ours.fill(Maker(stop=stop), source='s')
    else:
      ours.fill(Maker(), source='s')
  for other, source in ((ours, 't'), (files(tmp_path, IDS[::-1]), 's')):
    with pytest.raises(DataError, match='of other images or of another network.*remove .*one'):
      other.fill(Maker(), source=source)


def test_processes_share_the_images_and_all_leave_when_all_are_done(tmp_path, monkeypatch):
  monkeypatch.setattr(stage_files, '_PAUSE', 0.01)
  makers = [Maker(), Maker(), Maker()]
  left = []

  def process(i):
    files(tmp_path).fill(makers[i], source='s', part=(i, 3))
    left.append(i)

  threads = [threading.Thread(target=process, args=(i,), daemon=True) for i in range(3)]
  threads[0].start()
  threads[1].start()
  threads[0].join(0.2)
  assert not left and not files(tmp_path)._record().get('sha256')
  threads[2].start()
  for thread in threads:
    thread.join(10)
  assert sorted(left) == [0, 1, 2]
  assert [maker.made for maker in makers] == [['b', 'd'], ['deep/er/a'], ['c']]
  files(tmp_path).check()
