"""A raw connection to a server, for requests that HTTP libraries refuse to send."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from tests.server.live import LiveServer


class Reply(NamedTuple):
    """A response; `body` is parsed if it is JSON."""

    status: int
    headers: dict[str, str]
    body: Any


class Wire:
    """A connection.  A reset one reads as a closed one."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._file = connection.makefile("rb")

    def close(self) -> None:
        self._file.close()  # an open file object would keep the socket open

    def send(self, *pieces: bytes) -> bool:
        """Send all pieces; False if the server has closed its side."""
        try:
            for piece in pieces:
                self.socket.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def reply(self, *, has_body: bool = True) -> Reply:
        """Read one response; that of HEAD has no body.  Raises EOFError if there is none."""
        try:
            start = self._file.readline()
            if not start:
                raise EOFError("the server closed the connection")
            headers = {}
            while (line := self._file.readline().decode("latin-1").strip()) != "":
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = self._file.read(int(headers.get("content-length", 0)) if has_body else 0)
        except ConnectionResetError:
            raise EOFError("the server reset the connection") from None
        is_json = bool(body) and headers.get("content-type", "").startswith("application/json")
        return Reply(int(start.split()[1]), headers, json.loads(body) if is_json else body)

    def has_reply(self, timeout: float) -> bool:
        """Whether the server responds or closes within `timeout` seconds."""
        poll = select.poll()  # `select` knows descriptors below 1,024 only
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def is_closed(self) -> bool:
        """Wait until the server closes the connection; False if it sends something instead."""
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
    """Return the head of a request; headers are named in Python's spelling, and None omits one."""
    fields = {"Host": "localhost", "Content-Type": "application/json"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[misc]
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *lines, "", ""]).encode("latin-1")
