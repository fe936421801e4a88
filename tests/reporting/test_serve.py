"""The page served, and in a browser."""

import http.client
import json
import re
import shutil
import threading
import urllib.error
import urllib.request

import pytest

from gta_jax.reporting import report
from gta_jax.reporting.serve import PageServer
from tests.reporting.browser import needs_browser, open_page


@pytest.fixture
def server(workdirs, tmp_path):
  live = shutil.copytree(workdirs['gta0'], tmp_path / 'live')
  with PageServer([live]) as served:
    thread = threading.Thread(target=served.serve_forever, kwargs={'poll_interval': 0.05})
    thread.start()
    yield served, live
    served.shutdown()
    thread.join()


def test_a_served_page_follows_the_run_and_is_for_this_machine_alone(server):
  served, live = server
  assert served.server_address[0] == '127.0.0.1'
  tag = served.tag()
  with urllib.request.urlopen(served.url) as answer:
    assert answer.headers['ETag'] == tag and b'seed 0' in answer.read()
  kept = json.loads((live / 'report.json').read_text())
  (live / 'report.json').write_text(json.dumps({**kept, 'step': 3}))
  (live / 'results.json').unlink()
  with urllib.request.urlopen(urllib.request.Request(served.url, method='HEAD')) as answer:
    assert answer.headers['ETag'] != tag and answer.read() == b''
  with urllib.request.urlopen(served.url) as answer:
    assert b'evaluated at step 3 of 4' in answer.read()
  for url, headers, status in ((f'{served.url}etc/passwd', {}, 404),
                               (served.url, {'Host': 'elsewhere.example'}, 403)):
    with pytest.raises(urllib.error.HTTPError) as refused:
      urllib.request.urlopen(urllib.request.Request(url, headers=headers))
    assert refused.value.code == status
  (live / 'config.json').unlink()
  with pytest.raises(urllib.error.HTTPError) as failed:
    urllib.request.urlopen(served.url)
  assert failed.value.code == 500


def test_a_browser_that_goes_away_leaves_no_word_on_the_console(server, capfd, monkeypatch):
  served, _ = server
  gone = threading.Event()

  def answer(handler, *, body):
    gone.set()
    raise BrokenPipeError

  monkeypatch.setattr(served.RequestHandlerClass, '_answer', answer)
  with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException)):
    urllib.request.urlopen(served.url)
  assert gone.wait(10)
  served.shutdown()
  assert capfd.readouterr().err == ''


# After the page's own scripts: keys and the slider, as a person uses them.
_USE = '''<script>setTimeout(() => {
  const press = (target, key) => target.dispatchEvent(
    new KeyboardEvent('keydown', {key, bubbles: true}));
  press(document.getElementById('view-strip'), 'n');
  press(document.getElementById('view-image'), 'n');  // a list takes letters itself
  const slider = document.getElementById('view-slider');
  slider.value = 25;
  slider.dispatchEvent(new Event('input'));
  document.querySelector('#view-strip button:last-child').click();
  document.title = [document.getElementById('view-image').selectedIndex,
    document.getElementById('view-right').value, document.activeElement.textContent,
    document.getElementById('view-top').style.clipPath].join('; ');
}, 500)</script>'''


@needs_browser
def test_a_browser_shows_it_without_a_word_on_the_console(workdirs, tmp_path):
  page = report.make_page([workdirs['gta0']])
  page = _USE.join(page.rpartition('</body>')[::2])
  (tmp_path / 'report.html').write_text(page)
  shown, said = open_page((tmp_path / 'report.html').as_uri(), tmp_path / 'profile')
  assert said == []
  assert shown.count('class="marks"') == 5
  title = re.search('<title>(.*?)</title>', shown)[1]
  assert title == '1; least confident; least confident; inset(0px 0px 0px 25%)'


@needs_browser
def test_a_browser_shows_a_served_page_of_several_runs(server, workdirs, tmp_path):
  served, _ = server
  served.workdirs = tuple(workdirs.values())
  shown, said = open_page(served.url, tmp_path / 'profile')
  assert said == []
  assert shown.count('class="marks"') == 4
  assert 'mean_teacher, split 4, seed 0: teacher</option>' in shown
