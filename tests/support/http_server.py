"""A local HTTP server whose answers are functions: for mirrors that lie, stall, redirect or break off."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


def sends(data: bytes, *, status: int = 200, length: int | None = None) -> Answer:
    """An answer with these bytes; `length` is what Content-Length claims."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)

    return answer


def redirects(to: str) -> Answer:
    """A 302."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


class Server:
    """`url("/x")` answers as `answers["/x"]` says, else 404; `seen`: the paths asked for; `release` ends stalls."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.seen: list[str] = []
        self.release = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.seen.append(self.path)
                with suppress(BrokenPipeError, ConnectionResetError):
                    server.answers.get(self.path, sends(b"", status=404))(self)
                self.close_connection = True

            do_HEAD = do_GET  # noqa: N815 - http.server's name

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._httpd.daemon_threads = True

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._httpd.server_address[1]}{path}"

    def stalls(self, first: bytes = b"") -> Answer:
        """An answer that gives `first` of a megabyte and then nothing, until `release`."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(1 << 20))
            handler.end_headers()
            handler.wfile.write(first)
            handler.wfile.flush()
            self.release.wait(30)

        return answer

    def drips(self, interval: float) -> Answer:
        """An answer that gives one byte each `interval` seconds."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.end_headers()
            while not self.release.wait(interval):
                handler.wfile.write(b"x")
                handler.wfile.flush()

        return answer


@contextmanager
def serving() -> Iterator[Server]:
    """A running server."""
    server = Server()
    thread = threading.Thread(target=server._httpd.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server._httpd.shutdown()
        server._httpd.server_close()
        thread.join()
