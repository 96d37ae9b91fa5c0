"""A client below HTTP libraries: sends what they would refuse to send, and reads what comes back."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from tests.server.live import LiveServer


class Reply(NamedTuple):
    """One answer; `body` is parsed where it is JSON."""

    status: int
    headers: dict[str, str]
    body: Any


class Wire:
    """A connection.  A closed or reset one reads as its end."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._file = connection.makefile("rb")

    def close(self) -> None:
        self._file.close()  # or the socket would stay open for it

    def send(self, *pieces: bytes) -> bool:
        """Send all of it; False where the server does not take any more."""
        try:
            for piece in pieces:
                self.socket.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def reply(self) -> Reply:
        """Read one answer.  Raises EOFError where there is none."""
        try:
            start = self._file.readline()
            if not start:
                raise EOFError("the server closed the connection")
            headers = {}
            while (line := self._file.readline().decode("latin-1").strip()) != "":
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = self._file.read(int(headers.get("content-length", 0)))
        except ConnectionResetError:
            raise EOFError("the server reset the connection") from None
        is_json = headers.get("content-type", "").startswith("application/json")
        return Reply(int(start.split()[1]), headers, json.loads(body) if is_json else body)

    def has_reply(self, timeout: float) -> bool:
        """Tell whether the server says something, or closes, within some seconds."""
        return bool(select.select([self.socket], [], [], timeout)[0])

    def is_closed(self) -> bool:
        """Wait for the server to close the connection; False where it says something instead."""
        try:
            return not self._file.read(1)
        except ConnectionResetError:
            return True


@contextmanager
def wire(server: LiveServer, timeout: float = 60) -> Iterator[Wire]:
    """Connect to a server."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout) as connection, closing(Wire(connection)) as opened:
        yield opened


def head(
    path: str = "/v1/messages/batches", method: str = "POST", version: str = "1.1", **headers: str | int | None
) -> bytes:
    """Return a request's head; headers in Python's spelling, None for one that is to be left out."""
    fields = {"Host": "localhost", "Content-Type": "application/json"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[misc]
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *lines, "", ""]).encode("latin-1")
