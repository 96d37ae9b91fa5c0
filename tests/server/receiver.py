"""A receiver of callbacks on loopback, with given responses; it keeps the requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    """One POST."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver(ThreadingHTTPServer):
    """Answers the n-th POST with the n-th of `statuses`, and all later ones with the last.

    A status of 0 closes the connection without a response; one of 300 to 399 names `location`.
    """

    def __init__(self, statuses: Sequence[int] = (200,), *, delay_s: float = 0.0, location: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses, self.delay_s, self.location = statuses, delay_s, location
        self.received: list[Received] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            status = self.server.statuses[min(len(self.server.received), len(self.server.statuses) - 1)]
            self.server.received.append(Received(self.path, dict(self.headers.items()), body))
        if self.server.delay_s:
            time.sleep(self.server.delay_s)  # simulates a slow receiver
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def receiver(statuses: Sequence[int] = (200,), *, delay_s: float = 0.0, location: str = "") -> Iterator[Receiver]:
    """Run a receiver on a thread."""
    with Receiver(statuses, delay_s=delay_s, location=location) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
