"""Shows the page about runs on this machine alone, always as their files are."""

import contextlib
import http.server
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from gta_jax.reporting.report import make_page
from gta_jax.reporting.runs import EVALUATED
from gta_jax.training.logs import note

HOST = '127.0.0.1'


class PageServer(http.server.ThreadingHTTPServer):
  """Serves one page at /, made anew when it is asked for.

  Requests that name another host are refused, so that no web page can read it through a name that
  leads here.
  """

  daemon_threads = True

  def __init__(self, workdirs: Sequence[Path], port: int = 0):
    """Args: workdirs: of the runs. port: 0 for any that is free. Raises: OSError for one in use."""
    super().__init__((HOST, port), _Handler)
    self.workdirs = tuple(workdirs)

  @property
  def url(self) -> str:
    return f'http://{HOST}:{self.server_address[1]}/'

  def tag(self) -> str:
    """Differs after each evaluation."""
    paths = (workdir / name for workdir in self.workdirs for name in EVALUATED)
    return f'"{max((path.stat().st_mtime_ns for path in paths if path.is_file()), default=0)}"'


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_HEAD(self) -> None:
    with contextlib.suppress(ConnectionError):  # The browser went away meanwhile.
      self._answer(body=False)

  def do_GET(self) -> None:
    with contextlib.suppress(ConnectionError):
      self._answer(body=True)

  def _answer(self, *, body: bool) -> None:
    server = cast(PageServer, self.server)
    port = server.server_address[1]
    if self.headers.get('Host') not in (f'{HOST}:{port}', f'localhost:{port}'):
      self.send_error(403)
      return
    if self.path != '/':
      self.send_error(404)
      return
    tag, page = server.tag(), b''
    if body:
      try:
        page = make_page(server.workdirs).encode()
      except (OSError, ValueError) as error:
        self.send_error(500, explain=str(error))
        return
    self.send_response(200)
    self.send_header('Content-Type', 'text/html; charset=utf-8')
    self.send_header('Cache-Control', 'no-store')
    self.send_header('ETag', tag)
    if body:
      self.send_header('Content-Length', str(len(page)))
    self.end_headers()
    self.wfile.write(page)

  def log_message(self, format: str, *args: object) -> None:
    """Says nothing: a page asks every few seconds."""


def serve(workdirs: Sequence[Path], port: int = 0) -> None:
  """Serves until Ctrl-C. Raises ValueError where no run lies, OSError for a port in use."""
  make_page(workdirs)
  with PageServer(workdirs, port) as server:
    note(f'the page is at {server.url} on this machine, and follows the run; Ctrl-C ends it')
    with contextlib.suppress(KeyboardInterrupt):
      server.serve_forever()
