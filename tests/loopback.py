"""A file server on loopback that can be told to misbehave."""

import contextlib
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path


class Server:
  """Serves the files of `folder` with byte ranges.

  Attributes:
    requests: (path, first byte asked for) of every request.
    break_after: bytes of a response after which the connection breaks off, None for never.
    ranges: whether ranges are honoured.
  """

  def __init__(self, folder: Path):
    self.folder, self.requests, self.break_after, self.ranges = folder, [], None, True
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        outer.answer(self)

      def log_message(self, *_):
        pass

    self._http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self._http.server_port}'

  def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
    asked = re.match(r'bytes=(\d+)-', handler.headers.get('Range', ''))
    start = int(asked[1]) if asked and self.ranges else 0
    self.requests.append((handler.path, start))
    path = self.folder / handler.path.lstrip('/')
    if not path.is_file():
      handler.send_error(404)
      return
    data = path.read_bytes()
    if asked and self.ranges and start >= len(data):
      handler.send_error(416)
      return
    handler.send_response(206 if start else 200)
    handler.send_header('Content-Length', str(len(data) - start))
    handler.end_headers()
    handler.wfile.write(data[start:][:self.break_after])

  @contextlib.contextmanager
  def running(self) -> Iterator['Server']:
    thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield self
    finally:
      self._http.shutdown()
      thread.join()
      self._http.server_close()
